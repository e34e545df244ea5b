"""Objects and detections of many samples in columns, as nuScenes' detection protocol evaluates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from apps.driving.metrics.overlap import Doubles
from apps.driving.types import Boxes3D, Frame

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionBoxes:
    """N boxes of all samples, sorted by sample.

    ``centre_m_N2`` is x and y of the centre in metres, in any coordinate frame with z up that all boxes of a sample
    share; ``size_m_N3`` length, width and height; ``yaw_N`` radians about z. ``distance_m_N`` is the horizontal
    distance from the vehicle. ``velocity_N2`` is in m/s, NaN if unknown; ``attributes_N`` are names such as
    ``vehicle.parked``, empty if unknown. ``scores_N`` is 0 for the truth; ``point_counts_N`` is the number of LiDAR and
    radar returns, -1 if unknown.
    """

    sample_N: Integers
    names_N: NDArray[np.str_]
    centre_m_N2: Doubles
    size_m_N3: Doubles
    yaw_N: Doubles
    distance_m_N: Doubles
    scores_N: Doubles
    velocity_N2: Doubles
    attributes_N: NDArray[np.str_]
    point_counts_N: Integers

    def __len__(self) -> int:
        return len(self.names_N)

    def take(self, chosen: NDArray[np.bool_] | Integers) -> Self:
        """The boxes selected by a mask or by indices, which must keep the samples in order."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @classmethod
    def of_frames(cls, frames: Sequence[Frame]) -> Self:
        """The truth of frames, in the LiDAR frame, with distances from the LiDAR; raises ValueError for a frame without
        truth."""
        boxes = []
        for frame in frames:
            if frame.truth is None:
                raise ValueError(f"frame {frame.name} has no truth")
            boxes.append(frame.truth)
        return cls._of_boxes(boxes)

    @classmethod
    def of_detections(cls, detections: Sequence[Boxes3D]) -> Self:
        """The detections in frames, in the LiDAR frame; raises ValueError without scores."""
        for number, frame_boxes in enumerate(detections):
            if frame_boxes.scores is None and len(frame_boxes):
                raise ValueError(f"the detections in frame {number} have no scores")
        return cls._of_boxes(detections)

    @classmethod
    def _of_boxes(cls, boxes: Sequence[Boxes3D]) -> Self:
        table = np.concatenate([np.zeros((0, 7)), *(frame_boxes.array.astype(np.float64) for frame_boxes in boxes)])
        scores = [
            np.zeros(len(frame_boxes)) if frame_boxes.scores is None else frame_boxes.scores for frame_boxes in boxes
        ]
        counts = [
            np.full(len(frame_boxes), -1) if frame_boxes.point_counts is None else frame_boxes.point_counts
            for frame_boxes in boxes
        ]
        return cls(
            sample_N=np.repeat(np.arange(len(boxes)), [len(frame_boxes) for frame_boxes in boxes]),
            names_N=np.array([name for frame_boxes in boxes for name in frame_boxes.names], np.str_),
            centre_m_N2=table[:, :2],
            size_m_N3=table[:, 3:6],
            yaw_N=table[:, 6],
            distance_m_N=np.hypot(table[:, 0], table[:, 1]),
            scores_N=np.concatenate([np.zeros(0), *scores]),
            velocity_N2=np.full((len(table), 2), np.nan),
            attributes_N=np.full(len(table), "", np.str_),
            point_counts_N=np.concatenate([np.zeros(0, np.int64), *counts]),
        )
