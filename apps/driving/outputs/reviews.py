"""Reviewed cases in the layout of ``--data custom``; what an annotator says of the boxes is checked against the frames.

``points/ID.bin`` and ``labels/ID.txt`` with what was accepted and what was missed; metres in the LiDAR frame.
``frames.csv`` says which frame of which case each is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidInputError
from shared.review import ReviewedCase, Reviewing

if TYPE_CHECKING:
    from apps.driving.schemas import DrivingMissed


_FRAMES = ("file", "case", "frame", "points", "points_kept")


def export(cases: Sequence[ReviewedCase], out: Path) -> list[str]:
    """Writes the sweeps and labels of the frames that are reviewed whole; returns what is to be said.

    These are the frames each of whose boxes is accepted or rejected. A frame without a box is one where the case is
    reviewed whole, or where an object was added. A rejected box is background, as what no label holds.
    """
    for folder in ("points", "labels"):
        (out / folder).mkdir()
    rows: list[tuple[object, ...]] = []
    thinned = without_sweep = undecided = 0
    for case in cases:
        views = _views(case)
        whole = len(case.review.verdicts) == len(case.result["boxes"])
        for place, (frame, numbers) in enumerate(_numbered(case.result["frames"])):
            missed = [one for one in case.review.missed if one["frame"] == frame["name"]]
            verdicts = [case.review.verdicts.get(number) for number in numbers]
            if None in verdicts or not (whole or verdicts or missed):
                undecided += 1
                continue
            view = views[place]
            points = view["points_file"] and case.file(view["points_file"])
            if not isinstance(points, bytes):
                without_sweep += 1
                continue
            name = f"{case.id[:12]}-{place:04d}"
            boxes = [box for box, verdict in zip(frame["boxes"], verdicts, strict=True) if verdict == "accepted"]
            (out / "points" / f"{name}.bin").write_bytes(points)
            (out / "labels" / f"{name}.txt").write_text("".join(map(_label, (*boxes, *missed))))
            rows.append((name, case.id, frame["name"], view["points"], view["points_drawn"]))
            thinned += view["points_drawn"] < view["points"]
    with (out / "frames.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((_FRAMES, *rows))
    return _remarks(out, len(rows), thinned, without_sweep, undecided)


def _remarks(out: Path, written: int, thinned: int, without_sweep: int, undecided: int) -> list[str]:
    remarks = []
    if undecided:
        remarks.append(f"Left out, frames not reviewed whole: {undecided}. Accept or reject each of their boxes.")
    if without_sweep:
        remarks.append(f"Left out, frames of images alone: {without_sweep}. This layout holds sweeps.")
    if thinned:
        remarks.append(
            f"Sweeps of which the store keeps 60,000 points: {thinned}. Put the sweeps themselves in their place, "
            "by the names in frames.csv."
        )
    if written:
        remarks.append(f"Frames written: {written}. trivium train driving --data custom --data.root {out}")
    return remarks


def _views(case: ReviewedCase) -> list[dict[str, Any]]:
    """What the viewer's files say of each frame."""
    content = case.file("boxes.json")
    if not isinstance(content, bytes):
        raise InvalidInputError(f"the case {case.id} has no boxes.json; delete it, or run it again")
    views: list[dict[str, Any]] = json.loads(content)["frames"]
    return views


def _numbered(frames: Sequence[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Each frame with the numbers of its boxes among those of all frames, from 1."""
    numbers = count(1)
    for frame in frames:
        yield frame, [next(numbers) for _ in frame["boxes"]]


def _label(box: Mapping[str, Any]) -> str:
    """A row of a label file, whose class is one word."""
    values = (*box["centre_lidar_m"], *box["size_m"], box["yaw"])
    return " ".join((*(f"{value:.4f}" for value in values), "_".join(box["name"].split()))) + "\n"


def _count(result: Mapping[str, Any]) -> int:
    return len(result["boxes"])


def _check(missed: Sequence[DrivingMissed], result: Mapping[str, Any]) -> None:
    """Refuses an object in a frame that is not there."""
    names = {frame["name"] for frame in result["frames"]}
    for one in missed:
        if one["frame"] not in names:
            raise InvalidInputError(
                f"the case has no frame {one['frame']!r}; name a frame of the missed {one['name']} as in frames"
            )


REVIEWING = Reviewing(count=_count, check=_check, export=export)
