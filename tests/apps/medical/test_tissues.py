"""The tissues of the phantoms: each is at its anatomical position and has the HU that scanners show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apps.medical.datasets.synth.anatomy import Anatomy, draw
from apps.medical.datasets.synth.fields import open_grid
from apps.medical.datasets.synth.tissue import render_chest

CHESTS = [draw(np.random.default_rng(seed), targets=150) for seed in (3, 8, 21)]
each_chest = pytest.mark.parametrize("chest", CHESTS)


def grid_around(centre, half_mm, step_mm=1.0):
    return open_grid(*(np.arange(c - half_mm, c + half_mm + step_mm / 2, step_mm, dtype=np.float32) for c in centre))


def painted(chest: Anatomy, centre, half_mm, step_mm=1.0):
    """HU around a point, without motion, and their grid."""
    grid = grid_around(centre, half_mm, step_mm)
    return render_chest(replace(chest, motion_mm=0.0), grid, np.random.default_rng(0))[0], grid


def median_at(chest, body, radius_mm=4.0, along=0.5):
    """The median HU in a ball inside a body."""
    end = body.end or body.start
    centre = [a + along * (b - a) for a, b in zip(body.start, end, strict=True)]
    image, (x, y, z) = painted(chest, centre, radius_mm)
    ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < radius_mm**2
    return float(np.median(image[ball]))


@each_chest
def test_bone_is_dense_and_costal_cartilage_is_not(chest):
    bones, x, y, z = chest.skeleton, *grid_around((0, 0, chest.carina - 20), 150, 2.0)
    image = render_chest(replace(chest, motion_mm=0.0), (x, y, z), np.random.default_rng(0))[0]
    bone, cartilage = bones.bone_depth(x, y, z, chest), bones.cartilage_depth(x, y, z, chest)
    assert np.median(image[bone > 1.5]) > 150
    soft = image[(cartilage > 1.5) & (bone < -2)]
    assert len(soft) > 100 and 40 < np.median(soft) < 200
    # At the front, near the midline, ribs end and cartilage continues to the sternum.
    sternum = (np.abs(x) < 10) & (np.abs(y - bones.sternum_y) < 8) & (np.abs(z - chest.carina) < 40)
    assert image[sternum & (bone > 0.5)].max() > 250


@each_chest
def test_the_two_sides_are_not_mirror_images(chest):
    x, y, z = grid_around((0, 0, chest.carina), 120, 3.0)
    right = chest.lung_depth(x, y, z) > 0
    differs = right != right[::-1]
    assert differs.mean() > 0.1 * right.mean()


@each_chest
def test_blood_muscle_and_fat_of_the_mediastinum(chest):
    descending_aorta, spine_muscle = chest.great_vessels[3], chest.soft_tissues[3]
    assert median_at(chest, descending_aorta, along=0.3) == pytest.approx(chest.blood_hu, abs=25)
    assert spine_muscle.end is not None
    for pad in chest.fat[1:3]:
        # The outer end of a fat pad beside the heart is fat, except where the heart or the diaphragm covers it.
        image, grid = painted(chest, pad.end, 3.0)
        inside = [body.depth(*grid) > -4 for body in chest.heart]
        free = (pad.depth(*grid) > 1) & ~np.any(inside, axis=0) & (chest.above_diaphragm(*grid) > 4)
        if free.sum() > 20:
            assert np.median(image[free]) < -40


def test_aortic_calcium_is_dense_and_only_there_if_drawn():
    chest, arch = CHESTS[0], CHESTS[0].great_vessels[2].start
    with_, without = (painted(replace(chest, calcium=c, blood_hu=40.0), arch, 22)[0] for c in (1.0, 0.0))
    bone = chest.skeleton.bone_depth(*grid_around(arch, 22), chest) > -3
    assert ((with_ > 300) & ~bone).sum() > 50
    assert ((without > 300) & ~bone).sum() == 0


def test_stomach_gas_is_below_the_diaphragm_and_not_lung():
    found = 0
    for seed in range(30):
        chest = draw(np.random.default_rng(seed), targets=20)
        for body in chest.gas[:1]:
            at = np.array(body.start, np.float32)
            at[1] -= 0.5 * body.size[1]
            if chest.above_diaphragm(*at[:, None])[0] > -8 or chest.cavity_depth(*at[:, None])[0] < 8:
                continue
            image, _ = painted(chest, at, 2.0)
            assert np.median(image) < -900
            assert chest.lung_depth(*at[:, None])[0] < 0
            found += 1
    assert found >= 10


@each_chest
def test_the_trachea_divides_at_the_carina(chest):
    back = chest.skeleton.spine_y - 47
    above, (x, y, _) = painted(chest, (0, back + 1, chest.carina + 40), 20)
    near = (np.abs(x) < 12) & (np.abs(y - back) < 12)
    middle = above.shape[2] // 2
    assert (above[..., middle] < -900)[near[..., 0]].sum() > 60
    low = (0, back + 2, chest.carina - 14)
    below, (x, _, _) = painted(chest, low, 34)
    outside_lung = chest.lung_depth(*grid_around(low, 34)) < -3
    air = ((below < -700) & outside_lung)[..., below.shape[2] // 2].any(axis=1)
    sides = x[:, 0, 0]
    assert air[sides < -20].any() and air[sides > 20].any() and not air[np.abs(sides) < 8].any()


@each_chest
def test_vessels_are_connected_from_the_hilum_to_the_last_branch(chest):
    for tree in (chest.arteries, chest.veins):
        ends = {tuple(point) for point in np.round(tree.end, 2)}
        roots = [point for point in np.round(tree.start, 2) if tuple(point) not in ends]
        assert len(tree.start) > 100
        assert {np.sign(root[0]) for root in roots} == {-1.0, 1.0} and len(roots) == 2
        # Segments taper, except for a few where two small ones meet.
        assert (tree.radius[:, 1] <= tree.radius[:, 0] + 1e-4).mean() > 0.95


def test_apical_scars_reduce_the_lung_only_at_the_apex():
    chest = replace(CHESTS[0], apical_caps_mm=(0.0, 0.0))
    scarred = replace(chest, apical_caps_mm=(9.0, 0.0))
    for side, top in ((-1, chest.top[0]), (1, chest.top[1])):
        apex = grid_around((side * 54, chest.lean * 0.8, top - 12), 14, 2.0)
        lost = (chest.lung_depth(*apex) > 0).sum() - (scarred.lung_depth(*apex) > 0).sum()
        assert (lost > 20) if side < 0 else (lost == 0)
    base = grid_around((-60, 0, chest.carina - 40), 20, 4.0)
    assert np.allclose(chest.lung_depth(*base), scarred.lung_depth(*base), atol=0.2)


def test_motion_doubles_the_edge_of_the_heart_and_leaves_the_apex():
    chest = CHESTS[0]
    heart = chest.heart[0]
    edge = (heart.start[0] + heart.size[0] * 0.9, heart.start[1], heart.start[2])
    for centre, moves in ((edge, True), ((60, 10, chest.top[1] - 25), False)):
        grid = grid_around(centre, 12)
        still, moved = (
            render_chest(replace(chest, motion_mm=mm), grid, np.random.default_rng(0))[0] for mm in (0.0, 3.0)
        )
        assert (np.abs(moved - still).max() > 50) == moves
