"""``result.json``: the detections in each frame, as JSON types; metres and radians in the LiDAR frame."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.driving.types import Boxes3D, Detections, Frame
from shared.app import Table

if TYPE_CHECKING:
    from apps.driving.schemas import DrivingBox, DrivingFrame, DrivingFrameBox, DrivingResult

_MAX_ROWS = 10


def result(frames: Sequence[Frame], outputs: Sequence[Detections]) -> DrivingResult:
    """``frames`` with their boxes, ``boxes`` of all frames, and ``remarks``, if any, each kind once."""
    listed = [frame_line(frame, output) for frame, output in zip(frames, outputs, strict=True)]
    remarks = _merge_remarks(listed)
    boxes: list[DrivingFrameBox] = [
        {
            "name": box["name"],
            "score": box["score"],
            "frame": line["name"],
            "centre_lidar_m": box["centre_lidar_m"],
            "size_m": box["size_m"],
            "yaw": box["yaw"],
        }
        for line in listed
        for box in line["boxes"]
    ]
    found: DrivingResult = {"frames": listed, "boxes": boxes}
    if remarks:
        found["remarks"] = remarks
    return found


def _merge_remarks(listed: Sequence[DrivingFrame]) -> list[str]:
    """Merges remarks that differ only in frame names and numbers: the first one, and the number of the others."""
    by_kind: dict[str, list[str]] = {}
    for line in listed:
        for remark in line.get("remarks", ()):
            kind = re.sub(r"\d+(?:\.\d+)*", "", remark.replace(line["name"], ""))
            by_kind.setdefault(kind, []).append(f"{line['name']}: {remark}")
    others = {1: "", 2: " One more frame has such a remark."}
    return [
        same_kind[0] + others.get(len(same_kind), f" {len(same_kind) - 1} more frames have such a remark.")
        for same_kind in by_kind.values()
    ]


def frame_line(frame: Frame, output: Detections) -> DrivingFrame:
    """One frame: its name, the model, its boxes, its pose if known, and remarks if there are any."""
    line: DrivingFrame = {"name": frame.name, "model": output.model, "boxes": describe(output.boxes)}
    if frame.lidar_to_global is not None:
        line["lidar_to_global"] = frame.lidar_to_global.tolist()
    if output.remarks:
        line["remarks"] = list(output.remarks)
    return line


def describe(boxes: Boxes3D) -> list[DrivingBox]:
    """The boxes as JSON types, in the order of the detections: highest score first."""
    assert boxes.scores is not None
    return [
        {
            "name": boxes.names[i],
            "score": round(float(boxes.scores[i]), 4),
            "centre_lidar_m": [round(float(value), 3) for value in boxes.centre_lidar_m[i]],
            "size_m": [round(float(value), 3) for value in boxes.size_m[i]],
            "yaw": round(float(boxes.yaw[i]), 4),
        }
        for i in range(len(boxes))
    ]


def result_table(content: Mapping[str, Any]) -> Table:
    """The boxes of a ``result.json`` as a table: class, score, position, size and yaw."""
    boxes = content["boxes"]
    several = len(content["frames"]) > 1
    rows = [
        [
            *([box["frame"]] if several else []),
            box["name"],
            f"{box['score']:.3f}",
            ", ".join(f"{value:.1f}" for value in box["centre_lidar_m"]),
            " x ".join(f"{value:.1f}" for value in box["size_m"]),
            f"{box['yaw']:.2f}",
        ]
        for box in boxes[:_MAX_ROWS]
    ]
    columns = [*(["frame"] if several else []), "class", "score", "x, y, z (LiDAR, m)", "l x w x h (m)", "yaw (rad)"]
    more = f", the first {_MAX_ROWS} shown" if len(boxes) > _MAX_ROWS else ""
    return Table(title=f"Objects: {len(boxes)}{more}", columns=columns, rows=rows)
