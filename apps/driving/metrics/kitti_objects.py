"""The objects and detections of many frames in columns, in the frame in which KITTI measures overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.kitti import to_rectified
from apps.driving.adapters.projection import image_boxes
from apps.driving.metrics.overlap import Doubles
from apps.driving.types import Boxes3D, Camera, Floats, Frame

Integers = NDArray[np.int64]
IGNORED_REGION = "dontcare"


@dataclass(frozen=True, kw_only=True, slots=True)
class KittiObjects:
    """N objects of all frames, those of a frame together, and the frames in order.

    ``frame_N`` is the number of the frame; ``names_N`` are class names in lower case, ``dontcare`` for a region in
    which detections are not judged. ``box_2d_N4`` is left, top, right, bottom in pixels, NaN where unknown.
    ``upright_N7`` is x, z, -y of the gravity centre in the rectified camera (metres), length, width, height and
    -rotation_y: right-handed, the third axis up. ``alpha_N`` is the observation angle in radians, NaN where unknown;
    ``truncation_N``, ``occlusion_N`` and ``scores_N`` are those of KITTI's columns, 0 where there is none.
    """

    frame_N: Integers
    names_N: NDArray[np.str_]
    truncation_N: Doubles
    occlusion_N: Doubles
    alpha_N: Doubles
    box_2d_N4: Doubles
    upright_N7: Doubles
    scores_N: Doubles

    def __len__(self) -> int:
        return len(self.names_N)

    def named(self, *names: str) -> NDArray[np.bool_]:
        """(N,) which are of one of the classes."""
        chosen: NDArray[np.bool_] = np.isin(self.names_N, [*names])
        return chosen

    @classmethod
    def of_rows(cls, frames: Sequence[int], names: Sequence[str], rows_N15: Doubles) -> Self:
        """From the numbers of KITTI's columns 2 to 16, truncation to score (readme.txt of its kit), by frame."""
        order = np.argsort(np.asarray(frames, np.int64), kind="stable")
        rows = np.asarray(rows_N15, np.float64).reshape(-1, 15)[order]
        height = rows[:, 7] / 2 - rows[:, 11]
        place = [rows[:, 10], rows[:, 12], height]
        return cls(
            frame_N=np.asarray(frames, np.int64)[order],
            names_N=np.asarray([name.lower() for name in names], np.str_)[order],
            truncation_N=rows[:, 0],
            occlusion_N=rows[:, 1],
            alpha_N=np.where(rows[:, 2] <= -10, np.nan, rows[:, 2]),
            box_2d_N4=rows[:, 3:7],
            upright_N7=np.column_stack([*place, rows[:, [9, 8, 7]], -rows[:, 13]]),
            scores_N=rows[:, 14],
        )

    @classmethod
    def of_truth(cls, frames: Sequence[Frame]) -> Self:
        """The truth of frames, and their ignored regions; raises ValueError for one without it."""
        parts = []
        for frame in frames:
            truth = frame.truth
            if truth is None or truth.box_2d is None or truth.occlusion is None or truth.truncation is None:
                raise ValueError(f"frame {frame.name} has no truth with 2D boxes, occlusion and truncation")
            regions = next(iter(frame.ignore_boxes_2d.values()), np.zeros((0, 4), np.float32))
            parts.append((truth, _first_camera(frame), truth.box_2d, regions))
        return cls._of_boxes(parts)

    @classmethod
    def of_detections(cls, frames: Sequence[Frame], detections: Sequence[Boxes3D]) -> Self:
        """The detections in frames; their 2D boxes are projected where they bring none. ValueError without scores."""
        parts = []
        for frame, found in zip(frames, detections, strict=True):
            if found.scores is None and len(found):
                raise ValueError(f"the predictions for frame {frame.name} have no scores")
            camera, box_2d = _first_camera(frame), found.box_2d
            if box_2d is None:
                if camera is None:
                    raise ValueError(f"frame {frame.name} has no camera and its predictions have no 2D boxes")
                size = camera.image_HWC.shape[0], camera.image_HWC.shape[1]
                box_2d, _ = image_boxes(found, camera.intrinsics, camera.lidar_to_camera, size)
            parts.append((found, camera, box_2d, np.zeros((0, 4), np.float32)))
        return cls._of_boxes(parts)

    @classmethod
    def _of_boxes(cls, parts: Sequence[tuple[Boxes3D, Camera | None, Floats, Floats]]) -> Self:
        frame, names = [np.zeros(0, np.int64)], [np.zeros(0, np.str_)]
        columns: list[Doubles] = [np.zeros((0, 15))]
        for number, (boxes, camera, box_2d, regions) in enumerate(parts):
            upright = _upright(boxes, camera)
            count, ignored = len(boxes), len(regions)
            known = np.zeros((count + ignored, 15))
            known[:, 8] = np.nan
            for column, values in ((0, boxes.truncation), (1, boxes.occlusion), (2, boxes.scores)):
                if values is not None:
                    # Six decimals: a truncation of 0.15 in float32 is not above the limit of 0.15.
                    known[:count, column] = np.round(values.astype(np.float64), 6) if column == 0 else values
            known[:count, 3], known[:count, 4:8], known[count:, 4:8] = _alpha(upright), box_2d, regions
            known[:count, 8:] = upright
            frame.append(np.full(count + ignored, number))
            names.append(np.array([*boxes.names, *[IGNORED_REGION] * ignored], np.str_))
            columns.append(known)
        table = np.concatenate(columns)
        return cls(
            frame_N=np.concatenate(frame),
            names_N=np.concatenate(names),
            truncation_N=table[:, 0],
            occlusion_N=table[:, 1],
            scores_N=table[:, 2],
            alpha_N=table[:, 3],
            box_2d_N4=table[:, 4:8],
            upright_N7=table[:, 8:],
        )


def pairs_within_frames(first: KittiObjects, second: KittiObjects) -> tuple[Integers, Integers]:
    """Rows of ``first`` and ``second`` (K,), (K,): all pairs of the same frame, in the order of the first."""
    begin = np.searchsorted(second.frame_N, first.frame_N)
    count = np.searchsorted(second.frame_N, first.frame_N, side="right") - begin
    rows = np.repeat(np.arange(len(first)), count)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    return rows, begin[rows] + nth


def _first_camera(frame: Frame) -> Camera | None:
    return next(iter(frame.cameras.values()), None)


def _upright(boxes: Boxes3D, camera: Camera | None) -> Doubles:
    """(N, 7) in the rectified camera; without a camera in the LiDAR frame: overlaps are the same in any mount."""
    if camera is None:
        return boxes.array.astype(np.float64)
    location, rotation = to_rectified(boxes, camera)
    size = boxes.size_m.astype(np.float64)
    return np.column_stack([location[:, 0], location[:, 2], size[:, 2] / 2 - location[:, 1], size, -rotation])


def _alpha(upright_N7: Doubles) -> Doubles:
    """The observation angle: rotation_y less the bearing of the centre from the camera's axis."""
    angle: Doubles = -upright_N7[:, 6] - np.arctan2(upright_N7[:, 0], upright_N7[:, 1])
    return angle
