"""Exports reviewed cases as training data, and checks an annotator's missed objects against the frames.

Sweeps: ``points/ID.bin`` and ``labels/ID.txt`` with the accepted and the missed boxes, in the layout of
``--data custom``; metres in the LiDAR frame. Images, if the store keeps them in full: KITTI's ``training/image_2``,
``calib`` and ``label_2``. ``ImageSets`` and ``training/ImageSets`` keep the frames of a case in one split.
``frames.csv`` maps each file to its case and frame.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.driving.outputs import kitti
from apps.driving.outputs.view import safe_name
from apps.driving.outputs.whole_frame import input_name, png, read_whole_frame
from apps.driving.types import Boxes3D, Camera, Frame
from shared.errors import InvalidInputError
from shared.review import ReviewedCase, Reviewing
from shared.text_cell import text_cell

if TYPE_CHECKING:
    from apps.driving.schemas import DrivingMissed


_FRAMES = ("file", "case", "frame", "points", "points_kept", "images")


def export(cases: Sequence[ReviewedCase], out: Path) -> list[str]:
    """Writes sweeps, images and labels of the fully reviewed frames; returns the remarks to print.

    A frame is fully reviewed if each of its boxes is accepted or rejected. A frame without boxes counts if the whole
    case is reviewed, or if an object was added to it. Rejected boxes become background, because no label has them.
    """
    for folder in ("points", "labels"):
        (out / folder).mkdir()
    rows: list[tuple[object, ...]] = []
    sweep_names: dict[str, list[list[str]]] = {}
    image_names: dict[str, list[list[str]]] = {}
    sweeps = whole_sweeps = thinned = unavailable = undecided = images = 0
    for case in cases:
        views = _views(case)
        case_reviewed = len(case.review.verdicts) == len(case.result["boxes"])
        for index, (frame, numbers) in enumerate(_numbered(case.result["frames"])):
            missed = [item for item in case.review.missed if item["frame"] == frame["name"]]
            verdicts = [case.review.verdicts.get(number) for number in numbers]
            if None in verdicts or not (case_reviewed or verdicts or missed):
                undecided += 1
                continue
            view, content, name = views[index], case.input(input_name(index)), f"{case.id[:12]}-{index:04d}"
            kept_frame = None if content is None else read_whole_frame(content, name)
            points = _viewer_points(case, view) if kept_frame is None else _point_bytes(kept_frame)
            cameras = {} if kept_frame is None else kept_frame.cameras
            if points is None and not cameras:
                unavailable += 1
                continue
            accepted = [box for box, verdict in zip(frame["boxes"], verdicts, strict=True) if verdict == "accepted"]
            boxes = (*accepted, *missed)
            if points is not None:
                (out / "points" / f"{name}.bin").write_bytes(points)
                (out / "labels" / f"{name}.txt").write_text("".join(map(_label, boxes)), encoding="utf-8")
                sweep_names.setdefault(case.id, []).append([name])
                sweeps, whole_sweeps = sweeps + 1, whole_sweeps + (kept_frame is not None)
                thinned += len(points) < view["points"] * _POINT_BYTES
            image_files = [name] if len(cameras) == 1 else [f"{name}-{safe_name(camera)}" for camera in cameras]
            for image, camera_image in zip(image_files, cameras.values(), strict=True):
                _write_image(camera_image, boxes, out / "training", image)
            if cameras:
                image_names.setdefault(case.id, []).append(image_files)
            images += len(cameras)
            count_kept = None if points is None else len(points) // _POINT_BYTES
            rows.append((name, case.id, text_cell(frame["name"]), view["points"], count_kept, len(cameras)))
    with (out / "frames.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows((_FRAMES, *rows))
    _write_splits(out / "ImageSets", sweep_names)
    _write_splits(out / "training" / "ImageSets", image_names)
    remarks = [f"Frames written: {len(rows)}."] if rows else []
    if len({row[1] for row in rows}) == 1 < len(rows):
        remarks.append("All are from one case: training and validation frames are neighbours, so scores are too high.")
    return [*_skipped(unavailable, undecided), *remarks, *_written(out, sweeps, whole_sweeps, thinned, images)]


def _skipped(unavailable: int, undecided: int) -> list[str]:
    remarks = []
    if undecided:
        remarks.append(f"Skipped, frames not fully reviewed: {undecided}. Accept or reject each of their boxes.")
    if unavailable:
        remarks.append(
            f"Skipped, frames with images only: {unavailable}. The store does not keep their images in full; a server "
            "with TRIVIUM_KEEP_INPUTS=true keeps the images of its next cases."
        )
    return remarks


def _written(out: Path, sweeps: int, whole: int, thinned: int, images: int) -> list[str]:
    remarks = []
    if thinned:
        remarks.append(
            f"Sweeps of which the store keeps 60,000 points: {thinned}. Replace them with the original sweeps, using "
            "the names in frames.csv; a server with TRIVIUM_KEEP_INPUTS=true keeps the sweeps of its next cases in "
            "full."
        )
    if sweeps:
        remarks.append(
            f"Sweeps written: {sweeps}, of these from complete frames {whole}, from the viewer's files {sweeps - whole}"
            f". trivium train driving --data custom --data.root {out}"
        )
    if images:
        remarks.append(
            f"Images written, in full: {images}. "
            f"trivium train driving --recipe fcos3d_small --data kitti --data.root {out}"
        )
    return remarks


_POINT_BYTES = 16


def _viewer_points(case: ReviewedCase, view: Mapping[str, Any]) -> bytes | None:
    """The points of the viewer, as bytes of its file; None if the frame has none."""
    points = view["points_file"] and case.file(view["points_file"])
    return points if isinstance(points, bytes) else None


def _point_bytes(frame: Frame) -> bytes | None:
    return None if frame.points_lidar_m is None else frame.points_lidar_m.astype("<f4").tobytes()


def _write_image(camera: Camera, boxes: Sequence[Mapping[str, Any]], training: Path, name: str) -> None:
    """An image, its calibration and the boxes that are visible in it, in KITTI's layout."""
    found = Boxes3D(
        centre_lidar_m=np.array([box["centre_lidar_m"] for box in boxes], np.float32).reshape(-1, 3),
        size_m=np.array([box["size_m"] for box in boxes], np.float32).reshape(-1, 3),
        yaw=np.array([box["yaw"] for box in boxes], np.float32),
        names=tuple(box["name"] for box in boxes),
    )
    calibration = {
        "P2": np.hstack([camera.intrinsics, np.zeros((3, 1))]),
        "R0_rect": np.eye(3),
        "Tr_velo_to_cam": camera.lidar_to_camera[:3],
    }
    rows = "".join(f"{key}: {' '.join(f'{value:.9g}' for value in m.ravel())}\n" for key, m in calibration.items())
    for folder, file, content in (
        ("image_2", f"{name}.png", png(camera)),
        ("calib", f"{name}.txt", rows.encode()),
        ("label_2", f"{name}.txt", kitti.write(found, camera).encode()),
    ):
        (training / folder).mkdir(parents=True, exist_ok=True)
        (training / folder / file).write_bytes(content)


