"""Scores result files against KITTI labels: ``python -m apps.driving.metrics LABEL_DIR RESULT_DIR``.

Both are read in the rectified camera, so that no calibration is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.driving.adapters import kitti
from apps.driving.adapters.calibration import Calibration
from apps.driving.metrics.kitti_ap import DIFFICULTIES, OVERLAPS, evaluate
from apps.driving.types import Boxes3D, Frame
from shared.errors import InvalidInputError

_UPRIGHT = Calibration(
    intrinsics=np.eye(3, dtype=np.float32),
    lidar_to_camera=np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32),
    reference_offset_m=np.zeros(3, np.float32),
)
"""A camera in the LiDAR's place: overlaps and angles of sight are the same for every rigid mount."""
_MEASURES = {"2d": "2D", "aos": "AOS", "bev": "BEV", "3d": "3D"}


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 2 where the input cannot be used, and the sentence says why."""
    try:
        if len(arguments) != 2:
            raise InvalidInputError("give two folders: python -m apps.driving.metrics LABEL_DIR RESULT_DIR")
        sys.stdout.write(table(Path(arguments[0]), Path(arguments[1])) + "\n")
    except InvalidInputError as refusal:
        sys.stderr.write(f"apps.driving.metrics: {refusal}\n")
        return 2
    return 0


def table(label_dir: Path, result_dir: Path) -> str:
    """AP R40 in percent of every class and measure by difficulty, of the frames that have a result file."""
    labels, results = _files(label_dir), _files(result_dir)
    if unknown := sorted(results.keys() - labels.keys()):
        raise InvalidInputError(
            f"{results[unknown[0]].name} has no label file in {label_dir}; take it out, or name other labels"
        )
    truth, found = [], []
    for name in sorted(results):
        boxes, ignored = kitti.read_labels(labels[name], _UPRIGHT)
        truth.append(
            Frame(name=name, points_lidar_m=None, cameras={}, truth=boxes, ignore_boxes_2d={"image_2": ignored})
        )
        boxes, _ = kitti.read_labels(results[name], _UPRIGHT)
        if boxes.scores is None and len(boxes):
            raise InvalidInputError(f"{results[name]} has no scores (column 16); is it a result file?")
        found.append(boxes)
    flat = not any(_shown(boxes).any() for boxes in found)
    measures = [measure for measure in _MEASURES if not (flat and measure in ("2d", "aos"))]
    scores = evaluate(truth, [_tall(boxes) for boxes in found] if flat else found)
    lines = [
        f"AP R40 in percent; {len(results)} of {len(labels)} labelled frames have a result file and are scored.",
        f"{'class':12}{'measure':10}" + "".join(f"{level:>10}" for level in DIFFICULTIES),
    ]
    if flat:
        lines[0] += " The results have no 2D boxes: none is left out for being low in the image."
    for kind, least in OVERLAPS.items():
        counts = "".join(f"{scores[f'{kind}/objects/{level}']:10.0f}" for level in DIFFICULTIES)
        lines.append(f"{kind:12}{'objects':10}{counts}")
        for measure in measures:
            values = (scores.get(f"{kind}/{measure}/{level}") for level in DIFFICULTIES)
            texts = "".join(f"{'-' if value is None else format(value, '.2f'):>10}" for value in values)
            lines.append(f"{'':12}{_MEASURES[measure] + f' {least}':10}{texts}")
    return "\n".join(lines)


def _files(folder: Path) -> dict[str, Path]:
    """Text files by their names, also in folders below: batches of frames may have been answered apart."""
    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is no folder; give one that holds a text file for each frame")
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.txt")):
        if file.stem in found:
            raise InvalidInputError(f"{found[file.stem]} and {file} are both frame {file.stem}; take one of them out")
        found[file.stem] = file
    if not found:
        raise InvalidInputError(f"{folder} holds no .txt file; give a folder with one for each frame")
    return found


def _shown(boxes: Boxes3D) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(N,) which have a 2D box with an area."""
    assert boxes.box_2d is not None
    shown: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = np.all(boxes.box_2d[:, 2:] > boxes.box_2d[:, :2], axis=1)
    return shown


def _tall(boxes: Boxes3D) -> Boxes3D:
    """With 2D boxes that cover nothing, but are high enough for every difficulty."""
    return replace(boxes, box_2d=np.tile(np.array([0, 0, 0, 1e4], np.float32), (len(boxes), 1)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
