"""The picture of a case: axial slices through the findings with the highest scores, each circled."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from apps.medical.outputs.result import remarks, slice_label, slice_number
from apps.medical.types import CTVolume, Findings, Nodule

WINDOW_HU = (-1350.0, 150.0)
"""Lung window: level -600, width 1500."""

TILE_PIXELS = 360
MAX_TILES = 6


def picture(volume: CTVolume, findings: Findings) -> bytes:
    """A PNG that shows up to six findings, or the middle slice if there are none."""
    return png(picture_source(volume, findings))


def picture_source(volume: CTVolume, findings: Findings) -> bytes:
    """The picture's pixels: width and height as little-endian uint32, then RGB, zlib-compressed.

    In radiological orientation, however the scan is stored: the patient's right is on the left, the front at the top.
    """
    shown = findings.nodules[:MAX_TILES]
    tiles = [_tile(volume, nodule, rank) for rank, nodule in enumerate(shown, start=1)]
    if not tiles:
        tiles = [_empty(volume, findings)]
    columns = min(3, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * TILE_PIXELS, rows * TILE_PIXELS), "black")
    for n, tile in enumerate(tiles):
        sheet.paste(tile, ((n % columns) * TILE_PIXELS, (n // columns) * TILE_PIXELS))
    return struct.pack("<2I", *sheet.size) + zlib.compress(sheet.tobytes(), 1)


def png(source: bytes) -> bytes:
    """The PNG of the pixels that ``picture_source`` returned."""
    out = io.BytesIO()
    pixels = zlib.decompress(source[8:])
    Image.frombytes("RGB", struct.unpack_from("<2I", source), pixels).save(out, "PNG", optimize=False)
    return out.getvalue()


def _tile(volume: CTVolume, nodule: Nodule, rank: int) -> Image.Image:
    k = slice_number(volume, nodule) - 1
    tile, scale, offset = _slice(volume, k)
    pen = ImageDraw.Draw(tile)
    index = volume.to_index_ijk(nodule.centre_lps_mm)
    x, y = (
        ((volume.size_ijk[axis] - 1 - index[axis] if flipped else index[axis]) + 0.5) * volume.spacing_mm[axis] * scale
        + start
        for (axis, flipped), start in zip(_display_axes(volume), offset, strict=True)
    )
    radius = max(nodule.mean_diameter_mm / 2 * scale + 5, 9)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="#ffcf33", width=2)
    _text(pen, (8, 6), f"{rank}   {nodule.mean_diameter_mm:.1f} mm   score {nodule.score:.2f}")
    _text(pen, (8, TILE_PIXELS - 24), slice_label(volume, k))
    return tile


def _empty(volume: CTVolume, findings: Findings) -> Image.Image:
    tile, _, _ = _slice(volume, volume.size_ijk[2] // 2)
    pen = ImageDraw.Draw(tile)
    is_searched = findings.lung_box_lps_mm is not None
    _text(pen, (8, 6), "no findings" if is_searched else "no lung found: nothing was searched")
    for n, sentence in enumerate(remarks(volume, findings) if is_searched else []):
        _text(pen, (8, TILE_PIXELS - 24 - 16 * n), sentence[:60])
    return tile


def _slice(volume: CTVolume, k: int) -> tuple[Image.Image, float, tuple[float, float]]:
    """A slice centred in a square tile, its scale in pixels per mm, and the offset of the slice in the tile (x, y)."""
    low, high = WINDOW_HU
    grey: NDArray[np.uint8] = np.clip((volume.voxels_zyx[k] - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    (x, x_flipped), (y, y_flipped) = _display_axes(volume)
    width, height = volume.size_ijk[x] * volume.spacing_mm[x], volume.size_ijk[y] * volume.spacing_mm[y]
    scale = TILE_PIXELS / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    offset = ((TILE_PIXELS - size[0]) // 2, (TILE_PIXELS - size[1]) // 2)
    tile = Image.new("RGB", (TILE_PIXELS, TILE_PIXELS), "black")
    shown = (grey if x == 0 else grey.T)[:: -1 if y_flipped else 1, :: -1 if x_flipped else 1]
    tile.paste(
        Image.fromarray(np.ascontiguousarray(shown)).resize(size, Image.Resampling.BILINEAR).convert("RGB"), offset
    )
    pen = ImageDraw.Draw(tile)
    _text(pen, (8, TILE_PIXELS // 2 - 9), "R")
    _text(pen, (TILE_PIXELS - 18, TILE_PIXELS // 2 - 9), "L")
    return tile, scale, (float(offset[0]), float(offset[1]))


def _display_axes(volume: CTVolume) -> tuple[tuple[int, bool], tuple[int, bool]]:
    """The volume axes (0 for i, 1 for j) displayed horizontally and vertically, each with whether it is flipped.

    The picture runs from the patient's right to the left horizontally, and from front to back vertically.
    """
    x = 0 if abs(volume.direction[0, 0]) >= abs(volume.direction[0, 1]) else 1
    return (x, bool(volume.direction[0, x] < 0)), (1 - x, bool(volume.direction[1, 1 - x] < 0))


def _text(pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str) -> None:
    pen.text(position, text, fill="#ffffff", font=ImageFont.load_default(15), stroke_width=2, stroke_fill="#000000")
