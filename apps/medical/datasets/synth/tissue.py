"""The chest without nodules, painted in HU on a grid: walls, mediastinum, abdomen, lungs, vessels, airways.

Shapes are smooth: their depths are computed every few millimetres and interpolated, which makes a whole chest at the
network's spacing a matter of seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from apps.medical.datasets.synth.anatomy import Anatomy, Body
from apps.medical.datasets.synth.fields import Array, Coordinates, on_grid, soft
from apps.medical.datasets.synth.skeleton import paint_bone, paint_cartilage
from apps.medical.datasets.synth.vessels import Tubes


def tissue(anatomy: Anatomy, grid: Coordinates, random: np.random.Generator) -> tuple[Array, Array]:
    """The chest without nodules: HU and the depth in the lung (mm), shape (X, Y, Z)."""
    lung = on_grid(anatomy.lung_depth, grid)
    cavity = on_grid(anatomy.cavity_depth, grid)
    texture = anatomy.wall_texture(*grid)
    image = _wall(anatomy, grid, cavity, texture)
    inner = _inside(anatomy, grid, texture)
    image += soft(cavity + 1, 3.0) * (inner - image)
    below = soft(-on_grid(anatomy.above_diaphragm, grid) - 2, 2.0) * soft(cavity, 3.0)
    if below.any():
        image += below * (_abdomen(anatomy, grid, texture) - image)
    bone = on_grid(lambda x, y, z: anatomy.skeleton.bone_depth(x, y, z, anatomy), grid, 2.0)
    cartilage = on_grid(lambda x, y, z: anatomy.skeleton.cartilage_depth(x, y, z, anatomy), grid)
    image = paint_cartilage(image, cartilage, texture, anatomy.skeleton.cartilage_calcium)
    air = _parenchyma(anatomy, grid, lung)
    aerated = soft(lung, 1.0)
    image += aerated * (air - image)
    image = paint_bone(image, bone, texture)
    lung = _trees(anatomy, grid, image, lung, texture)
    if anatomy.motion_mm > 0:
        _move(anatomy, grid, image)
    return image, lung


def _wall(anatomy: Anatomy, grid: Coordinates, cavity: Array, texture: Array) -> Array:
    """Chest wall: muscle in fat, the breasts, skin, and the air around."""
    x, y, z = grid
    outward = -cavity
    thickness = anatomy.wall * (0.8 + 0.35 * np.abs(x) / anatomy.half_width)
    shoulder = np.clip(z - anatomy.carina - 30, 0, 80) * 0.8
    strands = anatomy.fat_texture(x, y, z)
    muscle = soft(9 + 0.25 * thickness + 1.2 * texture + 2 * strands + shoulder * 0.6 - outward, 2.0)
    # Between the ribs and around the shoulder blades; fat lies in planes between muscles.
    image = -105 + 10 * texture + muscle * (152 - 110 * soft(strands - 1.3, 0.4))
    breast = (
        anatomy.breast * np.exp(-(((np.abs(x) - 68) / 40) ** 2) - ((z + 25) / 48) ** 2) * (y < 0.2 * anatomy.half_depth)
    )
    glands = soft(np.asarray(strands - 0.9 - 0.02 * (outward - 16) + 0 * x, np.float32), 0.5) * (breast > 8)
    image += glands * np.clip(outward - 14, 0, 10) * 10
    skin = thickness + 12 + shoulder + breast + 0.2 * texture - outward
    image += soft(1.6 - np.abs(skin - 1.2), 1.2) * (30 - image)
    inside = soft(skin, 1.5)
    return np.asarray(image * inside + -1000 * (1 - inside), np.float32)


def _inside(anatomy: Anatomy, grid: Coordinates, texture: Array) -> Array:
    """What fills the rib cage but for the lungs: fat, and in it the heart, the vessels and the rest."""
    fat = anatomy.fat_texture(*grid)
    image = np.asarray(-95 + 8 * texture + 60 * np.clip(fat - 1.2, 0, 1), np.float32)
    for _, at, depth in _bodies(anatomy.solid, grid, 2):
        part = image[at]
        part += soft(depth, 1.5) * (42 + 8 * texture[at] - part)
    # The wall of the heart is painted before what is in it: its parts overlap.
    for inwards, edge, density in ((4, 2.0, 48 + 0.3 * (anatomy.blood_hu - 40)), (13, 5.0, anatomy.blood_hu * 0.92)):
        for _, at, depth in _bodies(anatomy.heart, grid, 0):
            part = image[at]
            part += soft(depth - inwards, edge) * np.maximum(density + 6 * texture[at] - part, 0)
    for body, at, depth in _bodies(anatomy.great, grid, 3):
        part = image[at]
        part += soft(depth, 1.5) * (anatomy.blood_hu + 4 * texture[at] - part)
        if anatomy.calcium > 0 and body.size[0] > 10:
            # Plaques lie in the wall, where the texture happens to be high.
            plaque = soft(1.2 - np.abs(depth - 0.8), 1.0) * np.clip(texture[at] + 1.5 * anatomy.calcium - 2.2, 0, 1)
            part += plaque * (900 * anatomy.calcium - 0.3 * part)
    return image


def _abdomen(anatomy: Anatomy, grid: Coordinates, texture: Array) -> Array:
    """Liver and spleen, fat between loops, and gas in stomach and colon, with walls, folds, fluid and stool."""
    x, y, z = grid
    organ = 55 + 0.25 * (anatomy.blood_hu - 40)
    image = np.asarray(organ + 10 * texture + 0 * (x + y + z), np.float32)
    fat = soft(
        np.asarray(anatomy.fat_texture(x, y, z) - 1.2 + 0.02 * np.minimum(x - 20 - 0.3 * y, 60), np.float32), 0.4
    )
    image += fat * (-95 - image)
    stool = anatomy.stool(x, y, z)
    for n, (body, at, smooth) in enumerate(_bodies(anatomy.gas, grid, 8)):
        part, clumps = image[at], stool[at]
        depth = smooth + np.float32(1.4 * (n > 0)) * clumps
        part += soft(depth + 3, 1.5) * (35 + 8 * texture[at] - part)
        # Gas rises to the front; what lies behind a level is fluid.
        level = body.start[1] + (0.35 if n % 2 == 0 else 2.0) * body.size[1]
        content = np.where(y[:, at[1]] < level, -985.0, 20.0)
        if n % 3 == 2:
            content = np.where(clumps > -0.3, -60 + 30 * clumps, -850 + 100 * clumps)
        part += soft(depth, 1.2) * (content - part)
    return image


def _parenchyma(anatomy: Anatomy, grid: Coordinates, lung: Array) -> Array:
    """Aerated lung: denser towards the back, mottled, with clouds, emphysema, dependent opacity and fissures."""
    x, y, z = grid
    texture = anatomy.lung_texture(x, y, z)
    air = np.asarray(anatomy.lung_hu + texture + 0.3 * y + 0 * lung, np.float32)
    clouds = anatomy.haze(x, y, z)
    air += 260 * np.clip(clouds - anatomy.haze_level, 0, 1.2)
    if anatomy.emphysema > 0:
        air -= np.float32(anatomy.emphysema) * np.clip(anatomy.stool(x, y, z) - 0.3 - 0.4 * clouds, 0, 1.5)
    if anatomy.dependent_hu > 0:
        behind = np.clip((y - 15) / 50, 0, 1) * np.exp(-np.clip(lung, 0, None) / 5.0)
        air += np.float32(anatomy.dependent_hu) * behind * np.clip(0.7 + 0.7 * clouds + 0.012 * texture, 0, 2)
    for fissure in anatomy.fissures:
        # Thinner than a voxel: it fills a part of one.
        air += min(1.0, fissure.thickness) * soft(fissure.depth(x, y, z, 3 * clouds), 1.0) * (-350 - air)
    return np.clip(air, -1000, 40)


def _trees(anatomy: Anatomy, grid: Coordinates, image: Array, lung: Array, texture: Array) -> Array:
    """Paints vessels, nodes, scars and airways; returns the depth in the lung where a nodule may grow."""
    nodes = _occupancy(anatomy.nodes, grid, image.shape, 1.5)
    if nodes is not None:
        image += nodes * (42 - image)
    aerated = soft(lung + 2.5, 2.0)
    for tree in (anatomy.arteries, anatomy.veins):
        vessels = _occupancy(tree, grid, image.shape, 0.9)
        if vessels is not None:
            # Within the mediastinum the great vessels are painted already; a thick branch is seen there in fat.
            image += vessels * np.maximum(aerated, 0.8) * np.maximum(anatomy.blood_hu - image, 0)
    bands = _occupancy(anatomy.bands, grid, image.shape, 0.9)
    if bands is not None:
        image += bands * soft(lung + 1, 2.0) * np.maximum(0 - image, 0)
    for tubes, wall in ((anatomy.airways, 0.8), (anatomy.trachea, 1.5)):
        near = tubes.near(*_extent(grid))
        if len(near.start):
            shell, lumen = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.float32)
            near.paint(shell, grid, 0.9, wall)
            near.paint(lumen, grid, 0.9)
            image += shell * np.maximum(-30 + 10 * texture - image, 0)
            image += lumen * (-985 - image)
            # Nothing grows inside an airway.
            lung = np.where(lumen > 0.3, -3, lung).astype(np.float32)
    return lung


def _move(anatomy: Anatomy, grid: Coordinates, image: Array) -> None:
    """The heart beats and the diaphragm moves while the image is taken: near both, edges are doubled."""
    weight = np.zeros(image.shape, np.float32)
    for _, at, depth in _bodies(anatomy.heart, grid, 24):
        part = weight[at]
        np.maximum(part, 0.5 * soft(depth + 10, 24.0), out=part)
    weight = np.maximum(weight, 0.35 * soft(12 - np.abs(on_grid(anatomy.above_diaphragm, grid)), 16.0))
    if not weight.any():
        return
    step = [axis.ravel()[1] - axis.ravel()[0] for axis in grid]
    shift = [0.8 * anatomy.motion_mm / step[0], -anatomy.motion_mm / step[1], 0]
    moved = ndimage.shift(image, shift, order=1, mode="nearest")
    image += weight * (moved - image)


def _bodies(
    bodies: Sequence[Body], grid: Coordinates, margin_mm: float
) -> Iterator[tuple[Body, tuple[slice, slice, slice], Array]]:
    """Those that reach into the grid: where, as a window of it, and their depth there."""
    axes = [axis.ravel() for axis in grid]
    for body in bodies:
        ends = np.array([body.start, body.end or body.start])
        reach = np.array(body.size if body.end is None else body.size * 3) + margin_mm
        window = [
            slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high)))
            for axis, low, high in zip(axes, ends.min(axis=0) - reach, ends.max(axis=0) + reach, strict=True)
        ]
        if all(part.stop - part.start > 1 for part in window):
            at = (window[0], window[1], window[2])
            local = (grid[0][at[0]], grid[1][:, at[1]], grid[2][:, :, at[2]])
            yield body, at, on_grid(body.depth, local, 2.0)


def _occupancy(tubes: Tubes, grid: Coordinates, shape: tuple[int, ...], edge_mm: float) -> Array | None:
    near = tubes.near(*_extent(grid))
    if not len(near.start):
        return None
    filled = np.zeros(shape, np.float32)
    near.paint(filled, grid, edge_mm)
    return filled


def _extent(grid: Coordinates) -> tuple[Array, Array]:
    return (
        np.array([axis.min() for axis in grid], np.float32),
        np.array([axis.max() for axis in grid], np.float32),
    )
