"""``trivium predict driving FOLDER --each``: a data set's folder, logs, sweeps or a ROS bag, of any number of frames.

The next frames are read while a network computes, and the boxes of the one before are worked out (``video``), so that
a few frames are in memory at a time. Each frame's result files are written when the frame is done, and its line of
``frames.jsonl`` after it; the same command goes on where it was stopped. Frames that cannot be read are named and left
out, and tried again by the next run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.driving.adapters import argoverse2, cityscapes3d, custom, kitti, rosbag
from apps.driving.adapters import nuscenes as nuscenes_frames
from apps.driving.adapters.kitti_layouts import frame_root, frame_roots, layout_of
from apps.driving.adapters.nuscenes_tables import MAX_SWEEPS
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.inference.detect import LidarDetector
from apps.driving.inference.video import overlapped
from apps.driving.outputs import cityscapes3d as city_results
from apps.driving.outputs import kitti as kitti_results
from apps.driving.outputs import nuscenes
from apps.driving.outputs.result import frame_line
from shared.atomic_files import file_lock, write_whole
from shared.errors import InvalidInputError
from shared.threads import compute_threads_divided

if TYPE_CHECKING:
    from apps.driving.predictor import Computed, DrivingPredictor, Options, Prepared
    from apps.driving.schemas import DrivingFrame
    from apps.driving.types import Frame

_SWEEPS = {"lidar": True, "camera": False}
_IMAGES = {"lidar": False, "camera": True}
_BOTH = {"lidar": True, "camera": True}
_INFO = "sample.json"
_SETTINGS, _LINES, _LOCK = "settings.json", "frames.jsonl", ".lock"
_SAY_EVERY = 100


def predict_folder(
    predictor: DrivingPredictor, folder: Path, out: Path, options: Options, say: Callable[[str], object]
) -> int:
    """Detects in every frame of ``folder``, which may be a ROS bag, that ``out`` has no answer for.

    Returns how many could not be read. ``say`` is told how far it is. Raises ``InvalidInputError`` where nothing can be
    read, or ``out`` holds answers to another folder or of other weights or options.
    """
    if rosbag.bag_files([folder]):
        found = _of_bag(folder, options.topic)
    elif versions := sorted(found.parent for at in ("", "v1.0-*/") for found in folder.glob(f"{at}sample_data.json")):
        found = _of_nuscenes(versions, images=predictor.asks_camera(options.model))
    elif (info := folder if folder.name == _INFO else folder / _INFO).is_file():
        found = _of_described(info, images=predictor.asks_camera(options.model))
    elif logs := _logs(folder):
        found = _of_logs(folder, logs, images=predictor.asks_camera(options.model))
    elif cities := cityscapes3d.images_below(folder):
        found = _of_cityscapes(folder, cities)
    else:
        found = _of_folder(folder, predictor.device)
    if options.topic and found.topic is None:
        raise InvalidInputError(f"the option topic names one of a ROS bag, and {folder.name} is none; leave it out")
    settings = {
        "weights": predictor.digests,
        "model": options.model,
        "score": predictor.least_scores if options.score is None else options.score,
        "folder": str(found.root.resolve()),
    } | ({} if found.topic is None else {"topic": found.topic})
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{out} cannot be made: {error.strerror}; name another directory with --out") from error
    try:
        with file_lock(out / _LOCK, wait=False):
            _same(out / _SETTINGS, settings)
            model = options.model or predictor.preferred_model(found.sensors)
            with _threads_for(predictor, model):
                if model in predictor.detectors:
                    predictor.open_programs(model)  # the fastest is found by timing, with nothing beside it
                return _go_on(predictor, found, out, options, say)
    except BlockingIOError as error:
        raise InvalidInputError(
            f"another process is writing into {out}; wait for it, or name another directory"
        ) from error


class _Unread(NamedTuple):
    name: str
    read: Callable[[], Frame]


class _Found(NamedTuple):
    """Frames to be read one after the other, how many there should be, and their names where these are known before.

    ``sensors`` that they hold data of, as ``preferred_model`` takes them; ``posed`` where it is known where in the
    world they were taken.
    """

    root: Path
    frames: Iterable[_Unread]
    total: int
    names: set[str] | None = None
    topic: str | None = None
    posed: bool = False
    sensors: Mapping[str, bool] = _SWEEPS


def _of_folder(folder: Path, device: str) -> _Found:
    own = custom.folders([folder])
    if len(own) > 1:
        raise InvalidInputError(
            f"{folder.name} holds {len(own)} folders {custom.POINTS}; name the one above one of them"
        )
    if not folder.is_dir():
        raise InvalidInputError(f"--each takes a folder or a ROS bag, and {folder.name} is neither; leave --each out")
    if not own and not frame_roots(folder):
        return _of_sweeps(folder)
    root = own[0] if own else frame_root(folder)
    ids = custom.frame_ids(root) if own else kitti.frame_ids(root)
    read = partial(custom.read_frame if own else kitti.read_frame, root, labelled=False, device=device)
    frames = [_Unread(frame_id.replace("/", "_"), partial(read, frame_id)) for frame_id in ids]
    sensors = _SWEEPS
    if not own:
        layout = layout_of(root)
        sensors = {"lidar": layout.sweeps.is_dir(), "camera": layout.images.is_dir()}
    return _Found(root, frames, len(frames), {frame.name for frame in frames}, sensors=sensors)


def _of_sweeps(folder: Path) -> _Found:
    """Sweeps that lie in a folder itself."""
    ids = custom.sweep_ids(folder)
    if not ids:
        raise InvalidInputError(
            f"{folder.name} holds no sweep (.bin, .pcd, .npy), and neither a folder velodyne, image_2 or points nor "
            "nuScenes' tables, a sample.json, logs of Argoverse 2 or images of Cityscapes, which --each goes through"
        )
    frames = [_Unread(frame_id, partial(custom.read_unlabelled, folder, frame_id)) for frame_id in ids]
    return _Found(folder, frames, len(frames), set(ids))


def _of_bag(path: Path, topic: str | None) -> _Found:
    bag = rosbag.open_bag([path], topic)

    def frames() -> Iterator[_Unread]:
        try:
            for sweep in bag.sweeps():
                yield _Unread(sweep.name, sweep.read)
        except InvalidInputError as damage:
            yield _Unread("", partial(_refuse, damage))

    return _Found(path, frames(), bag.count, topic=bag.topic)


def _of_nuscenes(versions: list[Path], *, images: bool) -> _Found:
    """``versions`` are the folders of tables that there are."""
    if len(versions) > 1:
        names = ", ".join(version.name for version in versions)
        raise InvalidInputError(f"{versions[0].parent.name} holds {names}; name one of these folders")
    described = NuScenes(root=versions[0].parent, version=versions[0].name).all_frames()
    frames = [
        _Unread(name, partial(described.read, number, images=images)) for number, name in enumerate(described.names)
    ]
    return _Found(versions[0], frames, len(frames), set(described.names), posed=True, sensors=_BOTH)


def _of_described(info: Path, *, images: bool) -> _Found:
    """Key frames that a ``sample.json`` describes."""
    described = nuscenes_frames.describe(info)
    earlier = lru_cache(MAX_SWEEPS + 1)(nuscenes_frames.read_points)  # neighbours share sweeps
    read = partial(described.read, labelled=False, earlier=earlier)
    frames = [
        _Unread(
            nuscenes_frames.name_of(sample),
            partial(read, sample, images=images or not sample.get("lidar_points")),  # what has images alone is seen
        )
        for sample in described.samples
    ]
    sensors = {
        "lidar": any(sample.get("lidar_points") for sample in described.samples),
        "camera": any(sample["images"] for sample in described.samples),
    }
    posed = any("ego2global" in sample for sample in described.samples)
    return _Found(info, frames, len(frames), {frame.name for frame in frames}, posed=posed, sensors=sensors)


def _logs(folder: Path) -> list[Path]:
    """The folder itself where it is a log of Argoverse 2, else those in it, or in its splits."""
    if argoverse2.is_log(folder):
        return [folder]
    return sorted(found.parents[1] for depth in ("*", "*/*") for found in folder.glob(f"{depth}/sensors/lidar"))


def _of_logs(folder: Path, logs: list[Path], *, images: bool) -> _Found:
    """The sweeps of logs one after the other; of several each is called after its log too."""

    def read(log: Path, when: int, name: str) -> Frame:
        return replace(argoverse2.read_frame(log, when, images=images, labelled=False), name=name)

    frames = []
    for log in logs:
        for when in argoverse2.timestamps(log):
            name = str(when) if len(logs) == 1 else f"{log.name}_{when}"
            frames.append(_Unread(name, partial(read, log, when, name)))
    if not frames:
        raise InvalidInputError(f"{folder.name} holds no sweep of Argoverse 2 (sensors/lidar/TIMESTAMP.feather)")
    return _Found(folder, frames, len(frames), {frame.name for frame in frames}, sensors=_BOTH)


def _of_cityscapes(folder: Path, images: list[Path]) -> _Found:
    def read(image: Path) -> Frame:
        return cityscapes3d.read_unlabelled(image, cityscapes3d.calibration_of(image))

    frames = [_Unread(image.name.removesuffix(cityscapes3d.IMAGE), partial(read, image)) for image in images]
    return _Found(folder, frames, len(frames), {frame.name for frame in frames}, sensors=_IMAGES)


def _refuse(damage: InvalidInputError) -> Frame:
    """What is read of a bag from its damage on."""
    raise damage


def _threads_for(predictor: DrivingPredictor, model: str | None) -> AbstractContextManager[None]:
    """Half of the threads for the network, half for the second stage, which takes about as long, on a CPU.

    So neither waits for threads of the other: on two cores that compute for others as well, with two threads for each,
    a sweep took two to three times the processor's time.
    """
    detector = predictor.detectors.get(model or "")
    corrected = isinstance(detector, LidarDetector) and detector.second_stage is not None
    return compute_threads_divided(2) if corrected and predictor.device == "cpu" else nullcontext()


def _go_on(
    predictor: DrivingPredictor, found: _Found, out: Path, options: Options, say: Callable[[str], object]
) -> int:
    done = _answered(out / _LINES)
    before = len(done) if found.names is None else len(done & found.names)
    say(f"{found.root}: {found.total} frames, {before} of them answered before")
    refused, doubtful, beside, last = 0, 0, "", "none"

    def read(frame: _Unread) -> Prepared:
        return predictor.prepare(frame.read(), options)

    def finish(computed: Computed) -> tuple[DrivingFrame, dict[str, str]]:
        """The frame's line of JSON, and by name its result files where it has a camera."""
        frame, output = computed.prepared.frame, predictor.finish(computed, options)
        files = {}
        if frame.cameras:
            files[f"{frame.name}.txt"] = kitti_results.write(output.boxes, next(iter(frame.cameras.values())))
        if (name := city_results.file_name(frame)) is not None:
            files[f"{city_results.FOLDER}/{name}"] = city_results.write(output.boxes, frame)
        return frame_line(frame, output), files

    left = (frame for frame in found.frames if frame.name not in done)
    answers = overlapped(left, read, predictor.compute, finish, device=predictor.device)
    with (out / _LINES).open("a", encoding="utf-8") as lines, closing(answers):
        try:
            for number, (frame, answer) in enumerate(answers, 1):
                try:
                    line, files = answer.result()
                except InvalidInputError as refusal:
                    refused += 1
                    say(f"left out: {refusal}")
                    continue
                for name, text in files.items():
                    (out / name).parent.mkdir(exist_ok=True)
                    write_whole(out / name, text)
                    beside = " and a result file for each frame with a camera"
                lines.write(json.dumps(line, allow_nan=False) + "\n")
                lines.flush()
                last = frame.name
                if "remarks" in line:
                    doubtful += 1
                    if doubtful == 1:
                        say(f"{frame.name}: {line['remarks'][0]}")
                if number % _SAY_EVERY == 0:
                    say(f"{number} of {found.total - before} frames, the last {frame.name}")
        except KeyboardInterrupt:
            say(f"stopped; the last frame answered is {last}. The same command goes on after it.")
            raise
    say(f"Wrote {out / _LINES}{beside}; frames left out: {refused}")
    if (cities := out / city_results.FOLDER).is_dir():
        say(f"Wrote {cities}, the benchmark's files of the frames answered so far")
    if found.posed:
        _write_submission(out)
        say(f"Wrote {out / nuscenes.FILE}, a submission of the frames answered so far")
    if doubtful:
        say(f"frames with remarks: {doubtful}; {_LINES} has them")
    return refused


def _write_submission(out: Path) -> None:
    """nuScenes' file of all frames that are answered, from their lines."""
    aside = out / f".{nuscenes.FILE}"
    with (out / _LINES).open(encoding="utf-8") as lines, aside.open("w", encoding="utf-8") as file:
        file.writelines(nuscenes.submission(json.loads(line) for line in lines))
    aside.replace(out / nuscenes.FILE)


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
