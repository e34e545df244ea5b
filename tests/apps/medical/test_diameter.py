"""Diameters of shapes with a known size, and of blurred ones in the lung, free and at the chest wall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from apps.medical.inference import diameter
from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import Grid
from apps.medical.metrics.diameter import axes_mm, mean_axial_diameter_mm
from apps.medical.predictor import measure_nodules
from apps.medical.types import ChestInput, CTVolume

SPACING = np.array([0.7, 0.7, 1.25])


def measure(image: np.ndarray, box: np.ndarray, spacing: np.ndarray) -> float | None:
    """The mean diameter."""
    found = diameter.measure_nodule(image, box, spacing)
    return None if found is None else float(np.mean(found.axes_mm))


CENTRE = np.array([22.0, 21.0, 16.0])


def ellipsoid(axes: tuple[float, float, float], turn: float = 0.0) -> np.ndarray:
    """Depth in shares of the half axes: 0 in the middle, 1 at the surface."""
    index = np.indices((64, 60, 28)).transpose(1, 2, 3, 0)
    offset = (index + 0.5) * SPACING - CENTRE
    x = offset[..., 0] * np.cos(turn) + offset[..., 1] * np.sin(turn)
    y = offset[..., 1] * np.cos(turn) - offset[..., 0] * np.sin(turn)
    return np.sqrt((2 * x / axes[0]) ** 2 + (2 * y / axes[1]) ** 2 + (2 * offset[..., 2] / axes[2]) ** 2)


def test_the_axes_of_an_oblique_ellipse_are_not_those_of_its_box():
    mask = ellipsoid((20.0, 10.0, 12.0), turn=np.pi / 4) < 1
    middle = mask[:, :, int(CENTRE[2] / SPACING[2])]
    assert axes_mm(middle, (0.7, 0.7)) == pytest.approx((20.0, 10.0), abs=1.0)
    assert mean_axial_diameter_mm(mask, (0.7, 0.7)) == pytest.approx(15.0, abs=0.8)


def box(axes: tuple[float, float, float]) -> np.ndarray:
    half = np.array(axes) / 2
    return np.concatenate([(CENTRE - half) / SPACING, (CENTRE + half) / SPACING])


@pytest.mark.parametrize("density", [40.0, -550.0], ids=["solid", "ground glass"])
@pytest.mark.parametrize("size", [7.0, 14.0])
@pytest.mark.parametrize("wrong", [0.85, 1.2])
def test_a_box_of_the_wrong_size_gives_the_right_diameter(density, size, wrong):
    image = np.where(ellipsoid((size,) * 3) < 1, density, -860.0)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0.4)).astype(np.float32)
    diameter = measure(image, box((size * wrong,) * 3), SPACING)
    assert diameter == pytest.approx(size, abs=0.9)


@pytest.mark.parametrize("core", [7.0, 10.0])
def test_the_ground_glass_of_a_part_solid_nodule_is_measured(core):
    image = np.where(ellipsoid((15.0,) * 3) < 1, -550.0, -860.0)
    image = np.where(ellipsoid((core,) * 3) < 1, 20.0, image)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0.4)).astype(np.float32)
    assert measure(image, box((14.0, 14.0, 14.0)), SPACING) == pytest.approx(15.0, abs=1.2)


@pytest.mark.parametrize("thickness", [1.25, 2.5])
@pytest.mark.parametrize("size", [8.0, 14.0])
@pytest.mark.parametrize("offset_slices", [0.0, 0.25, 0.5])
def test_partial_volume_is_not_ground_glass(thickness, size, offset_slices):
    """A solid sphere in thick slices, each the mean over its thickness, with the centre ``offset_slices`` off."""
    spacing, parts = np.array([0.7, 0.7, thickness]), 4
    shape = np.ceil((size + 20) / spacing).astype(int)
    centre = shape / 2 * spacing + np.array([0, 0, offset_slices * thickness])
    fine = np.indices(shape * parts).transpose(1, 2, 3, 0)
    depth = np.linalg.norm((fine + 0.5) * spacing / parts - centre, axis=3) / (size / 2)
    image = np.where(depth < 1, 30.0, -850.0).reshape(*(n for k in shape for n in (k, parts))).mean((1, 3, 5))
    image = ndimage.gaussian_filter(image, (0.8, 0.8, 0))
    half = size / 2 / spacing
    found = measure(image, np.concatenate([centre / spacing - half, centre / spacing + half]), spacing)
    assert found == pytest.approx(size, abs=0.5)


def test_a_lobe_of_a_mass_is_part_of_it():
    """An opening with a third of the box would remove parts that are 12 mm thick."""
    spacing = np.array([1.0, 1.0, 2.0])
    x, y, z = ((np.indices((90, 90, 40))[n] + 0.5) * spacing[n] - middle for n, middle in enumerate((40, 45, 40)))
    body, lobe = x**2 + y**2 + z**2 < 20**2, (x > 0) & (x < 36) & (y**2 + z**2 < 6**2)
    image = ndimage.gaussian_filter(np.where(body | lobe, 30.0, -860.0), 0.6).astype(np.float32)
    ends = np.array([20, 25, 10, 76, 65, 30], float)
    assert measure(image, ends, spacing) == pytest.approx((56 + 40) / 2, abs=2.5)


def test_the_chest_wall_is_not_part_of_a_nodule_that_touches_it():
    image = np.where(ellipsoid((12.0, 12.0, 12.0)) < 1, 30.0, -860.0)
    image[int((CENTRE[0] + 5) / 0.7) :] = 40.0
    diameter = measure(image.astype(np.float32), box((12.0, 12.0, 12.0)), SPACING)
    assert diameter == pytest.approx(12.0, abs=2.5)


def test_without_contrast_there_is_no_diameter():
    image = np.full((64, 60, 28), -860, np.float32)
    assert measure(image, box((8.0, 8.0, 8.0)), SPACING) is None


@pytest.mark.parametrize("degrees", [0, 20, 45])
def test_a_nodule_has_the_same_diameter_in_an_oblique_scan(degrees):
    turn = np.deg2rad(degrees)
    direction = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    k, j, i = np.indices((40, 60, 60))
    voxels = np.where((i - 30) ** 2 + (j - 30) ** 2 + (k - 20) ** 2 < 64, 30, -850).astype(np.int16)
    volume = CTVolume(voxels_zyx=voxels, spacing_mm=(1, 1, 1), origin_lps_mm=(5, 6, 7), direction=direction)
    grid = Grid(np.array([100.0, 100.0, -50.0]), np.ones(3), (200, 200, 100))
    middle = volume.to_lps_mm([30, 30, 20])
    ends = np.sort(grid.to_voxels(np.stack([middle - 9, middle + 9])), axis=0)
    marks = Candidates(torch.zeros(1, 1, 1), grid, ends.reshape(1, 6), np.ones(1), np.zeros(1, np.int64))
    (nodule,) = measure_nodules(volume, marks, ChestInput())
    assert nodule.mean_diameter_mm == pytest.approx(16, abs=1)
    assert np.subtract(nodule.box_lps_mm[3:], nodule.box_lps_mm[:3]) == pytest.approx([16, 16, 16], abs=1.1)
    assert nodule.centre_lps_mm == pytest.approx(middle.tolist(), abs=1e-6)
