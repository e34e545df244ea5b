"""From what LIDC-IDRI's readers marked to nodules: where each mark lies, how large it is, and which are of one nodule.

As LUNA16 has it (Setio et al., Medical Image Analysis 42, 2017): outlines of different readers are of one nodule where
their centres are closer than the sum of their radii, and the nodule has the mean of their positions and diameters. Of
the collection's outlines that makes as many nodules as LUNA16 has in 886 of its 888 scans (``docs/medical.md``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from apps.medical.datasets.lidc_xml import Outline, ReaderMark
from apps.medical.metrics.diameter import Mask, axes_mm
from apps.medical.types import Float64
from shared.errors import InvalidInputError

Diameter: TypeAlias = Literal["volume", "axial"]
"""Of the sphere of the same volume, as LUNA16's are; or the mean of long and short axis, as findings are measured."""

UNKNOWN_MM = -1.0
"""Stands for the diameter of a mark that is a point, as in LUNA16's tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageGrid:
    """The grid of a series. ``places`` is the centre of the first pixel of each image (LPS mm), by SOPInstanceUID.

    spacing_mm  distance between voxel centres along columns, rows and slices
    direction   3x3; its columns are the directions of i, j and k in LPS
    size        columns and rows of an image
    """

    places: Mapping[str, Sequence[float]]
    spacing_mm: tuple[float, float, float]
    direction: Float64
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedMark:
    """A reader's mark in LPS mm; the diameters are ``UNKNOWN_MM`` of a point."""

    reader: int
    kind: str
    centre_lps_mm: tuple[float, float, float]
    volume_mm: float
    axial_mm: float
    ratings: Mapping[str, int]

    def diameter_mm(self, kind: Diameter) -> float:
        return self.volume_mm if kind == "volume" else self.axial_mm


def place(mark: ReaderMark, reader: int, grid: ImageGrid) -> PlacedMark:
    """Where a mark lies, and how large it is.

    What counts of an outlined nodule are the pixels within its outlines, without those of the lines, which run along
    the first pixels outside of it. Refuses a mark on an image that the series has not, or outside of its image.
    """
    for outline in mark.outlines:
        if outline.image not in grid.places:
            raise InvalidInputError(f"the image {outline.image}, which a reader marked, is not in the series")
        if outline.pixels.min() < 0 or (outline.pixels >= grid.size).any():
            raise InvalidInputError(f"a reader's mark lies outside of the image {outline.image}")
    masks = _masks(mark.outlines) if mark.kind == "nodule" else {}
    if not masks:
        first = next(outline for outline in mark.outlines if outline.included)
        pixels = first.pixels.mean(axis=0)
        return _placed(mark, reader, grid.places[first.image] + _across(pixels, grid), UNKNOWN_MM, UNKNOWN_MM)
    pixel_mm = grid.spacing_mm[0], grid.spacing_mm[1]
    counts = {image: int(mask.sum()) for image, (mask, _) in masks.items()}
    whole = sum(counts.values())
    centre = sum(
        counts[image] / whole * (grid.places[image] + _across(np.argwhere(mask).mean(axis=0) + low, grid))
        for image, (mask, low) in masks.items()
    )
    largest, _ = masks[max(counts, key=lambda image: counts[image])]
    volume_mm3 = whole * float(np.prod(grid.spacing_mm))
    return _placed(
        mark,
        reader,
        np.asarray(centre),
        float(np.cbrt(6 / np.pi * volume_mm3)),
        float(np.mean(axes_mm(largest, pixel_mm))),
    )


def _placed(mark: ReaderMark, reader: int, centre: Float64, volume_mm: float, axial_mm: float) -> PlacedMark:
    x, y, z = (float(value) for value in centre)
    return PlacedMark(
        reader=reader,
        kind=mark.kind,
        centre_lps_mm=(x, y, z),
        volume_mm=volume_mm,
        axial_mm=axial_mm,
        ratings=mark.ratings,
    )


def _across(pixels: Float64, grid: ImageGrid) -> Float64:
    """From an image's first pixel to a column and row (may be fractions), LPS mm."""
    return np.asarray(grid.direction[:, :2] @ (pixels * grid.spacing_mm[:2]))


def _masks(outlines: Sequence[Outline]) -> dict[str, tuple[Mask, NDArray[np.int_]]]:
    """The nodule's pixels on each image, (columns, rows) in a box, and the box's first pixel.

    Where the lines enclose no pixel at all, as around a speck, their own pixels count.
    """
    return _filled(outlines, own_lines=False) or _filled(outlines, own_lines=True)


def _filled(outlines: Sequence[Outline], *, own_lines: bool) -> dict[str, tuple[Mask, NDArray[np.int_]]]:
    found: dict[str, tuple[Mask, NDArray[np.int_]]] = {}
    for image in {outline.image: None for outline in outlines}:
        here = [outline for outline in outlines if outline.image == image]
        points = np.concatenate([outline.pixels for outline in here])
        low = points.min(axis=0).astype(np.int_)
        size = points.max(axis=0) - low + 1
        mask = np.zeros(size, bool)
        for outline in sorted(here, key=lambda one: not one.included):
            filled = _inside(outline.pixels - low, size, own_lines and outline.included)
            mask = mask | filled if outline.included else mask & ~filled
        if mask.any():
            found[image] = mask, low
    return found


def _inside(pixels: NDArray[np.int_], size: NDArray[np.int_], own_line: bool) -> Mask:
    """What a closed line encloses, (columns, rows); with its own pixels or without."""
    drawn = Image.new("1", (int(size[0]), int(size[1])))
    line = [(int(x), int(y)) for x, y in pixels]
    draw = ImageDraw.Draw(drawn)
    if len(line) > 2:
        draw.polygon(line, fill=1, outline=1)
    draw.line([*line, line[0]], fill=int(own_line))
    return np.array(drawn, bool).T


def group(marks: Sequence[PlacedMark]) -> list[list[PlacedMark]]:
    """The outlined nodules among the marks, those of one nodule together."""
    outlined = [mark for mark in marks if mark.kind == "nodule"]
    places = np.array([mark.centre_lps_mm for mark in outlined]).reshape(-1, 3)
    radii = np.array([mark.volume_mm for mark in outlined]) / 2
    readers = np.array([mark.reader for mark in outlined])
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    one = (apart < radii[:, None] + radii) & (readers[:, None] != readers)
    groups: list[list[PlacedMark]] = []
    left = set(range(len(outlined)))
    while left:
        reached = [min(left)]
        left.discard(reached[0])
        for number in reached:
            near = [other for other in np.flatnonzero(one[number]).tolist() if other in left]
            left.difference_update(near)
            reached += near
        groups.append([outlined[number] for number in sorted(reached)])
    return groups
