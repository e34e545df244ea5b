"""Runs the second stage on a sweep: it refines each detected box from the points in and around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.inference.box_codes import FLIPPED, box_features, decode_boxes, mirrored_inputs
from apps.driving.inference.point_cells import PointCells
from apps.driving.models.lidar_rcnn import INPUTS
from apps.driving.types import Boxes3D, BoxInput, Floats
from shared.deploy.programs.program import Program

BATCH = 32
MAX_SIDE_M = 60.0
MIRRORED_CLASSES, MIN_MIRROR_SCORE = ("cyclist",), 0.1
"""Boxes of these classes, with at least this score, also go through the network mirrored, to decide which way they
face.

Most boxes that the network was trained on faced the right way, so that it often fails to flip a cyclist: of 295
cyclists in 600 synthetic scenes 42 faced the wrong way after one pass, and 13 after both. Of 3,654 cars 201 and 195
did, which is not worth a second pass; a pedestrian's points do not show its heading.
"""


@dataclass(frozen=True, slots=True)
class SecondStage:
    """``network`` has the call signature of ``BoxNetwork``; ``program`` computes it, None if torch does."""

    network: nn.Module
    input: BoxInput
    device: str = "cpu"
    program: Program | None = None

    @torch.inference_mode()
    def refine(self, detections: Boxes3D, points_N4: Floats) -> Boxes3D:
        """A detector's boxes with corrected geometry and the score of both stages, sorted by falling score.

        Boxes without a point in or around them are dropped.
        """
        detections, inputs = network_inputs(detections, points_N4, self.input)
        if not len(detections):
            return detections
        outputs = self._outputs(inputs)
        _, scores = decode_boxes(detections.array, outputs)
        rows = np.flatnonzero(np.isin(detections.names, MIRRORED_CLASSES) & (scores >= MIN_MIRROR_SCORE))
        if len(rows):
            points, features = mirrored_inputs(inputs["points"].numpy()[rows], inputs["known"].numpy()[rows])
            mirrored = {
                "points": torch.from_numpy(points),
                "size": inputs["size"][rows],
                "known": torch.from_numpy(features),
            }
            outputs[rows, FLIPPED] = (outputs[rows, FLIPPED] - self._outputs(mirrored)[:, FLIPPED]) / 2
        boxes, scores = decode_boxes(detections.array, outputs)
        corrected = replace(
            detections, centre_lidar_m=boxes[:, :3], size_m=boxes[:, 3:6], yaw=boxes[:, 6], scores=scores
        )
        corrected = corrected.take(np.flatnonzero(np.isfinite(np.column_stack([boxes, scores])).all(axis=1)))
        assert corrected.scores is not None
        return corrected.take(np.argsort(-corrected.scores, kind="stable"))

    def _outputs(self, inputs: Mapping[str, Tensor]) -> Floats:
        """The network's outputs (N, ``OUTPUT_COUNT``), computed in batches of ``BATCH`` boxes."""
        tensors = [inputs[name].to(self.device) for name in INPUTS]
        parts = [
            self.network(*(tensor[start : start + BATCH] for tensor in tensors))
            for start in range(0, len(tensors[0]), BATCH)
        ]
        outputs: Floats = torch.cat(parts).float().cpu().numpy()
        return outputs


def network_inputs(detections: Boxes3D, points_N4: Floats, input: BoxInput) -> tuple[Boxes3D, dict[str, Tensor]]:
    """The boxes with at least one point in or around them, and the network's inputs for these.

    Implausible boxes, with a side of ``MAX_SIDE_M`` or more or with values that are not finite, are dropped.
    """
    detections = detections.take(
        np.flatnonzero(np.isfinite(detections.array).all(axis=1) & (detections.size_m < MAX_SIDE_M).all(axis=1))
    )
    points_by_box = points_around(detections.array, points_N4, input)
    counts = np.array([len(points) for points in points_by_box], np.int64)
    occupied = np.flatnonzero(counts)
    detections = detections.take(occupied)
    assert detections.scores is not None
    classes = [kind.name for kind in input.classes]
    labels = np.array([classes.index(name) for name in detections.names], np.int64)
    samples = [sample_points(points_by_box[number], input.points) for number in occupied]
    inputs = {
        "points": np.stack(samples) if samples else np.zeros((0, input.points, 3), np.float32),
        "size": np.ascontiguousarray(detections.size_m),
        "known": box_features(detections.array, detections.scores, labels, counts[occupied], len(classes)),
    }
    return detections, {name: torch.from_numpy(values) for name, values in inputs.items()}


def points_around(boxes_N7: Floats, points_N4: Floats, input: BoxInput) -> list[Floats]:
    """For each box the points (M, 3) in and around it, in the box's frame: metres from the centre, x along the box."""
    if not len(boxes_N7):
        return []
    half = boxes_N7[:, 3:5] / 2 + input.around_m
    cosine, sine = np.abs(np.cos(boxes_N7[:, 6:])), np.abs(np.sin(boxes_N7[:, 6:]))
    extent = np.concatenate([cosine * half[:, :1] + sine * half[:, 1:], sine * half[:, :1] + cosine * half[:, 1:]], 1)
    begin, end = boxes_N7[:, :2] - extent, boxes_N7[:, :2] + extent
    height = boxes_N7[:, 5] / 2
    lowest, highest = (boxes_N7[:, 2] - height).min() - input.below_m, (boxes_N7[:, 2] + height).max() + input.above_m
    cells = PointCells(points_N4, begin, end, lowest, highest)
    return [_points_in_box_frame(cells.near(number), box, input) for number, box in enumerate(boxes_N7)]


def _points_in_box_frame(points_M3: Floats, box_7: Floats, input: BoxInput) -> Floats:
    """The points in and around a box, in the box's frame."""
    length, width, height, yaw = box_7[3:].tolist()
    x, y, z = (points_M3 - box_7[:3]).T
    cosine, sine = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    along, across = cosine * x + sine * y, cosine * y - sine * x
    inside = (np.abs(along) < length / 2 + input.around_m) & (np.abs(across) < width / 2 + input.around_m)
    inside &= (z > -height / 2 - input.below_m) & (z < height / 2 + input.above_m)
    return np.stack([along[inside], across[inside], z[inside]], axis=1)


def sample_points(points_M3: Floats, count: int) -> Floats:
    """``count`` of the points; fewer are repeated, which does not change the network's maximum over points.

    Of more points an even selection by x is taken, which does not depend on the order of the sweep.
    """
    if len(points_M3) <= count:
        return points_M3[np.arange(count) % len(points_M3)]
    # Coordinates come in steps of a millimetre, so that many points share x: y and z break the ties.
    x, y, z = points_M3.T.astype(np.float64)
    return points_M3[np.argsort(x + 1e-5 * y + 1e-10 * z)[np.arange(count) * len(points_M3) // count]]
