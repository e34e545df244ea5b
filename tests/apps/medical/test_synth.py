"""The phantoms: exact ground truth, reproducible from their seeds, with realistic HU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from apps.medical.datasets.patches import mirror
from apps.medical.datasets.pylidc_outlines import read_annotations
from apps.medical.datasets.synth.anatomy import draw
from apps.medical.datasets.synth.chests import open_chest
from apps.medical.datasets.synth.fields import Waves, open_grid
from apps.medical.datasets.synth.frame import Frame
from apps.medical.datasets.synth.nodules import KINDS, catalogue, draw_nodule, outline_shape, paint_nodule
from apps.medical.datasets.synth.pack import PackSettings, make_patch, open_pack
from apps.medical.datasets.synth.phantom import patch, volume
from apps.medical.datasets.synth.placing import NoduleSpec, draw_scan_nodules, place_nodules
from apps.medical.datasets.synth.scanner import Scanner, acquire
from apps.medical.datasets.synth.tissue import render_chest
from apps.medical.types import ChestInput

HERE = Frame(np.zeros(3, np.float32))
SPACING = (0.703125, 0.703125, 1.25)
GRID = ChestInput(spacing_mm=SPACING, patch_size=(48, 48, 32))


@pytest.fixture(scope="module")
def chest():
    return draw(np.random.default_rng(3), targets=150)


def test_all_outlines_of_lidc_are_read():
    read = read_annotations()
    assert len(read) == 6859
    assert len({annotation.scan_id for annotation in read}) == 883
    assert {annotation.texture for annotation in read} == {1, 2, 3, 4, 5}


def test_a_shape_has_the_size_of_its_outline():
    for number in range(0, len(catalogue()), 550):
        width, height, depth = catalogue()[number].extent_mm
        outline = outline_shape(number)
        extent = [np.ptp(index) * 0.7 + 0.7 for index in np.nonzero(outline.depth_mm > 0)]
        # Outlines run along the first voxels outside the nodule.
        assert extent[0] == pytest.approx(width, abs=3.0)
        assert extent[1] == pytest.approx(height, abs=3.0)
        assert extent[2] == pytest.approx(depth, abs=0.4 * depth + 3)
        assert 0 < outline.diameter_mm <= max(width, height, depth) + 1


def test_waves_on_a_grid_equal_those_at_its_points():
    waves = Waves.draw(np.random.default_rng(0), deviation=2.0, wavelengths_mm=(5, 40))
    axes = [np.linspace(-20, 30, n, dtype=np.float32) for n in (4, 5, 6)]
    grid = waves(*open_grid(*axes))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    assert grid.ravel() == pytest.approx(waves(*points.T), abs=1e-3)


def test_boxes_contain_dense_nodules(chest):
    random = np.random.default_rng(11)
    nodules_checked = 0
    while nodules_checked < 3:
        sample = patch(random, chest, (64, 64, 40), SPACING)
        assert sample.image_xyz.shape == (64, 64, 40)
        assert sample.image_xyz.min() >= -1024
        for box in sample.boxes:
            assert np.all(box[:3] >= 0) and np.all(box[3:] <= (64, 64, 40)) and np.all(box[3:] > box[:3])
            low, high = np.floor(box[:3]).astype(int), np.ceil(box[3:]).astype(int)
            inside = sample.image_xyz[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            assert np.percentile(inside, 80) > -780
            nodules_checked += 1


def test_nodules_are_in_the_lung_and_do_not_overlap(chest):
    low = np.array([-chest.half_width, -chest.half_depth, chest.base], np.float32)
    specs = [NoduleSpec(diameter_mm=diameter, kind="solid") for diameter in (6.0, 7.0, 9.0, 11.0, 13.0, 16.0)]
    placed = place_nodules(np.random.default_rng(5), chest, HERE, low, -low, specs)
    assert len(placed) >= 3
    for n, nodule in enumerate(placed):
        assert chest.lung_depth(*nodule.centre_mm[:, None])[0] > -1
        for earlier in placed[:n]:
            assert np.linalg.norm(nodule.centre_mm - earlier.centre_mm) > 8


def test_the_pleura_has_no_bumps_of_nodule_size(chest):
    """Unlabelled structures that look like nodules would teach the network to ignore nodules."""
    wavelengths = 2 * np.pi / np.linalg.norm(chest.surface.wave_vectors, axis=1)
    assert wavelengths.min() > 34


def test_fissures_are_thin_sheets_in_the_lung(chest):
    right = next(fissure for fissure in chest.fissures if fissure.side < 0)
    assert {fissure.side for fissure in chest.fissures} == {-1, 1} and len(chest.fissures) == 3
    axes = [np.arange(a, b, 1.0, dtype=np.float32) for a, b in ((-75, -50), (-20, 20), (-60, 40))]
    grid = open_grid(*axes)
    depth = right.depth(*grid, np.zeros(1, np.float32))
    assert right.thickness / 2 - 0.8 < depth.max() <= right.thickness / 2
    assert 0 < (depth > -1).mean() < 0.1
    bare = dataclasses.replace(chest, fissures=())
    with_fissures, without = (render_chest(anatomy, grid, np.random.default_rng(0))[0] for anatomy in (chest, bare))
    higher = with_fissures - without
    assert higher.min() > -1 and higher.max() > 100
    assert 0 < (higher > 50).mean() < 0.15


@pytest.mark.parametrize("diameter_mm", [20.0, 35.0, 55.0, 70.0])
def test_a_consolidation_is_one_connected_component(diameter_mm):
    for seed in range(3):
        nodule = draw_nodule(np.random.default_rng(seed), np.zeros(3, np.float32), diameter_mm, "consolidation")
        step = max(1.2, nodule.radius_mm / 25)
        axis = np.arange(-1.6 * nodule.radius_mm, 1.6 * nodule.radius_mm, step, dtype=np.float32)
        inside = nodule.depth(*open_grid(axis, axis, axis)) > 0
        pieces = np.bincount(ndimage.label(inside)[0].ravel())[1:]
        assert pieces.sum() - pieces.max() < 0.001 * pieces.max() + 3
        assert np.abs(axis[np.stack(np.nonzero(inside))]).max() < nodule.reach_mm + 2 * step


def test_subsolid_nodules_use_outlines_of_subsolid_nodules():
    for seed in range(8):
        for kind in ("ground glass", "part-solid"):
            assert draw_nodule(np.random.default_rng(seed), np.zeros(3, np.float32), 10.0, kind).shape.texture <= 3


def test_thick_slices_are_means_of_thin_ones():
    fine = np.arange(0, 40, 1.25, dtype=np.float32)
    image = np.zeros((2, 2, len(fine)), np.float32)
    image[..., 16] = 100
    still = Scanner(slice_spacing=5, slice_thickness=5, blur=0, noise_hu=0, grain=0.5, sharpen=0, offset=0)
    out = np.array([10.0, 15.0, 20.0, 25.0], np.float32)
    read = acquire(image, fine, out, still, np.random.default_rng(0))
    assert read[0, 0] == pytest.approx([0, 0, 25, 0], abs=0.1)


def test_mirroring_twice_changes_nothing():
    boxes = np.array([[1, 2, 3, 10, 12, 8]], np.float32)
    assert np.array_equal(mirror(mirror(boxes, 1, 40), 1, 40), boxes)
    assert mirror(boxes, 0, 40)[0].tolist() == [30, 2, 3, 39, 12, 8]


def test_a_pack_equals_its_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = PackSettings(patches=3, input=GRID, seed=4, per_chest=2)
    pack = open_pack(settings)
    image, boxes = make_patch(settings, 2)
    assert np.array_equal(pack.images[2], image)
    assert np.array_equal(pack.boxes[2, : pack.counts[2]], boxes[:6])
    assert open_pack(settings).images.filename == pack.images.filename


def test_a_whole_phantom_has_lungs_tissue_and_ground_truth():
    scan, truth = volume(
        np.random.default_rng(2), spacing_mm=(3.0, 3.0, 6.0), nodules=3, diameters_mm=(14.0, 20.0), name="small"
    )
    same_scan, _ = volume(
        np.random.default_rng(2), spacing_mm=(3.0, 3.0, 6.0), nodules=3, diameters_mm=(14.0, 20.0), name="small"
    )
    assert np.array_equal(scan.voxels_zyx, same_scan.voxels_zyx)
    assert 0.1 < (scan.voxels_zyx < -600).mean() < 0.8
    assert 1 <= len(truth) <= 3
    for nodule in truth:
        i, j, k = np.rint(scan.to_index_ijk(nodule.centre_lps_mm)).astype(int)
        assert scan.voxels_zyx[k, j, i] > -780
        assert 8 < nodule.mean_diameter_mm < 32


def test_phantoms_have_nodules_of_all_sizes_and_kinds():
    specs = [spec for seed in range(60) for spec in draw_scan_nodules(np.random.default_rng(seed))]
    sizes = np.array([spec.diameter_mm for spec in specs])
    assert sizes.min() < 3.5 and sizes.max() > 70 and np.all((sizes >= 3) & (sizes <= 80))
    assert 25 < (sizes > 30).sum() < 55
    assert {spec.kind for spec in specs} == set(KINDS)
    assert all(spec.diameter_mm < 45 for spec in specs if spec.kind == "ground glass")


@pytest.mark.parametrize(("kind", "diameter"), [("cavity", 40.0), ("consolidation", 70.0), ("solid", 60.0)])
def test_a_mass_has_the_requested_size(kind, diameter):
    nodule = draw_nodule(np.random.default_rng(4), np.zeros(3, np.float32), diameter, kind)
    axis = np.arange(-75, 75, 1.5, dtype=np.float32)
    grid = open_grid(axis, axis, axis)
    image = np.full((len(axis),) * 3, -850, np.float32)
    low, high = paint_nodule(image, grid, nodule, np.full_like(image, 99))
    inside = nodule.depth(*grid) > 0
    assert np.cbrt(6 / np.pi * inside.sum() * 1.5**3) == pytest.approx(diameter, rel=0.25)
    assert np.all(high - low > 0.5 * diameter) and np.all(high - low < 2.5 * diameter)
    assert (image[inside].min() < -900) == (kind in ("cavity", "consolidation"))
    assert np.median(image[inside]) > -200 or kind == "cavity"


def test_patches_are_cropped_from_a_packed_chest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packed = open_chest(8, 0, (4.0, 4.0, 6.0))
    middle = packed.low_mm + np.array([4.0, 4.0, 6.0], np.float32) * 20
    grid = open_grid(*(step * (np.arange(8, dtype=np.float32) + 0.5) for step in (4.0, 4.0, 6.0)))
    stored = packed.images[1][20:28, 20:28, 20:28].astype(np.float32) * (1524 / 255) - 1024
    assert packed.resample(Frame(middle), grid, 1) == pytest.approx(stored, abs=0.01)
    # The smallest possible rotation takes the code path for rotated frames and gives the same values.
    almost_upright = np.eye(3, dtype=np.float32) + np.float32(1e-6)
    assert packed.resample(Frame(middle, almost_upright), grid, 1) == pytest.approx(stored, abs=2)
    for coarse in (1, 2):
        sample = patch(np.random.default_rng(coarse), packed, (24, 24, 16), (4.0, 4.0, 6.0), coarse=coarse)
        assert sample.image_xyz.shape == (24, 24, 16)
        assert np.all(sample.boxes[:, :3] >= 0) and np.all(sample.boxes[:, 3:] <= (24, 24, 16))


def test_noise_has_the_standard_deviation_and_texture_of_its_kernel():
    random = np.random.default_rng(1)
    drawn = [Scanner.draw(random) for _ in range(200)]
    assert min(scanner.noise_hu for scanner in drawn) >= 10 and max(scanner.noise_hu for scanner in drawn) > 65
    plain = Scanner(slice_spacing=1, slice_thickness=1, blur=0, noise_hu=50, grain=0.6, sharpen=0, offset=0)
    for ramp in (0.0, 1.0):
        noise = dataclasses.replace(plain, ramp=ramp).noise(np.random.default_rng(2), (64, 64, 8))
        power = np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2
        # The noise of a sharp kernel has almost no low frequencies.
        low = power[1:4, 1:4].mean() / power.mean()
        assert noise.std() == pytest.approx(50, rel=0.01)
        assert (low < 0.3) == (ramp == 1.0)
