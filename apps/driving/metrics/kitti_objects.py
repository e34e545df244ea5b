"""The objects and detections of many frames in columns, in the coordinate frame in which KITTI measures overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    """N objects of all frames, sorted by frame.

    ``frame_N`` is the index of the frame; ``names_N`` are class names in lower case, ``dontcare`` for a region in which
    detections are not evaluated. ``box_2d_N4`` is left, top, right, bottom in pixels, NaN if unknown. ``upright_N7`` is
    x, z, -y of the gravity centre in the rectified camera frame (metres), length, width, height and -rotation_y:
    right-handed, with the third axis up. ``alpha_N`` is the observation angle in radians, NaN if unknown.
    ``truncation_N``, ``occlusion_N`` and ``scores_N`` are KITTI's columns, 0 if absent.
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
        """(N,) which objects are of one of the classes."""
        is_of_class: NDArray[np.bool_] = np.isin(self.names_N, [*names])
        return is_of_class

    def take(self, mask: NDArray[np.bool_]) -> Self:
        """The objects selected by a mask (N,)."""
        return type(self)(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})

    @classmethod
    def of_rows(cls, frames: Sequence[int], names: Sequence[str], rows_N15: Doubles) -> Self:
        """From the values of KITTI's columns 2 to 16, truncation to score (readme.txt of the kit); ``frames`` (N,) are
        the frames' indices."""
        order = np.argsort(np.asarray(frames, np.int64), kind="stable")
        rows = np.asarray(rows_N15, np.float64).reshape(-1, 15)[order]
        height = rows[:, 7] / 2 - rows[:, 11]
        centre = [rows[:, 10], rows[:, 12], height]
        return cls(
            frame_N=np.asarray(frames, np.int64)[order],
            names_N=np.asarray([name.lower() for name in names], np.str_)[order],
            truncation_N=rows[:, 0],
            occlusion_N=rows[:, 1],
            alpha_N=np.where(rows[:, 2] <= -10, np.nan, rows[:, 2]),
            box_2d_N4=rows[:, 3:7],
            upright_N7=np.column_stack([*centre, rows[:, [9, 8, 7]], -rows[:, 13]]),
            scores_N=rows[:, 14],
        )

    @classmethod
    def of_truth(cls, frames: Sequence[Frame]) -> Self:
        """The truth of frames, and their ignored regions; raises ValueError for a frame without 2D boxes, occlusion or
        truncation."""
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
        """The detections in frames; if they have no 2D boxes, these are projected. Raises ValueError without scores."""
        parts = []
        for frame, boxes in zip(frames, detections, strict=True):
            if boxes.scores is None and len(boxes):
                raise ValueError(f"the predictions for frame {frame.name} have no scores")
            camera, box_2d = _first_camera(frame), boxes.box_2d
            if box_2d is None:
                if camera is None:
                    raise ValueError(f"frame {frame.name} has no camera and its predictions have no 2D boxes")
                size = camera.image_HWC.shape[0], camera.image_HWC.shape[1]
                box_2d, _ = image_boxes(boxes, camera.intrinsics, camera.lidar_to_camera, size)
            parts.append((boxes, camera, box_2d, np.zeros((0, 4), np.float32)))
        return cls._of_boxes(parts)

    @classmethod
    def _of_boxes(cls, parts: Sequence[tuple[Boxes3D, Camera | None, Floats, Floats]]) -> Self:
        frames, names = [np.zeros(0, np.int64)], [np.zeros(0, np.str_)]
        columns: list[Doubles] = [np.zeros((0, 15))]
        for number, (boxes, camera, box_2d, regions) in enumerate(parts):
            upright = _upright(boxes, camera)
            count, ignored = len(boxes), len(regions)
            columns_N15 = np.zeros((count + ignored, 15))
            columns_N15[:, 8] = np.nan
            for column, values in ((0, boxes.truncation), (1, boxes.occlusion), (2, boxes.scores)):
                if values is not None:
                    # Rounded to six decimals, so that a truncation of 0.15 in float32 is not above the limit of 0.15.
                    columns_N15[:count, column] = np.round(values.astype(np.float64), 6) if column == 0 else values
            columns_N15[:count, 3], columns_N15[:count, 4:8], columns_N15[count:, 4:8] = (
                _alpha(upright),
                box_2d,
                regions,
            )
            columns_N15[:count, 8:] = upright
            frames.append(np.full(count + ignored, number))
            names.append(np.array([*boxes.names, *[IGNORED_REGION] * ignored], np.str_))
            columns.append(columns_N15)
        table = np.concatenate(columns)
        return cls(
            frame_N=np.concatenate(frames),
            names_N=np.concatenate(names),
            truncation_N=table[:, 0],
            occlusion_N=table[:, 1],
            scores_N=table[:, 2],
            alpha_N=table[:, 3],
            box_2d_N4=table[:, 4:8],
            upright_N7=table[:, 8:],
        )


def pairs_within_frames(first: KittiObjects, second: KittiObjects) -> tuple[Integers, Integers]:
    """Indices (K,) into ``first`` and (K,) into ``second`` of all pairs in one frame, in the order of ``first``."""
    begin = np.searchsorted(second.frame_N, first.frame_N)
    count = np.searchsorted(second.frame_N, first.frame_N, side="right") - begin
    rows = np.repeat(np.arange(len(first)), count)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    return rows, begin[rows] + nth


def _first_camera(frame: Frame) -> Camera | None:
    return next(iter(frame.cameras.values()), None)


def _upright(boxes: Boxes3D, camera: Camera | None) -> Doubles:
    """(N, 7) in the rectified camera frame, or in the LiDAR frame without a camera: overlaps are the same in both."""
    if camera is None:
        return boxes.array.astype(np.float64)
    location, rotation = to_rectified(boxes, camera)
    size = boxes.size_m.astype(np.float64)
    return np.column_stack([location[:, 0], location[:, 2], size[:, 2] / 2 - location[:, 1], size, -rotation])


def _alpha(upright_N7: Doubles) -> Doubles:
    """(N,) the observation angle: rotation_y minus the bearing of the centre from the camera's axis."""
    angle: Doubles = -upright_N7[:, 6] - np.arctan2(upright_N7[:, 0], upright_N7[:, 1])
    return angle
