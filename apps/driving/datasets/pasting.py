"""Pastes objects from other sweeps into a sweep where they do not collide (Yan et al. 2018, section 3.3.1)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.driving.datasets.packing import CLASS, RETURNS, Pack
from apps.driving.types import Boxes3D, Floats
from shared.data.build_cache import get_or_build

MIN_POINTS = 5
_VERSION = 1
_MARGIN_M = 0.1
_AROUND_M = 1.0
_MAX_LIFT_M = 1.5


class ObjectBank:
    """The objects of a pack of sweeps with their points, extracted once and kept in the user's cache.

    ``numbers`` gives for each of the pack's class names the label that it is trained as, or -1.
    """

    def __init__(self, pack: Pack, numbers: NDArray[np.int64]) -> None:
        name = hashlib.sha256(f"{pack.folder.name} {MIN_POINTS} {_VERSION}".encode()).hexdigest()[:24]
        folder = get_or_build(f"driving-objects-{name}", lambda build_folder: _extract_objects(pack, build_folder))
        self._points = np.load(folder / "points.npy", mmap_mode="r")
        table = np.load(folder / "table.npy")
        self._starts = np.cumsum(np.concatenate([[0], table[:, RETURNS]])).astype(np.int64)
        self._boxes: Floats = table[:, :7]
        labels = numbers[table[:, CLASS].astype(np.int64)] if len(table) else np.zeros(0, np.int64)
        self._members = [np.nonzero(labels == label)[0] for label in range(int(numbers.max(initial=-1)) + 1)]

    def __len__(self) -> int:
        return len(self._boxes)

    def paste(
        self,
        points: Floats,
        boxes: Floats,
        labels: NDArray[np.int64],
        existing: Floats,
        up_to: int,
        generator: np.random.Generator,
    ) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Points (N, 4), boxes (M, 7) and labels (M,) with objects added until there are ``up_to`` of each class.

        Each object keeps the position from its own sweep and is moved vertically to the ground of this sweep. It is
        skipped if there are no returns around it, because it could not have been seen there, or if it overlaps a box of
        the sweep (``existing``, (K, 7), of any class) or another pasted one in BEV. The sweep's own points inside a
        pasted box are removed.
        """
        candidates, added = [], []
        for label, members in enumerate(self._members):
            missing = min(up_to - int((labels == label).sum()), len(members))
            if missing > 0:
                chosen = generator.choice(members, missing, replace=False)
                candidates.append(chosen)
                added.append(np.full(missing, label, np.int64))
        if not candidates:
            return points, boxes, labels
        objects, kinds = np.concatenate(candidates), np.concatenate(added)
        kept = without_collisions(self._boxes[objects], existing)
        objects, kinds = objects[kept], kinds[kept]
        if not len(objects):
            return points, boxes, labels
        pasted = self._boxes[objects].copy()
        lift = np.array([ground_below(points, box) - (box[2] - box[5] / 2) for box in pasted], np.float32)
        plausible = np.abs(lift) < _MAX_LIFT_M
        objects, kinds, pasted, lift = objects[plausible], kinds[plausible], pasted[plausible], lift[plausible]
        pasted[:, 2] += lift
        points = points[~_inside_any(points, pasted)]
        object_points = [
            self._points[self._starts[i] : self._starts[i + 1]] + np.array([0, 0, up, 0], np.float32)
            for i, up in zip(objects, lift, strict=True)
        ]
        return (
            np.concatenate([points, *object_points]),
            np.concatenate([boxes, pasted]).astype(np.float32),
            np.concatenate([labels, kinds]),
        )


def ground_below(points_N4: Floats, box_7: Floats) -> float:
    """The height of the ground around a box: the 10 % quantile of the points within 1 m; NaN if there are too few.

    The quantile is robust to a few returns from below the ground, and to overhangs.
    """
    radius = float(np.hypot(box_7[3], box_7[4])) / 2 + _AROUND_M
    near = points_N4[_near(points_N4[:, 0], points_N4[:, 1], box_7, radius), 2]
    return float(np.quantile(near, 0.1)) if len(near) >= MIN_POINTS else float("nan")


