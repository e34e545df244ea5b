"""The second stage on a sweep: the points about each box that a detector found, and the box as they correct it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from apps.driving.inference.box_codes import FLIPPED, box_features, decode_boxes, from_the_other_end
from apps.driving.inference.point_cells import PointCells
from apps.driving.models.lidar_rcnn import INPUTS
from apps.driving.types import Boxes3D, BoxInput, Floats
from shared.deploy.programs.program import Program

BATCH = 32
LONGEST_M = 60.0
FROM_BOTH_ENDS, LIKELY = ("cyclist",), 0.1
"""Boxes of these classes and of such scores are looked at from their other end, too, for which way they face.

The network has learnt from boxes of which most were the right way round, and leaves many of a cyclist as they are: of
295 in 600 synthetic scenes 42 faced the wrong way by one look, and 13 by both. Of 3,654 cars it were 201 and 195; so
those are spared it, as are pedestrians, whose points do not tell.
"""


@dataclass(frozen=True, slots=True)
class SecondStage:
    """``network`` is called as a ``BoxNetwork`` is; ``program`` computes it, None where torch does."""

    network: nn.Module
    input: BoxInput
    device: str = "cpu"
    program: Program | None = None

    @torch.inference_mode()
    def refined(self, found: Boxes3D, points_N4: Floats) -> Boxes3D:
        """The boxes of a detector corrected, by the score of both stages from the best down.

        A box without a point in it or about it is none.
        """
        found, inputs = network_inputs(found, points_N4, self.input)
        if not len(found):
            return found
        outputs = self._outputs(inputs)
        _, scores = decode_boxes(found.array, outputs)
        rows = np.flatnonzero(np.isin(found.names, FROM_BOTH_ENDS) & (scores >= LIKELY))
        if len(rows):
            points, known = from_the_other_end(inputs["points"].numpy()[rows], inputs["known"].numpy()[rows])
            seen = {"points": torch.from_numpy(points), "size": inputs["size"][rows], "known": torch.from_numpy(known)}
            outputs[rows, FLIPPED] = (outputs[rows, FLIPPED] - self._outputs(seen)[:, FLIPPED]) / 2
        boxes, scores = decode_boxes(found.array, outputs)
        better = replace(found, centre_lidar_m=boxes[:, :3], size_m=boxes[:, 3:6], yaw=boxes[:, 6], scores=scores)
        better = better.take(np.flatnonzero(np.isfinite(np.column_stack([boxes, scores])).all(axis=1)))
        assert better.scores is not None
        return better.take(np.argsort(-better.scores, kind="stable"))

    def _outputs(self, inputs: Mapping[str, Tensor]) -> Floats:
        """What the network gives for boxes (N, ``OUTPUTS``)."""
        given = [inputs[name].to(self.device) for name in INPUTS]
        parts = [self.network(*(one[n : n + BATCH] for one in given)) for n in range(0, len(given[0]), BATCH)]
        found: Floats = torch.cat(parts).float().cpu().numpy()
        return found


def network_inputs(found: Boxes3D, points_N4: Floats, input: BoxInput) -> tuple[Boxes3D, dict[str, Tensor]]:
    """The boxes that have a point in them or about them, and what the network is given of those.

    Boxes that no object has, longer than ``LONGEST_M`` or not of finite numbers, are left out.
    """
    found = found.take(np.flatnonzero(np.isfinite(found.array).all(axis=1) & (found.size_m < LONGEST_M).all(axis=1)))
    about = points_about(found.array, points_N4, input)
    counts = np.array([len(points) for points in about], np.int64)
    some = np.flatnonzero(counts)
    found = found.take(some)
    assert found.scores is not None
    classes = [kind.name for kind in input.classes]
    labels = np.array([classes.index(name) for name in found.names], np.int64)
    shown = [spread(about[number], input.points) for number in some]
    given = {
        "points": np.stack(shown) if shown else np.zeros((0, input.points, 3), np.float32),
        "size": np.ascontiguousarray(found.size_m),
        "known": box_features(found.array, found.scores, labels, counts[some], len(classes)),
    }
    return found, {name: torch.from_numpy(part) for name, part in given.items()}


def points_about(boxes_N7: Floats, points_N4: Floats, input: BoxInput) -> list[Floats]:
    """For each box the points (M, 3) in it and about it, in its own frame: x along it, from its centre, in metres."""
    if not len(boxes_N7):
        return []
    half = boxes_N7[:, 3:5] / 2 + input.around_m
    cosine, sine = np.abs(np.cos(boxes_N7[:, 6:])), np.abs(np.sin(boxes_N7[:, 6:]))
    reach = np.concatenate([cosine * half[:, :1] + sine * half[:, 1:], sine * half[:, :1] + cosine * half[:, 1:]], 1)
    begin, end = boxes_N7[:, :2] - reach, boxes_N7[:, :2] + reach
    height = boxes_N7[:, 5] / 2
    lowest, highest = (boxes_N7[:, 2] - height).min() - input.below_m, (boxes_N7[:, 2] + height).max() + input.above_m
    cells = PointCells(points_N4, begin, end, lowest, highest)
    return [_in_frame(cells.near(number), box, input) for number, box in enumerate(boxes_N7)]


def _in_frame(points_M3: Floats, box_7: Floats, input: BoxInput) -> Floats:
    """Those of the points that are in a box and about it, in its frame."""
    length, width, height, yaw = box_7[3:].tolist()
    x, y, z = (points_M3 - box_7[:3]).T
    cosine, sine = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    along, across = cosine * x + sine * y, cosine * y - sine * x
    inside = (np.abs(along) < length / 2 + input.around_m) & (np.abs(across) < width / 2 + input.around_m)
    inside &= (z > -height / 2 - input.below_m) & (z < height / 2 + input.above_m)
    return np.stack([along[inside], across[inside], z[inside]], axis=1)


def spread(points_M3: Floats, count: int) -> Floats:
    """``count`` of the points; where there are fewer, over and over again, which the network does not mind.

    Where there are more they are taken evenly by x, so that it does not matter in which order a sweep has them.
    """
    if len(points_M3) <= count:
        return points_M3[np.arange(count) % len(points_M3)]
    # Sweeps are in steps of a millimetre, and many points have the same x: y and z order those.
    x, y, z = points_M3.T.astype(np.float64)
    return points_M3[np.argsort(x + 1e-5 * y + 1e-10 * z)[np.arange(count) * len(points_M3) // count]]
