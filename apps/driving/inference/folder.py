"""A KITTI folder, or one of own sweeps, of any number of frames: ``trivium predict driving FOLDER --each --out DIR``.

The next frames are read while a network computes, and the boxes of the one before are worked out (``video``), so that
a few frames are in memory at a time. Each frame's KITTI result file is written when the frame is done, and its line of
``frames.jsonl`` after it; the same command goes on where it was stopped. Frames that cannot be read are named and left
out, and tried again by the next run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.driving.adapters import custom, kitti
from apps.driving.adapters.kitti_layouts import frame_root
from apps.driving.inference.video import overlapped
from apps.driving.outputs import kitti as kitti_results
from apps.driving.outputs.result import frame_line
from shared.atomic_files import file_lock, write_whole
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.driving.predictor import Computed, DrivingPredictor, Options, Prepared
    from apps.driving.types import Frame

_SETTINGS, _LINES, _LOCK = "settings.json", "frames.jsonl", ".lock"
_SAY_EVERY = 100


def predict_folder(
    predictor: DrivingPredictor, folder: Path, out: Path, options: Options, say: Callable[[str], object]
) -> int:
    """Detects in every frame of ``folder`` that ``out`` has no answer for; returns how many could not be read.

    ``say`` is told how far it is. Raises ``InvalidInputError`` where nothing can be read, or ``out`` holds answers to
    another folder or of other weights or options.
    """
    own = custom.folders([folder])
    if len(own) > 1:
        raise InvalidInputError(
            f"{folder.name} holds {len(own)} folders {custom.POINTS}; name the one above one of them"
        )
    root = own[0] if own else frame_root(folder)
    ids = custom.frame_ids(root) if own else kitti.frame_ids(root)
    settings = {
        "weights": predictor.digests,
        "model": options.model,
        "score": predictor.least_scores if options.score is None else options.score,
        "folder": str(root.resolve()),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{out} cannot be made: {error.strerror}; name another directory with --out") from error
    try:
        with file_lock(out / _LOCK, wait=False):
            _same(out / _SETTINGS, settings)
            return _go_on(predictor, root, custom.read_frame if own else kitti.read_frame, ids, out, options, say)
    except BlockingIOError as error:
        raise InvalidInputError(
            f"another process is writing into {out}; wait for it, or name another directory"
        ) from error


def _go_on(
    predictor: DrivingPredictor,
    root: Path,
    read_frame: Callable[..., Frame],
    ids: Sequence[str],
    out: Path,
    options: Options,
    say: Callable[[str], object],
) -> int:
    done = _answered(out / _LINES)
    left = [frame_id for frame_id in ids if frame_id.replace("/", "_") not in done]
    say(f"{root}: {len(ids)} frames, {len(ids) - len(left)} of them answered before")
    refused, doubtful, last = 0, 0, "none"

    def read(frame_id: str) -> Prepared:
        return predictor.prepare(read_frame(root, frame_id, labelled=False, device=predictor.device), options)

    def finish(computed: Computed) -> tuple[dict[str, Any], str | None]:
        """The frame's line of JSON, and its KITTI result file where it has a camera."""
        frame, output = computed.prepared.frame, predictor.finish(computed, options)
        text = kitti_results.write(output.boxes, next(iter(frame.cameras.values()))) if frame.cameras else None
        return frame_line(frame, output), text

    answers = overlapped(left, read, predictor.compute, finish, device=predictor.device)
    with (out / _LINES).open("a", encoding="utf-8") as lines, closing(answers):
        try:
            for number, (frame_id, answer) in enumerate(answers, 1):
                try:
                    line, text = answer.result()
                except InvalidInputError as refusal:
                    refused += 1
                    say(f"left out: {refusal}")
                    continue
                if text is not None:
                    write_whole(out / f"{line['name']}.txt", text)
                lines.write(json.dumps(line, allow_nan=False) + "\n")
                lines.flush()
                last = frame_id
                if "remarks" in line:
                    doubtful += 1
                    if doubtful == 1:
                        say(f"{frame_id}: {line['remarks'][0]}")
                if number % _SAY_EVERY == 0:
                    say(f"{number} of {len(left)} frames, the last {frame_id}")
        except KeyboardInterrupt:
            say(f"stopped; the last frame answered is {last}. The same command goes on after it.")
            raise
    say(f"Wrote {out / _LINES} and a result file for each frame with a camera; {refused} frames were left out")
    if doubtful:
        say(f"{doubtful} frames carry such a remark in {_LINES}")
    return refused


def _same(file: Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings, or refuses where others made what is there."""
    text = json.dumps(settings, indent=2) + "\n"
    if not file.exists():
        write_whole(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise InvalidInputError(
            f"{file.parent} holds answers to another folder, or of other weights or options (its {file.name} says "
            "which); name another directory with --out"
        )


def _answered(lines: Path) -> set[str]:
    """The frames that have a whole line; what follows the last whole line, written as the machine stopped, is cut."""
    if not lines.exists():
        return set()
    content = lines.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        lines.write_bytes(whole)
    return {json.loads(line)["name"] for line in whole.splitlines()}
