"""Grids over a scan, and the distinction of lung from other air."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apps.medical.inference import candidates
from apps.medical.inference.grid import RIGHT_ANTERIOR_SUPERIOR, Grid, cover, resample
from apps.medical.inference.lungs import find_lungs
from apps.medical.types import ChestInput, CTVolume
from tests.apps.medical.chests import body_with_lungs


def ramp(direction: np.ndarray) -> CTVolume:
    """A volume whose HU are a linear function of position."""
    volume = CTVolume(
        voxels_zyx=np.zeros((20, 30, 40), np.int16),
        spacing_mm=(1.0, 0.8, 2.0),
        origin_lps_mm=(5.0, -7.0, 11.0),
        direction=direction,
    )
    k, j, i = np.indices(volume.voxels_zyx.shape)
    position = volume.to_lps_mm(np.stack([i, j, k], -1))
    values = position @ np.array([4.0, -5.0, 6.0]) - 400
    return CTVolume(
        voxels_zyx=np.rint(values).astype(np.int16),
        spacing_mm=volume.spacing_mm,
        origin_lps_mm=volume.origin_lps_mm,
        direction=direction,
    )


def turned(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "direction",
    [np.eye(3), np.diag([-1.0, -1, 1]), np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), turned(0.3)],
    ids=["LPS", "RAS", "sagittal", "oblique"],
)
def test_resampling_preserves_positions(direction):
    volume = ramp(direction)
    centre = volume.to_lps_mm([19.5, 14.5, 9.5])
    spacing = np.array([0.7, 0.9, 1.1])
    start = centre - np.array([-1, -1, 1]) * spacing * 4
    grid = Grid(start, spacing, (9, 9, 9))
    index = np.stack(np.meshgrid(*(np.arange(9.0),) * 3, indexing="ij"), -1)
    expected = (grid.centres_lps_mm(index) @ np.array([4.0, -5.0, 6.0]) - 400 + 1024) / 1324
    assert resample(volume, grid, ChestInput().window_hu).numpy() == pytest.approx(np.clip(expected, 0, 1), abs=2e-3)
    assert grid.to_lps_mm(np.array([[0.5, 0.5, 0.5]]))[0] == pytest.approx(start)


def test_a_grid_covers_its_box():
    volume = ramp(np.eye(3))
    spacing, strides = (0.7, 0.7, 1.0), (4, 4, 2)
    grid = cover(volume, (0, 0, 0), volume.size_ijk, spacing, strides)
    ends = np.array([grid.origin_lps_mm, grid.centres_lps_mm(np.array(grid.size) - 1.0)]) @ RIGHT_ANTERIOR_SUPERIOR
    corners = np.array([volume.to_lps_mm([0, 0, 0]), volume.to_lps_mm(np.array(volume.size_ijk) - 1)])
    along = np.sort(corners @ RIGHT_ANTERIOR_SUPERIOR, axis=0)
    period = np.array(spacing) * strides
    assert np.all((ends[0] <= along[0] + 1e-6) & (ends[0] > along[0] - period))
    assert np.all((ends[1] <= along[1] + 1e-6) & (ends[1] > along[1] - spacing))
    assert ends[0] / period == pytest.approx(np.rint(ends[0] / period), abs=1e-9)


def test_lungs_are_the_air_within_the_body():
    volume = body_with_lungs()
    lungs = find_lungs(volume)
    assert lungs is not None
    truth = (volume.voxels_zyx == -850).sum() * 45 / 1000
    assert lungs.millilitres == pytest.approx(truth, rel=0.02)
    assert lungs.contain(np.array([[30.0, 40, 15], [70, 40, 15], [50, 70, 15], [2, 2, 2]])).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert not lungs.cut
    assert lungs.low_ijk[0] <= 15 and lungs.high_ijk[0] >= 85


def test_lungs_that_reach_the_last_slice_are_reported_as_cut():
    volume = body_with_lungs()
    part = CTVolume(
        voxels_zyx=volume.voxels_zyx[:20].copy(), spacing_mm=volume.spacing_mm, origin_lps_mm=volume.origin_lps_mm
    )
    lungs = find_lungs(part)
    assert lungs is not None and lungs.cut


def changed(volume: CTVolume, voxels: np.ndarray) -> CTVolume:
    return dataclasses.replace(volume, voxels_zyx=np.ascontiguousarray(voxels))


LEFT, RIGHT = [70.0, 40, 15], [30.0, 40, 15]


@pytest.mark.parametrize("fill", [None, -1024])
def test_a_lung_cut_by_the_field_of_view_is_searched_and_reported_as_cut(fill):
    """The view ends within the right lung: at the image's side, or at a round view with filler around it."""
    volume = body_with_lungs()
    voxels = volume.voxels_zyx.copy()
    if fill is None:
        lungs = find_lungs(changed(volume, voxels[:, :, 20:]))
        centres = np.array([LEFT, RIGHT]) - (20, 0, 0)
    else:
        voxels[:, :, :20] = fill
        lungs = find_lungs(changed(volume, voxels))
        centres = np.array([LEFT, RIGHT])
    assert lungs is not None and lungs.contain(centres).tolist() == [True, True]
    assert lungs.cut