def _write_splits(folder: Path, cases: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Writes train.txt and val.txt. Splits by case, because the frames of a case and their cameras see the same scene.

    ``cases`` has the names of each frame's files. Every fifth case is for validation, counted from the one with the
    most frames; of fewer than five, the smallest one. A single case is split by its frames in the same way.
    """
    from apps.driving.datasets.split import VALIDATION_STRIDE

    if not cases:
        return
    units = [list(chain(*frames)) for frames in cases.values()]
    if len(units) == 1:
        units = [list(frame) for frame in next(iter(cases.values()))]
    units.sort(key=len, reverse=True)
    validation = units[VALIDATION_STRIDE - 1 :: VALIDATION_STRIDE] or units[-1:]
    training = [unit for unit in units if unit not in validation] or units
    folder.mkdir()
    for file, part in (("train.txt", training), ("val.txt", validation)):
        (folder / file).write_text("".join(f"{name}\n" for name in chain(*part)), encoding="utf-8")


def _views(case: ReviewedCase) -> list[dict[str, Any]]:
    """The viewer's entry for each frame."""
    content = case.file("boxes.json")
    if not isinstance(content, bytes):
        raise InvalidInputError(f"the case {case.id} has no boxes.json; delete it, or run it again")
    views: list[dict[str, Any]] = json.loads(content)["frames"]
    return views


def _numbered(frames: Sequence[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Each frame with the numbers of its boxes, counted from 1 over all frames."""
    numbers = count(1)
    for frame in frames:
        yield frame, [next(numbers) for _ in frame["boxes"]]


def _label(box: Mapping[str, Any]) -> str:
    """A row of a label file; its class is a single word."""
    values = (*box["centre_lidar_m"], *box["size_m"], box["yaw"])
    return " ".join((*(f"{value:.4f}" for value in values), "_".join(box["name"].split()))) + "\n"


def _check(missed: Sequence[DrivingMissed], result: Mapping[str, Any]) -> None:
    """Raises ``InvalidInputError`` if a missed object is in a frame that the case does not have."""
    names = {frame["name"] for frame in result["frames"]}
    for item in missed:
        if item["frame"] not in names:
            raise InvalidInputError(
                f"the case has no frame {item['frame']!r}; give the name of one of its frames "
                f"for the missed {item['name']}"
            )


REVIEWING = Reviewing(count=lambda result: len(result["boxes"]), check=_check, export=export)