def without_collisions(candidates_N7: Floats, existing_K7: Floats) -> NDArray[np.bool_]:
    """(N,): which candidates, taken in order, overlap neither an existing box nor an earlier kept candidate."""
    corners = _outlines(np.concatenate([existing_K7, candidates_N7]))
    kept = [*range(len(existing_K7))]
    free = np.zeros(len(candidates_N7), bool)
    for number in range(len(candidates_N7)):
        row = len(existing_K7) + number
        if not kept or not _overlaps(corners[row], corners[kept]).any():
            free[number] = True
            kept.append(row)
    return free


def _outlines(boxes_N7: Floats) -> Floats:
    """(N, 4, 2): BEV corners, with a margin."""
    half = boxes_N7[:, None, 3:5] / 2 + np.float32(_MARGIN_M / 2)
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)
    plane = half * signs
    cosine, sine = np.cos(boxes_N7[:, 6])[:, None], np.sin(boxes_N7[:, 6])[:, None]
    x = plane[..., 0] * cosine - plane[..., 1] * sine
    y = plane[..., 0] * sine + plane[..., 1] * cosine
    outlines: Floats = (np.stack([x, y], -1) + boxes_N7[:, None, :2]).astype(np.float32)
    return outlines


def _overlaps(outline_42: Floats, others_N42: Floats) -> NDArray[np.bool_]:
    """(N,): whether two rectangles overlap, by the separating axis theorem."""
    apart = np.zeros(len(others_N42), bool)
    repeated = np.broadcast_to(outline_42, others_N42.shape)
    for sides in (repeated, others_N42):
        for start in (0, 1):
            axis = sides[:, start + 1] - sides[:, start]
            mine = (repeated * axis[:, None]).sum(-1)
            theirs = (others_N42 * axis[:, None]).sum(-1)
            apart |= (mine.max(1) < theirs.min(1)) | (theirs.max(1) < mine.min(1))
    return ~apart


def _inside_any(points: Floats, boxes_N7: Floats) -> NDArray[np.bool_]:
    inside = np.zeros(len(points), bool)
    x, y = np.ascontiguousarray(points[:, :2].T)
    for box in boxes_N7:
        near = _near(x, y, box, float(np.hypot(box[3], box[4])))
        inside[near] |= _as_boxes(box[None]).inside(points[near])[0]
    return inside


def _near(x: Floats, y: Floats, box_7: Floats, radius: float) -> NDArray[np.int64]:
    """Indices of the points in a square of half side ``radius`` around a box's centre. Tests y only where x is near."""
    beside = np.nonzero(np.abs(x - box_7[0]) < radius)[0]
    near: NDArray[np.int64] = beside[np.abs(y[beside] - box_7[1]) < radius]
    return near


def _as_boxes(boxes_N7: Floats) -> Boxes3D:
    return Boxes3D(
        centre_lidar_m=boxes_N7[:, :3], size_m=boxes_N7[:, 3:6], yaw=boxes_N7[:, 6], names=("",) * len(boxes_N7)
    )


def _extract_objects(pack: Pack, folder: Path) -> None:
    points, rows = [np.zeros((0, 4), np.float32)], []
    for index in range(len(pack)):
        sweep, table = pack.points(index), pack.table(index)
        for row, mask in zip(table, _as_boxes(table[:, :7]).inside(sweep), strict=True):
            if mask.sum() >= MIN_POINTS:
                points.append(sweep[mask])
                row[RETURNS] = mask.sum()
                rows.append(row)
    np.save(folder / "points.npy", np.concatenate(points))
    np.save(folder / "table.npy", np.array(rows, np.float32).reshape(-1, 15))