@pytest.mark.parametrize("field_of_view", [np.s_[:, :48, :], np.s_[:, 32:, :], np.s_[:, 30:50, :]])
def test_lungs_of_a_body_cut_at_the_back_or_front_are_searched(field_of_view):
    """A small field about the heart ends within the lungs, and with them in the spine or the breast bone."""
    volume = body_with_lungs()
    lungs = find_lungs(changed(volume, volume.voxels_zyx[field_of_view]))
    assert lungs is not None and lungs.cut
    begin = field_of_view[1].start or 0
    inside = [
        (x, y - begin, 15)
        for x in (30, 70)
        for y in range(field_of_view[1].start or 24, field_of_view[1].stop or 56, 4)
    ]
    assert lungs.contain(np.array(inside)).all()


@pytest.mark.parametrize("fill", [-1024, -2000])
def test_lungs_in_a_round_field_of_view_around_the_heart_are_searched(fill):
    volume = body_with_lungs()
    voxels = volume.voxels_zyx.copy()
    _, y, x = np.indices(voxels.shape)
    voxels[(x - 50) ** 2 + (y - 40) ** 2 > 18**2] = fill
    lungs = find_lungs(changed(volume, voxels[:, 22:59, 32:69]))
    assert lungs is not None and lungs.cut
    assert lungs.contain(np.array([(side, y - 22, 15) for side in (4, 32) for y in (36, 40, 44)])).all()


def test_table_foam_is_not_lung_even_if_the_body_is_cut_at_the_sides():
    """The foam of the table behind the body is as dense as lung, and the field of view ends within it."""
    volume = body_with_lungs()
    voxels = volume.voxels_zyx.copy()
    voxels[:, 74:, :] = -900
    voxels[:, 73, :] = -100
    lungs = find_lungs(changed(volume, voxels[:, :, 10:90]))
    assert lungs is not None and not lungs.contain(np.array([(x, 78, 15) for x in (5, 40, 75)])).any()


def test_severe_emphysema_at_the_edge_of_the_image_is_not_room_air():
    volume = body_with_lungs()
    voxels = np.where(volume.voxels_zyx == -850, -955, volume.voxels_zyx).astype(np.int16)
    lungs = find_lungs(changed(volume, voxels[:, :, 20:]))
    assert lungs is not None and lungs.contain(np.array([LEFT, RIGHT]) - (20, 0, 0)).all()
    assert lungs.cut


def test_a_collapsed_lung_is_searched():
    volume = body_with_lungs()
    k, j, i = np.indices(volume.voxels_zyx.shape)
    left = i >= 50
    remaining_lung = ((i - 70) / 8) ** 2 + ((j - 40) / 9) ** 2 + ((k - 15) / 5) ** 2 < 1
    voxels = np.where(left & ~remaining_lung & (volume.voxels_zyx == -850), 40, volume.voxels_zyx).astype(np.int16)
    share = (voxels[left] == -850).sum() / (voxels[~left] == -850).sum()
    assert share < 0.15
    lungs = find_lungs(changed(volume, voxels))
    assert lungs is not None and lungs.contain(np.array([LEFT])).all()
    gas = np.where(left & (voxels == -850), -1000, voxels).astype(np.int16)
    lungs = find_lungs(changed(volume, gas))
    assert lungs is not None and not lungs.contain(np.array([LEFT])).any()


