"""Findings do not depend on how a scan is stored: the order and direction of its axes, or a cropped margin."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.medical.datasets.synth.phantom import volume
from apps.medical.inference.grid import Grid, reorient_to_lps, resample
from apps.medical.models.retinanet import RetinaNet3D
from apps.medical.predictor import NodulePredictor, Options
from apps.medical.types import ChestInput, CTVolume

ORDERS = list(permutations(range(3)))
SIGNS = list(product((1, -1), repeat=3))


def stored(scan: CTVolume, order: tuple[int, ...], signs: tuple[int, ...]) -> CTVolume:
    """The scan with its axes in another order, those with sign -1 running the other way."""
    first = [0, 0, 0]
    for axis, sign in zip(order, signs, strict=True):
        first[axis] = scan.size_ijk[axis] - 1 if sign < 0 else 0
    turned = scan.voxels_zyx.transpose([2 - axis for axis in reversed(order)])
    turned = turned[tuple(slice(None, None, sign) for sign in reversed(signs))]
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(turned),
        spacing_mm=tuple(scan.spacing_mm[axis] for axis in order),
        origin_lps_mm=tuple(scan.to_lps_mm(first).tolist()),
        direction=scan.direction[:, list(order)] * signs,
    )


def cropped(scan: CTVolume, low: tuple[int, int, int], high: tuple[int, int, int]) -> CTVolume:
    """The scan cropped by ``low`` and ``high`` voxels at the lower and upper ends of i, j, k."""
    ends = np.array(scan.size_ijk) - high
    inner = tuple(slice(low[axis], int(ends[axis])) for axis in (2, 1, 0))
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(scan.voxels_zyx[inner]),
        spacing_mm=scan.spacing_mm,
        origin_lps_mm=tuple(scan.to_lps_mm(low).tolist()),
    )


@pytest.fixture(scope="module")
def scan():
    phantom, _ = volume(np.random.default_rng(6), spacing_mm=(1.8, 1.8, 5.0), nodules=3, diameters_mm=(10.0, 20.0))
    return phantom


@pytest.fixture(scope="module")
def read():
    torch.manual_seed(0)
    grid = ChestInput(spacing_mm=(1.8, 1.8, 3.0))
    detector = RetinaNet3D(layers=(1, 1, 1, 1), planes=4, features=8, stem=3).build(grid)
    # The scores of an untrained network are too close together, so they are spread.
    torch.nn.init.normal_(detector.network.classification_head.cls_logits.weight, std=0.2)
    predictor = NodulePredictor(detector=detector, input=grid, precision="fp32")

    def findings(scan: CTVolume) -> np.ndarray:
        (findings,) = predictor.predict([scan], Options(min_score=0.0, max_findings=30))
        return np.array([[nodule.score, *nodule.box_lps_mm] for nodule in findings.nodules])

    return findings


@pytest.fixture(scope="module")
def expected(read, scan):
    found = read(scan)
    assert len(found) == 30 and np.ptp(found[:, 0]) > 0.02
    return found


@pytest.mark.parametrize(
    ("order", "signs"),
    [((0, 1, 2), (-1, -1, 1)), ((0, 1, 2), (1, 1, -1)), ((1, 2, 0), (1, -1, -1)), ((2, 1, 0), (-1, 1, -1))],
    ids=["RAS", "head first", "sagittal", "reversed"],
)
def test_the_order_of_the_axes_changes_no_finding(read, scan, expected, order, signs):
    assert read(stored(scan, order, signs)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("low", "high"), [((3, 0, 0), (0, 0, 0)), ((1, 2, 0), (4, 3, 0))], ids=str)
def test_a_cropped_margin_changes_no_finding(read, scan, expected, low, high):
    assert read(cropped(scan, low, high)) == pytest.approx(expected, abs=1e-3)


@settings(max_examples=48)
@given(st.sampled_from(ORDERS), st.sampled_from(SIGNS), st.floats(-0.3, 0.3))
def test_any_axis_order_becomes_the_one_nearest_to_lps(order, signs, tilt):
    direction = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scan = CTVolume(voxels_zyx=voxels, spacing_mm=(1.0, 2.0, 3.0), origin_lps_mm=(5.0, -6.0, 7.0), direction=direction)
    back = reorient_to_lps(stored(scan, order, signs))
    assert np.array_equal(back.voxels_zyx, voxels)
    assert back.spacing_mm == scan.spacing_mm
    assert back.direction == pytest.approx(direction)
    assert back.origin_lps_mm == pytest.approx(scan.origin_lps_mm)


@pytest.mark.parametrize("rounded_mm", [-2e-13, 0.0, 2e-13])
def test_differently_rounded_origins_give_the_same_planes(rounded_mm):
    """Files may state the same origin as -777.5 or -777.4999999999998; the first plane is at the edge of a slice."""
    voxels = np.random.default_rng(0).integers(-1000, 300, (4, 6, 6)).astype(np.int16)
    scan = CTVolume(
        voxels_zyx=voxels,
        spacing_mm=(1.0, 1.0, 5.0),
        origin_lps_mm=(0.0, 0.0, -777.5 + rounded_mm),
        direction=np.eye(3),
    )
    grid = Grid(np.array([5.0, 5.0, -780.0]), np.array([1.0, 1.0, 1.25]), (6, 6, 17))
    image = resample(scan, grid, (-1024.0, 300.0)).numpy()
    expected = (voxels[[0, 3]].transpose(0, 2, 1)[:, ::-1, ::-1] + 1024) / 1324
    np.testing.assert_allclose(image[:, :, [0, 16]].transpose(2, 0, 1), expected, atol=1e-5)
