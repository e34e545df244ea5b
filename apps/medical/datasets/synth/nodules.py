"""Nodules whose shapes are those that LIDC-IDRI's readers outlined.

A shape is a signed distance on a small grid, rasterised from one reader's contours. It is turned, mirrored and
resized at random, and painted after the reader's rating of its texture, or as a cavity or a consolidation. What is
resized to a mass, far beyond any outline, is given lobes again, for a large shape is not a small one enlarged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from apps.medical.datasets.pylidc_outlines import Annotation, read_annotations
from apps.medical.datasets.synth.fields import Array, Coordinates, Waves, on_grid, open_grid, soft
from apps.medical.datasets.synth.vessels import Tubes, join, tube
from apps.medical.metrics.diameter import mean_axial_diameter_mm

STEP_MM = 0.7
MIN_MM, MAX_MM = 4.0, 34.0
FINE_MM = 0.4
MASS_MM = 30.0
"""Larger ones are masses (Fleischner Society's glossary, Radiology 246(3), 2008)."""

_PIECES_MM, _PIECES_CELLS, _PIECES_REACH = 1.0, 40, 1.5
"""The least step of the grid on which a nodule's pieces are told apart, its cells to a radius, and its radii."""

BEYOND_PLEURA_MM = -1.5
"""A nodule reaches so far into the pleura, as a depth in the lung."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A nodule's shape: depth in mm on a grid of ``STEP_MM``, positive inside; the centre is the grid's middle."""

    depth_mm: Array
    diameter_mm: float
    texture: int
    margin: int
    spiculation: int
    calcification: int


KINDS = ("solid", "calcified", "part-solid", "ground glass", "cavity", "consolidation")


@dataclass(frozen=True, slots=True)
class DepthGrid:
    """Depth in mm (n, n, n) around a nodule's centre, on a grid of ``step_mm`` along the phantom's axes.

    Nothing of it lies further than ``reach_mm`` from the centre along any axis.
    """

    depth_mm: Array
    step_mm: float
    reach_mm: float

    def at(self, offset_mm: Array) -> Array:
        """The depth at offsets (3, ...) from the centre."""
        index = offset_mm / np.float32(self.step_mm) + np.float32((len(self.depth_mm) - 1) / 2)
        return np.asarray(ndimage.map_coordinates(self.depth_mm, index, np.float32, order=1, mode="nearest"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A nodule in a phantom. ``turn`` takes offsets from the centre into the shape's own frame (mm to mm).

    ``kind`` is one of ``KINDS``. ``wall_mm`` is how thick the wall of a cavity is, and ``lobes`` what is added to the
    depth of a mass. ``spicules`` are rays from the centre, and ``airways`` pieces of open bronchus in a consolidation.
    ``largest_component`` is the depth of a nodule of which the lobes would cut pieces off.
    """

    kind: str
    shape: Shape
    centre_mm: Array
    turn: Array
    solid_hu: float
    glass_hu: float
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
        """Beyond this distance from the centre nothing of the nodule lies, spicules apart."""
        corner = np.linalg.norm(np.array(self.shape.depth_mm.shape) - 1) / 2 * STEP_MM
        return float(min(corner, 0.95 * self.shape.diameter_mm) / np.cbrt(np.abs(np.linalg.det(self.turn))))

    @property
    def reach_mm(self) -> float:
        """Beyond this distance from the centre, along any axis, nothing is painted of the nodule, spicules apart."""
        return max(self.radius_mm, self.largest_component.reach_mm if self.largest_component is not None else 0.0)

    def depth(self, x: Array, y: Array, z: Array) -> Array:
        """Depth in mm on a grid in the phantom's frame."""
        offset = np.stack(np.broadcast_arrays(x - self.centre_mm[0], y - self.centre_mm[1], z - self.centre_mm[2]))
        if self.largest_component is not None:
            return self.largest_component.at(offset)
        own = np.tensordot(self.turn, offset, 1)
        middle = (np.array(self.shape.depth_mm.shape) - 1) / 2
        index = own / np.float32(STEP_MM) + middle[:, None, None, None]
        scale = np.cbrt(np.abs(np.linalg.det(self.turn)))
        depth = ndimage.map_coordinates(self.shape.depth_mm, index, order=1, mode="nearest") / np.float32(scale)
        if np.any(self.lobes.amplitudes):
            centred = (x - self.centre_mm[0], y - self.centre_mm[1], z - self.centre_mm[2])
            depth = depth + self.lobes(*centred)
        return np.asarray(depth, np.float32)


def diameter_mm(nodule: Placed, lung_depth: Callable[[Array, Array, Array], Array]) -> float:
    """The mean of the nodule's two axes in the axial slice where it is largest, of what lies in the lung."""
    reach = nodule.reach_mm + 2
    step = max(FINE_MM, reach / 60)
    grid = open_grid(*(np.arange(at - reach, at + reach, step) for at in nodule.centre_mm))
    inside = (nodule.depth(*grid) > 0) & (on_grid(lung_depth, grid) > BEYOND_PLEURA_MM)
    return mean_axial_diameter_mm(inside, (step, step))


@cache
def catalogue() -> tuple[Annotation, ...]:
    """The outlines that shapes are drawn from: at least three slices, in-plane size within the limits."""
    kept = []
    for annotation in read_annotations():
        width, height, depth = annotation.extent_mm
        levels = {z for z, included, _ in annotation.contours if included}
        if len(levels) >= 3 and MIN_MM <= (width + height) / 2 <= MAX_MM and depth <= 1.8 * max(width, height):
            kept.append(annotation)
    return tuple(kept)


@lru_cache(maxsize=512)
def shape(number: int) -> Shape:
    """Rasterises an outline of the catalogue: depth in each slice, interpolated between slices (Raya, Udupa 1990)."""
    annotation = catalogue()[number]
    pixel = annotation.pixel_spacing_mm
    points = np.concatenate([vertices for _, _, vertices in annotation.contours]).astype(float) * pixel
    low = points.min(axis=0) - 4
    size = np.ceil((np.ptp(points, axis=0) + 8) / STEP_MM).astype(int)
    levels = sorted({z for z, _, _ in annotation.contours})
    flat = []
    for level in levels:
        image = Image.new("1", (int(size[0]), int(size[1])))
        pen = ImageDraw.Draw(image)
        for fill in (True, False):
            for z, included, vertices in annotation.contours:
                if z == level and included is fill and len(vertices) > 2:
                    pen.polygon([tuple(p) for p in (vertices * pixel - low) / STEP_MM], fill=int(fill))
        mask = np.array(image).T
        inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        flat.append(np.clip(inside * STEP_MM, -12, None))
    gap = annotation.slice_spacing_mm
    ends = [np.minimum(flat[n] - 1.1 * max(flat[n].max(), gap), -0.2 * gap) for n in (0, -1)]
    stack = np.stack([ends[0] - 6, ends[0], *flat, ends[1], ends[1] - 6], -1).astype(np.float32)
    heights = np.array([levels[0] - gap - 6, levels[0] - gap, *levels, levels[-1] + gap, levels[-1] + gap + 6])
    fine = np.arange(heights[0], heights[-1], STEP_MM)
    upper = np.clip(np.searchsorted(heights, fine, side="right"), 1, len(heights) - 1)
    part = ((fine - heights[upper - 1]) / (heights[upper] - heights[upper - 1])).astype(np.float32)
    depth = ndimage.gaussian_filter(stack[..., upper - 1] * (1 - part) + stack[..., upper] * part, 0.8)
    inside = np.nonzero(depth > 0)
    if not len(inside[0]):
        depth[tuple(n // 2 for n in depth.shape)] = 0.1
        inside = np.nonzero(depth > 0)
    # The outline's middle comes into the middle of the grid.
    first, last = np.min(inside, axis=1), np.max(inside, axis=1)
    reach = int(np.max(last - first) // 2 + 6)
    middle = (first + last) // 2
    padded = np.pad(depth, reach + 1, mode="edge")
    centred = padded[tuple(slice(m + 1, m + 2 + 2 * reach) for m in middle)]
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
def _subsolid() -> tuple[int, ...]:
    """Numbers of the outlines whose reader called them ground glass or part-solid."""
    return tuple(n for n, outline in enumerate(catalogue()) if outline.texture <= 3)


def place(
    random: np.random.Generator, centre_mm: Array, diameter_mm: float | None = None, kind: str | None = None
) -> Placed:
    """A random nodule at ``centre_mm``; with ``diameter_mm``, an outline of about that size, resized to it.

    Without a ``kind`` it has that of its outline. Ground glass and part-solid ones are drawn from such outlines alone.
    """
    outlines = catalogue()
    numbers = _subsolid() if kind in ("ground glass", "part-solid") else range(len(outlines))
    chosen = [numbers[int(n)] for n in random.integers(len(numbers), size=12)]
    if diameter_mm is None:
        drawn, factor = shape(chosen[0]), float(random.uniform(0.85, 1.25))
    else:
        nearest = min(chosen, key=lambda n: abs(np.log(sum(outlines[n].extent_mm[:2]) / 2 / diameter_mm)))
        drawn = shape(nearest)
        factor = diameter_mm / drawn.diameter_mm
    size = drawn.diameter_mm * factor
    angle = random.uniform(0, 2 * np.pi)
    tilt = random.normal() * 0.35
    spin = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    turn = lean @ spin @ np.diag(random.choice([-1, 1], 3)) / factor
    kind = kind or _kind(random, drawn)
    glass = random.uniform(-720, -420)
    core, wall, edge = -9.0, 0.0, float(random.uniform(0.7, 1.2) + 0.5 * (5 - drawn.margin))
    solid = float(random.uniform(-40, 80))
    airways = Tubes(*(np.zeros((0, n), np.float32) for n in (3, 3, 2)))
    if kind == "calcified":
        solid = float(random.uniform(150, 700))
    elif kind == "part-solid":
        solid, core = float(random.uniform(-150, 50)), float(random.uniform(0.12, 0.3) * size)
    elif kind == "ground glass":
        solid, core = float(glass), 99.0
    elif kind == "cavity":
        wall = float(min(random.uniform(1.5, 9.0), 0.3 * size))
    elif kind == "consolidation":
        solid, edge = float(random.uniform(-120, 60)), float(random.uniform(1.5, 5.0))
        airways = _open_airways(random, np.asarray(centre_mm, np.float32), size)
    rays = int(random.integers(3, 12)) if drawn.spiculation >= 3 and random.random() < 0.7 else 0
    directions = random.normal(size=(rays, 3)) * (1, 1, 0.6)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-6)
    lengths = min(size, 40.0) * random.uniform(0.6, 1.1, size=(rays, 1))
    lobed = (0.14 if kind == "consolidation" else 0.05) * size if size > 18 or kind == "consolidation" else 0.0
    rough = random.uniform(15, 45) if kind == "consolidation" else random.uniform(8, 30)
    made = Placed(
        kind=kind,
        shape=drawn,
        centre_mm=np.asarray(centre_mm, np.float32),
        turn=turn.astype(np.float32),
        solid_hu=solid,
        glass_hu=float(glass),
        core_mm=core,
        edge_mm=edge,
        texture=Waves.draw(random, deviation=rough, wavelengths_mm=(3, 12), count=8),
        spicules=(directions * lengths).astype(np.float32),
        lobes=Waves.draw(random, deviation=lobed, wavelengths_mm=(0.3 * size + 3, 0.9 * size + 6), count=8),
        wall_mm=wall,
        airways=airways,
    )
    return replace(made, largest_component=_largest_component(made)) if lobed else made


def _largest_component(nodule: Placed) -> DepthGrid | None:
    """A nodule's depth in its largest connected component, minus the distance to that elsewhere; None where it has one.

    A piece apart would look like a nodule that the truth does not know, and the two would share one box.
    """
    step = max(_PIECES_MM, nodule.radius_mm / _PIECES_CELLS)
    half = int(np.ceil(_PIECES_REACH * nodule.radius_mm / step))
    axis = np.arange(-half, half + 1, dtype=np.float32) * np.float32(step)
    depth = nodule.depth(*open_grid(*(axis + at for at in nodule.centre_mm)))
    # What hangs together by less than a voxel's width would come apart between the grid's points.
    pieces, count = ndimage.label(depth > step / 2)
    if count < 2:
        return None
    core = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    largest = ndimage.binary_dilation(core, iterations=2, mask=depth > 0)
    outside = ndimage.distance_transform_edt(~largest, step).astype(np.float32)
    reach = float(np.abs(np.stack(np.nonzero(largest)) - half).max() + 1) * step
    return DepthGrid(np.where(largest, depth, np.minimum(depth, -outside)), step, reach)


def _kind(random: np.random.Generator, drawn: Shape) -> str:
    """What an outline's reader called it."""
    if drawn.texture >= 5 or (drawn.texture == 4 and random.random() < 0.7):
        return "calcified" if drawn.calcification < 6 and random.random() < 0.8 else "solid"
    return "part-solid" if drawn.texture >= 3 else "ground glass"


def _open_airways(random: np.random.Generator, centre_mm: Array, size: float) -> Tubes:
    """Bronchi that stay open in a consolidation; a few fork."""
    pieces = []
    for _ in range(int(random.integers(1, 4)) if size > 15 else 0):
        along = random.normal(size=3) * size * 0.35
        middle = centre_mm + random.normal(size=3) * size * 0.12
        radius = random.uniform(0.7, 1.8)
        pieces += [tube(middle - along, middle, radius), tube(middle, middle + along * 0.8, radius * 0.8)]
        pieces.append(tube(middle, middle + along * 0.4 + random.normal(size=3) * size * 0.2, radius * 0.7))
    empty = Tubes(*(np.zeros((0, n), np.float32) for n in (3, 3, 2)))
    return join(pieces) if pieces else empty


def moved(nodule: Placed, centre_mm: Array) -> Placed:
    """The same nodule elsewhere."""
    shift = np.asarray(centre_mm, np.float32) - nodule.centre_mm
    airways = replace(nodule.airways, start=nodule.airways.start + shift, end=nodule.airways.end + shift)
    return replace(nodule, centre_mm=np.asarray(centre_mm, np.float32), airways=airways)


def paint(image: Array, grid: Coordinates, nodule: Placed, lung_depth: Array) -> tuple[Array, Array] | None:
    """Paints ``nodule`` into ``image`` (HU) where lung is; returns its box's corners in mm, or None outside.

    ``lung_depth`` is the depth in the lung on the same grid: a nodule at the pleura ends there.
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
    room = soft(lung_depth[inner] + 2.0, 1.5)
    share = soft(depth, nodule.edge_mm) * room
    core = soft(depth - np.float32(nodule.core_mm), 1.5)
    density = nodule.glass_hu + (nodule.solid_hu - nodule.glass_hu) * core if nodule.core_mm < 90 else nodule.glass_hu
    density = density + nodule.texture(*local)
    part = image[inner]
    # Ground glass lies over vessels and does not hide them.
    part += share * np.maximum(density - part, 0 if nodule.core_mm > 0 else density - part)
    if nodule.wall_mm > 0:
        part += soft(depth - np.float32(nodule.wall_mm), 1.2) * room * (-970 - part)
    if len(nodule.airways.start):
        open_mm = np.zeros(image.shape, np.float32)
        nodule.airways.paint(open_mm, grid, 1.0)
        part += open_mm[inner] * soft(depth, 2.0) * room * (-940 - part)
    if len(nodule.spicules):
        start = np.repeat(nodule.centre_mm[None], len(nodule.spicules), 0)
        thickness = np.tile(np.array([[0.9, 0.15]], np.float32), (len(start), 1))
        rays = np.zeros(image.shape, np.float32)
        Tubes(start, start + nodule.spicules, thickness).paint(rays, grid, 1.0)
        image += rays * soft(lung_depth, 1.5) * np.maximum(min(nodule.solid_hu, 20.0) - image, 0)
    inside = np.nonzero((depth > 0) & (lung_depth[inner] > BEYOND_PLEURA_MM))
    if not len(inside[0]):
        return None
    corners = []
    for pick in (np.min, np.max):
        at = [axis.ravel()[int(pick(index))] for axis, index in zip(local, inside, strict=True)]
        corners.append(np.array(at, np.float32))
    half = np.array([np.diff(axis.ravel()[:2])[0] for axis in local], np.float32) / 2
    return np.asarray(corners[0] - half, np.float32), np.asarray(corners[1] + half, np.float32)