def test_lung_connected_to_room_air_in_one_slice_is_lost_only_there():
    volume = body_with_lungs()
    voxels = volume.voxels_zyx.copy()
    voxels[15, :40, 28:33] = -1000
    lungs = find_lungs(changed(volume, voxels))
    assert lungs is not None and lungs.contain(np.array([LEFT, RIGHT])).all()
    assert lungs.millilitres > 0.9 * find_lungs(volume).millilitres


def test_without_air_there_are_no_lungs():
    volume = body_with_lungs()
    voxels = np.where(volume.voxels_zyx == -850, 40, volume.voxels_zyx).astype(np.int16)
    solid = CTVolume(voxels_zyx=voxels, spacing_mm=volume.spacing_mm, origin_lps_mm=volume.origin_lps_mm)
    assert find_lungs(solid) is None


def with_gas_below(*, lungs: bool) -> CTVolume:
    """A body with gas in stomach and colon below the diaphragm and a trachea above, with lungs between or without."""
    k, j, i = np.indices((60, 80, 100))
    voxels = np.full(i.shape, -1000, np.int16)
    voxels[((i - 50) / 45) ** 2 + ((j - 40) / 32) ** 2 < 1] = 40
    if lungs:
        for middle in (30, 70):
            voxels[((i - middle) / 15) ** 2 + ((j - 40) / 22) ** 2 + ((k - 38) / 14) ** 2 < 1] = -850
    voxels[((i - 50) / 3) ** 2 + ((j - 40) / 3) ** 2 + 0 * k < (k > 40)] = -990
    voxels[((i - 66) / 9) ** 2 + ((j - 34) / 9) ** 2 + ((k - 17) / 6) ** 2 < 1] = -990
    for middle in (20, 40, 60):
        voxels[((i - middle) / 8) ** 2 + ((j - 26) / 7) ** 2 + ((k - 6) / 5) ** 2 < 1] = -985
    return CTVolume(voxels_zyx=voxels, spacing_mm=(3.0, 3.0, 5.0), origin_lps_mm=(-150.0, -120.0, 0.0))


def test_stomach_bowel_and_trachea_are_not_lung():
    volume = with_gas_below(lungs=True)
    lungs = find_lungs(volume)
    assert lungs is not None
    assert lungs.millilitres == pytest.approx((volume.voxels_zyx == -850).sum() * 45 / 1000, rel=0.02)
    assert lungs.contain(np.array([[30.0, 40, 38], [70, 40, 38]])).all()
    assert not lungs.contain(np.array([[66.0, 34, 17], [20, 26, 6], [50, 40, 58]])).any()
    assert find_lungs(with_gas_below(lungs=False)) is None


def test_a_candidate_at_the_image_edge_is_dropped_and_a_mass_is_kept():
    volume = body_with_lungs()
    lungs = find_lungs(volume)
    part = changed(volume, volume.voxels_zyx[:15])
    ends = [part.to_lps_mm([[30.0, 40, k - 2], [30, 40, k + 2]]) for k in (14, 8)]
    low, high = (np.array([pair[n] for pair in ends]) + (2 * n - 1) * np.array([6.0, 6, 0]) for n in (0, 1))
    assert candidates._is_inside(part, (low + high) / 2).tolist() == [False, True]
    # A mass in the centre of a lung has no aerated lung near its own centre, but lung on most of its sides.
    solid = volume.voxels_zyx.copy()
    k, j, i = np.indices(solid.shape)
    solid[((i - 30) * 3) ** 2 + ((j - 40) * 3) ** 2 + ((k - 15) * 5) ** 2 < 36**2] = 40
    lungs = find_lungs(changed(volume, solid))
    centre = volume.to_lps_mm([[30.0, 40, 15], [50.0, 62, 15]])
    assert not lungs.contain(volume.to_index_ijk(centre)).any()
    assert candidates._is_at_lung(volume, lungs, centre - 36, centre + 36).tolist() == [True, False]
