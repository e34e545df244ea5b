"""Renders a chest without nodules in HU on a grid: walls, mediastinum, abdomen, lungs, vessels and airways.

Shapes are smooth, so their depths are computed every few millimetres and interpolated. So a whole chest at the
network's spacing takes only seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from apps.medical.datasets.synth.anatomy import Anatomy, Body
from apps.medical.datasets.synth.fields import Array, Coordinates, interpolate_on_grid, soft_mask
from apps.medical.datasets.synth.skeleton import paint_bone, paint_cartilage
from apps.medical.datasets.synth.vessels import Tubes


def render_chest(anatomy: Anatomy, grid: Coordinates, random: np.random.Generator) -> tuple[Array, Array]:
    """Renders the chest without nodules. Returns HU and the depth in the lung (mm), (X, Y, Z) each."""
    lung = interpolate_on_grid(anatomy.lung_depth, grid)
    cavity = interpolate_on_grid(anatomy.cavity_depth, grid)
    texture = anatomy.wall_texture(*grid)
    image = _render_wall(anatomy, grid, cavity, texture)
    mediastinum = _render_mediastinum(anatomy, grid, texture)
    image += soft_mask(cavity + 1, 3.0) * (mediastinum - image)
    below = soft_mask(-interpolate_on_grid(anatomy.above_diaphragm, grid) - 2, 2.0) * soft_mask(cavity, 3.0)
    if below.any():
        image += below * (_render_abdomen(anatomy, grid, texture) - image)
    bone = interpolate_on_grid(lambda x, y, z: anatomy.skeleton.bone_depth(x, y, z, anatomy), grid, 2.0)
    cartilage = interpolate_on_grid(lambda x, y, z: anatomy.skeleton.cartilage_depth(x, y, z, anatomy), grid)
    image = paint_cartilage(image, cartilage, texture, anatomy.skeleton.cartilage_calcium)
    air = _render_parenchyma(anatomy, grid, lung)
    aerated = soft_mask(lung, 1.0)
    image += aerated * (air - image)
    image = paint_bone(image, bone, texture)
    lung = _paint_trees(anatomy, grid, image, lung, texture)
    if anatomy.motion_mm > 0:
        _add_motion(anatomy, grid, image)
    return image, lung


def _render_wall(anatomy: Anatomy, grid: Coordinates, cavity: Array, texture: Array) -> Array:
    """The chest wall: muscle in fat, breasts, skin, and the air around the body."""
    x, y, z = grid
    outward = -cavity
    thickness = anatomy.wall * (0.8 + 0.35 * np.abs(x) / anatomy.half_width)
    shoulder = np.clip(z - anatomy.carina - 30, 0, 80) * 0.8
    strands = anatomy.fat_texture(x, y, z)
    muscle = soft_mask(9 + 0.25 * thickness + 1.2 * texture + 2 * strands + shoulder * 0.6 - outward, 2.0)
    # Muscle between the ribs and around the shoulder blades, with planes of fat in between.
    image = -105 + 10 * texture + muscle * (152 - 110 * soft_mask(strands - 1.3, 0.4))
    breast = (
        anatomy.breast * np.exp(-(((np.abs(x) - 68) / 40) ** 2) - ((z + 25) / 48) ** 2) * (y < 0.2 * anatomy.half_depth)
    )
    glands = soft_mask(np.asarray(strands - 0.9 - 0.02 * (outward - 16) + 0 * x, np.float32), 0.5) * (breast > 8)
    image += glands * np.clip(outward - 14, 0, 10) * 10
    skin = thickness + 12 + shoulder + breast + 0.2 * texture - outward
    image += soft_mask(1.6 - np.abs(skin - 1.2), 1.2) * (30 - image)
    inside = soft_mask(skin, 1.5)
    return np.asarray(image * inside + -1000 * (1 - inside), np.float32)


def _render_mediastinum(anatomy: Anatomy, grid: Coordinates, texture: Array) -> Array:
    """The content of the rib cage except the lungs: fat with the heart, the vessels and other organs."""
    fat = anatomy.fat_texture(*grid)
    image = np.asarray(-95 + 8 * texture + 60 * np.clip(fat - 1.2, 0, 1), np.float32)
    for _, window, depth in _bodies_in_grid(anatomy.soft_tissues, grid, 2):
        view = image[window]
        view += soft_mask(depth, 1.5) * (42 + 8 * texture[window] - view)
    # The wall of the heart is painted before its chambers, because its parts overlap.
    for inset, edge, density in ((4, 2.0, 48 + 0.3 * (anatomy.blood_hu - 40)), (13, 5.0, anatomy.blood_hu * 0.92)):
        for _, window, depth in _bodies_in_grid(anatomy.heart, grid, 0):
            view = image[window]
            view += soft_mask(depth - inset, edge) * np.maximum(density + 6 * texture[window] - view, 0)
    for body, window, depth in _bodies_in_grid(anatomy.great_vessels, grid, 3):
        view = image[window]
        view += soft_mask(depth, 1.5) * (anatomy.blood_hu + 4 * texture[window] - view)
        if anatomy.calcium > 0 and body.size[0] > 10:
            # Plaques are in the vessel wall, where the texture is high.
            plaque = soft_mask(1.2 - np.abs(depth - 0.8), 1.0)
            plaque = plaque * np.clip(texture[window] + 1.5 * anatomy.calcium - 2.2, 0, 1)
            view += plaque * (900 * anatomy.calcium - 0.3 * view)
    return image


def _render_abdomen(anatomy: Anatomy, grid: Coordinates, texture: Array) -> Array:
    """The upper abdomen: liver, spleen and fat, and gas in stomach and colon with walls, folds, fluid and stool."""
    x, y, z = grid
    organ = 55 + 0.25 * (anatomy.blood_hu - 40)
    image = np.asarray(organ + 10 * texture + 0 * (x + y + z), np.float32)
    fat = soft_mask(
        np.asarray(anatomy.fat_texture(x, y, z) - 1.2 + 0.02 * np.minimum(x - 20 - 0.3 * y, 60), np.float32), 0.4
    )
    image += fat * (-95 - image)
    stool = anatomy.stool(x, y, z)
    for n, (body, window, smooth_depth) in enumerate(_bodies_in_grid(anatomy.gas, grid, 8)):
        view, clumps = image[window], stool[window]
        depth = smooth_depth + np.float32(1.4 * (n > 0)) * clumps
        view += soft_mask(depth + 3, 1.5) * (35 + 8 * texture[window] - view)
        # Gas rises to the front; behind the fluid level there is fluid.
        level = body.start[1] + (0.35 if n % 2 == 0 else 2.0) * body.size[1]
        content = np.where(y[:, window[1]] < level, -985.0, 20.0)
        if n % 3 == 2:
            content = np.where(clumps > -0.3, -60 + 30 * clumps, -850 + 100 * clumps)
        view += soft_mask(depth, 1.2) * (content - view)
    return image


def _render_parenchyma(anatomy: Anatomy, grid: Coordinates, lung: Array) -> Array:
    """Aerated lung: textured, denser towards the back, with haze, emphysema, dependent opacity and fissures."""
    x, y, z = grid
    texture = anatomy.lung_texture(x, y, z)
    air = np.asarray(anatomy.lung_hu + texture + 0.3 * y + 0 * lung, np.float32)
    haze = anatomy.haze(x, y, z)
    air += 260 * np.clip(haze - anatomy.haze_level, 0, 1.2)
    if anatomy.emphysema > 0:
        air -= np.float32(anatomy.emphysema) * np.clip(anatomy.stool(x, y, z) - 0.3 - 0.4 * haze, 0, 1.5)
    if anatomy.dependent_hu > 0:
        dependent = np.clip((y - 15) / 50, 0, 1) * np.exp(-np.clip(lung, 0, None) / 5.0)
        air += np.float32(anatomy.dependent_hu) * dependent * np.clip(0.7 + 0.7 * haze + 0.012 * texture, 0, 2)
    for fissure in anatomy.fissures:
        # A fissure is thinner than a voxel, so it fills only a part of it.
        air += min(1.0, fissure.thickness) * soft_mask(fissure.depth(x, y, z, 3 * haze), 1.0) * (-350 - air)
    return np.clip(air, -1000, 40)


def _paint_trees(anatomy: Anatomy, grid: Coordinates, image: Array, lung: Array, texture: Array) -> Array:
    """Paints vessels, nodes, scars and airways; returns the depth in the lung, which is negative inside airways."""
    nodes = _occupancy(anatomy.nodes, grid, image.shape, 1.5)
    if nodes is not None:
        image += nodes * (42 - image)
    aerated = soft_mask(lung + 2.5, 2.0)
    for tree in (anatomy.arteries, anatomy.veins):
        vessels = _occupancy(tree, grid, image.shape, 0.9)
        if vessels is not None:
            # The great vessels are already painted in the mediastinum, where thick branches are visible in the fat.
            image += vessels * np.maximum(aerated, 0.8) * np.maximum(anatomy.blood_hu - image, 0)
    bands = _occupancy(anatomy.bands, grid, image.shape, 0.9)
    if bands is not None:
        image += bands * soft_mask(lung + 1, 2.0) * np.maximum(0 - image, 0)
    for tubes, wall in ((anatomy.airways, 0.8), (anatomy.trachea, 1.5)):
        overlapping = tubes.overlapping(*_extent(grid))
        if len(overlapping.start):
            shell, lumen = np.zeros(image.shape, np.float32), np.zeros(image.shape, np.float32)
            overlapping.paint(shell, grid, 0.9, wall)
            overlapping.paint(lumen, grid, 0.9)
            image += shell * np.maximum(-30 + 10 * texture - image, 0)
            image += lumen * (-985 - image)
            # No nodule is placed inside an airway.
            lung = np.where(lumen > 0.3, -3, lung).astype(np.float32)
    return lung


def _add_motion(anatomy: Anatomy, grid: Coordinates, image: Array) -> None:
    """Adds motion artefacts: double edges near the heart and the diaphragm, which move during the acquisition."""
    weight = np.zeros(image.shape, np.float32)
    for _, window, depth in _bodies_in_grid(anatomy.heart, grid, 24):
        view = weight[window]
        np.maximum(view, 0.5 * soft_mask(depth + 10, 24.0), out=view)
    weight = np.maximum(weight, 0.35 * soft_mask(12 - np.abs(interpolate_on_grid(anatomy.above_diaphragm, grid)), 16.0))
    if not weight.any():
        return
    step = [axis.ravel()[1] - axis.ravel()[0] for axis in grid]
    shift = [0.8 * anatomy.motion_mm / step[0], -anatomy.motion_mm / step[1], 0]
    shifted = ndimage.shift(image, shift, order=1, mode="nearest")
    image += weight * (shifted - image)


def _bodies_in_grid(
    bodies: Sequence[Body], grid: Coordinates, margin_mm: float
) -> Iterator[tuple[Body, tuple[slice, slice, slice], Array]]:
    """The bodies that reach into the grid, each with its window of the grid and its depth in that window."""
    axes = [axis.ravel() for axis in grid]
    for body in bodies:
        ends = np.array([body.start, body.end or body.start])
        extent = np.array(body.size if body.end is None else body.size * 3) + margin_mm
        slices = [
            slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high)))
            for axis, low, high in zip(axes, ends.min(axis=0) - extent, ends.max(axis=0) + extent, strict=True)
        ]
        if all(part.stop - part.start > 1 for part in slices):
            window = (slices[0], slices[1], slices[2])
            local = (grid[0][window[0]], grid[1][:, window[1]], grid[2][:, :, window[2]])
            yield body, window, interpolate_on_grid(body.depth, local, 2.0)


def _occupancy(tubes: Tubes, grid: Coordinates, shape: tuple[int, ...], edge_mm: float) -> Array | None:
    """The occupancy (0 to 1) of the tubes on the grid, or None if none reaches into it."""
    overlapping = tubes.overlapping(*_extent(grid))
    if not len(overlapping.start):
        return None
    occupancy = np.zeros(shape, np.float32)
    overlapping.paint(occupancy, grid, edge_mm)
    return occupancy


def _extent(grid: Coordinates) -> tuple[Array, Array]:
    """The lowest and the highest coordinates of the grid."""
    return (
        np.array([axis.min() for axis in grid], np.float32),
        np.array([axis.max() for axis in grid], np.float32),
    )
