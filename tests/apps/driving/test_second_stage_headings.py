"""The heading of a refined box does not depend on the detector's heading, for classes that get a mirrored pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.driving.inference.box_codes import box_features, mirrored_inputs
from apps.driving.inference.second_stage import SecondStage
from apps.driving.types import Boxes3D, BoxInput

INPUT = BoxInput(points=8)


class Trusting(torch.nn.Module):
    """Moves no box; assumes that the end with more points is the back, but trusts the detector's heading more."""

    def forward(self, points: torch.Tensor, size: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(points), 9)
        found[:, 0] = facts[:, 0]
        found[:, 8] = 0.5 * points[:, :, 0].mean(dim=1).sign() - 1
        return found


def heading(yaw: float, back: float, name: str = "cyclist", score: float = 0.9) -> float:
    """The cosine of the corrected yaw of a box at (10, 4) with points towards ``back``, -1 or 1 along x."""
    found = Boxes3D(
        centre_lidar_m=np.array([[10, 4, 0]], np.float32),
        size_m=np.array([[1.8, 0.6, 1.7]], np.float32),
        yaw=np.array([yaw], np.float32),
        names=(name,),
        scores=np.array([score], np.float32),
    )
    points = np.array([[10 + 0.6 * back, 4.1, 0.2, 0], [10 + 0.5 * back, 3.9, 0, 0]], np.float32)
    return float(np.cos(SecondStage(Trusting(), INPUT).refine(found, points).yaw[0]))


@pytest.mark.parametrize("yaw", [0.0, np.pi])
@pytest.mark.parametrize("back", [-1.0, 1.0])
def test_a_cyclists_heading_does_not_depend_on_the_detectors_heading(yaw, back):
    assert heading(yaw, back) == pytest.approx(-back, abs=1e-5)


@pytest.mark.parametrize(("name", "score"), [("car", 0.9), ("pedestrian", 0.9), ("cyclist", 0.05)])
def test_other_classes_and_low_scores_get_one_pass(name, score):
    assert heading(0.0, 1.0, name, score) == pytest.approx(1.0)
    assert heading(np.pi, -1.0, name, score) == pytest.approx(-1.0)


def test_mirrored_inputs_are_those_of_the_mirrored_box():
    draw = np.random.default_rng(0)
    boxes = np.concatenate(
        [draw.uniform(-30, 30, (20, 3)), draw.uniform(0.5, 4, (20, 3)), draw.uniform(-3, 3, (20, 1))], 1
    )
    scores, labels, counts = draw.uniform(0.1, 0.9, 20), draw.integers(0, 3, 20), draw.integers(1, 90, 20)
    points = draw.normal(size=(20, 8, 3)).astype(np.float32)
    mirrored = boxes.copy()
    # Front and back exchanged, then mirrored across the ray to the box.
    mirrored[:, 6] = 2 * np.arctan2(boxes[:, 1], boxes[:, 0]) - boxes[:, 6] + np.pi
    seen, known = mirrored_inputs(points, box_features(boxes, scores, labels, counts, 3))
    assert known == pytest.approx(box_features(mirrored, scores, labels, counts, 3), abs=1e-4)
    assert np.array_equal(seen, points * [-1, 1, 1])
