"""Converts the marks of LIDC-IDRI's readers to nodules: position and size of each mark, and groups of one nodule.

The rule is that of LUNA16 (Setio et al., Medical Image Analysis 42, 2017): outlines of different readers belong to one
nodule if their centres are closer than the sum of their radii; the nodule's position and diameter are their means. For
886 of LUNA16's 888 scans this gives as many nodules as LUNA16 has (``docs/medical.md``).
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
from apps.medical.types import Float64, triple
from shared.errors import InvalidInputError

Diameter: TypeAlias = Literal["volume", "axial"]
"""The diameter of the sphere of the same volume, as in LUNA16, or the mean of the axes, as findings are measured."""

UNKNOWN_MM = -1.0
"""The diameter of a mark that is only a point, as in LUNA16's tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageGrid:
    """The grid of a series.

    places      the centre of the first pixel of each image (LPS mm), by SOPInstanceUID
    spacing_mm  distance between voxel centres along i, j and k
    direction   3x3; its columns are the directions of i, j and k in LPS
    size        columns and rows of an image
    """

    places: Mapping[str, Sequence[float]]
    spacing_mm: tuple[float, float, float]
    direction: Float64
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedMark:
    """A reader's mark in LPS mm. The diameters of a point are ``UNKNOWN_MM``."""

    reader: int
    kind: str
    centre_lps_mm: tuple[float, float, float]
    volume_mm: float
    axial_mm: float
    ratings: Mapping[str, int]

    def diameter_mm(self, kind: Diameter) -> float:
        return self.volume_mm if kind == "volume" else self.axial_mm


def place(mark: ReaderMark, reader: int, grid: ImageGrid) -> PlacedMark:
    """The position and size of a mark.

    An outlined nodule consists of the pixels inside its outlines. The pixels of the outlines themselves are the first
    ones outside the nodule. Raises InvalidInputError if the series lacks the image or the mark lies outside it.
    """
    for outline in mark.outlines:
        if outline.image not in grid.places:
            raise InvalidInputError(f"the image {outline.image}, which a reader marked, is missing from the series")
        if outline.pixels.min() < 0 or (outline.pixels >= grid.size).any():
            raise InvalidInputError(f"a reader's mark lies outside the image {outline.image}")
    masks = _masks(mark.outlines) if mark.kind == "nodule" else {}
    if not masks:
        first = next(outline for outline in mark.outlines if outline.included)
        pixels = first.pixels.mean(axis=0)
        return _placed_mark(
            mark, reader, grid.places[first.image] + _offset_in_plane(pixels, grid), UNKNOWN_MM, UNKNOWN_MM
        )
    pixel_mm = grid.spacing_mm[0], grid.spacing_mm[1]
    counts = {image: int(mask.sum()) for image, (mask, _) in masks.items()}
    total = sum(counts.values())
    centre = sum(
        counts[image] / total * (grid.places[image] + _offset_in_plane(np.argwhere(mask).mean(axis=0) + low, grid))
        for image, (mask, low) in masks.items()
    )
    largest, _ = masks[max(counts, key=lambda image: counts[image])]
    volume_mm3 = total * float(np.prod(grid.spacing_mm))
    return _placed_mark(
        mark,
        reader,
        np.asarray(centre),
        float(np.cbrt(6 / np.pi * volume_mm3)),
        float(np.mean(axes_mm(largest, pixel_mm))),
    )


def _placed_mark(mark: ReaderMark, reader: int, centre: Float64, volume_mm: float, axial_mm: float) -> PlacedMark:
    return PlacedMark(
        reader=reader,
        kind=mark.kind,
        centre_lps_mm=triple(centre.tolist()),
        volume_mm=volume_mm,
        axial_mm=axial_mm,
        ratings=mark.ratings,
    )


def _offset_in_plane(pixels: Float64, grid: ImageGrid) -> Float64:
    """The offset (LPS mm) of a column and row, which may be fractions, from the first pixel of an image."""
    return np.asarray(grid.direction[:, :2] @ (pixels * grid.spacing_mm[:2]))


def _masks(outlines: Sequence[Outline]) -> dict[str, tuple[Mask, NDArray[np.int_]]]:
    """For each image, the nodule's mask (columns, rows) within a box, and the first pixel of the box.

    If the outlines enclose no pixel, as around a tiny nodule, the pixels of the outlines count instead.
    """
    return _fill_outlines(outlines, include_lines=False) or _fill_outlines(outlines, include_lines=True)


def _fill_outlines(outlines: Sequence[Outline], *, include_lines: bool) -> dict[str, tuple[Mask, NDArray[np.int_]]]:
    masks: dict[str, tuple[Mask, NDArray[np.int_]]] = {}
    for image in {outline.image: None for outline in outlines}:
        in_image = [outline for outline in outlines if outline.image == image]
        points = np.concatenate([outline.pixels for outline in in_image])
        low = points.min(axis=0).astype(np.int_)
        size = points.max(axis=0) - low + 1
        mask = np.zeros(size, bool)
        for outline in sorted(in_image, key=lambda outline: not outline.included):
            filled = _fill_outline(outline.pixels - low, size, include_lines and outline.included)
            mask = mask | filled if outline.included else mask & ~filled
        if mask.any():
            masks[image] = mask, low
    return masks


def _fill_outline(pixels: NDArray[np.int_], size: NDArray[np.int_], include_line: bool) -> Mask:
    """The mask (columns, rows) of the pixels inside a closed line, with or without those of the line itself."""
    canvas = Image.new("1", (int(size[0]), int(size[1])))
    line = [(int(x), int(y)) for x, y in pixels]
    draw = ImageDraw.Draw(canvas)
    if len(line) > 2:
        draw.polygon(line, fill=1, outline=1)
    draw.line([*line, line[0]], fill=int(include_line))
    return np.array(canvas, bool).T


def group(marks: Sequence[PlacedMark]) -> list[list[PlacedMark]]:
    """Groups the outlined nodules among the marks by nodule."""
    outlined = [mark for mark in marks if mark.kind == "nodule"]
    centres = np.array([mark.centre_lps_mm for mark in outlined]).reshape(-1, 3)
    radii = np.array([mark.volume_mm for mark in outlined]) / 2
    readers = np.array([mark.reader for mark in outlined])
    distances = np.linalg.norm(centres[:, None] - centres, axis=2)
    is_same = (distances < radii[:, None] + radii) & (readers[:, None] != readers)
    groups: list[list[PlacedMark]] = []
    remaining = set(range(len(outlined)))
    while remaining:
        members = [min(remaining)]
        remaining.discard(members[0])
        for number in members:
            neighbours = [n for n in np.flatnonzero(is_same[number]).tolist() if n in remaining]
            remaining.difference_update(neighbours)
            members += neighbours
        groups.append([outlined[number] for number in sorted(members)])
    return groups
