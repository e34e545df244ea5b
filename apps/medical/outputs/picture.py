"""The picture of a case: axial slices through the best findings, each circled."""

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

TILE = 360
SHOWN = 6


def picture(volume: CTVolume, findings: Findings) -> bytes:
    """A PNG: up to six findings, or the middle slice where there are none."""
    return png(sheet_source(volume, findings))


def sheet_source(volume: CTVolume, findings: Findings) -> bytes:
    """The picture's pixels: width and height as uint32, then RGB, little-endian and deflated.

    As radiologists look, from the feet: the patient's right is on the left, the front at the top, however the scan is
    stored.
    """
    shown = findings.nodules[:SHOWN]
    tiles = [_tile(volume, nodule, rank) for rank, nodule in enumerate(shown, start=1)]
    if not tiles:
        tiles = [_empty(volume, findings)]
    columns = min(3, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * TILE), "black")
    for n, tile in enumerate(tiles):
        sheet.paste(tile, ((n % columns) * TILE, (n // columns) * TILE))
    return struct.pack("<2I", *sheet.size) + zlib.compress(sheet.tobytes(), 1)


def png(source: bytes) -> bytes:
    """The picture of its pixels."""
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
        ((volume.size_ijk[axis] - 1 - index[axis] if turned else index[axis]) + 0.5) * volume.spacing_mm[axis] * scale
        + begin
        for (axis, turned), begin in zip(_across(volume), offset, strict=True)
    )
    radius = max(nodule.mean_diameter_mm / 2 * scale + 5, 9)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="#ffcf33", width=2)
    _text(pen, (8, 6), f"{rank}   {nodule.mean_diameter_mm:.1f} mm   score {nodule.score:.2f}")
    _text(pen, (8, TILE - 24), slice_label(volume, k))
    return tile


def _empty(volume: CTVolume, findings: Findings) -> Image.Image:
    tile, _, _ = _slice(volume, volume.size_ijk[2] // 2)
    pen = ImageDraw.Draw(tile)
    searched = findings.lung_box_lps_mm is not None
    _text(pen, (8, 6), "no finding" if searched else "no lung in view: nothing was searched")
    for n, sentence in enumerate(remarks(volume, findings) if searched else []):
        _text(pen, (8, TILE - 24 - 16 * n), sentence[:60])
    return tile


def _slice(volume: CTVolume, k: int) -> tuple[Image.Image, float, tuple[float, float]]:
    """A slice in a square tile; pixels per mm, and where the slice begins in it."""
    low, high = WINDOW_HU
    grey: NDArray[np.uint8] = np.clip((volume.voxels_zyx[k] - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    (x, x_turned), (y, y_turned) = _across(volume)
    width, height = volume.size_ijk[x] * volume.spacing_mm[x], volume.size_ijk[y] * volume.spacing_mm[y]
    scale = TILE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    offset = ((TILE - size[0]) // 2, (TILE - size[1]) // 2)
    tile = Image.new("RGB", (TILE, TILE), "black")
    shown = (grey if x == 0 else grey.T)[:: -1 if y_turned else 1, :: -1 if x_turned else 1]
    tile.paste(
        Image.fromarray(np.ascontiguousarray(shown)).resize(size, Image.Resampling.BILINEAR).convert("RGB"), offset
    )
    pen = ImageDraw.Draw(tile)
    _text(pen, (8, TILE // 2 - 9), "R")
    _text(pen, (TILE - 18, TILE // 2 - 9), "L")
    return tile, scale, (float(offset[0]), float(offset[1]))


def _across(volume: CTVolume) -> tuple[tuple[int, bool], tuple[int, bool]]:
    """Which of i and j runs across the picture, and which down it; and whether the picture runs against it.

    Across is from the patient's right to the left, down from the front to the back.
    """
    x = 0 if abs(volume.direction[0, 0]) >= abs(volume.direction[0, 1]) else 1
    return (x, bool(volume.direction[0, x] < 0)), (1 - x, bool(volume.direction[1, 1 - x] < 0))


def _text(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str) -> None:
    pen.text(at, text, fill="#ffffff", font=ImageFont.load_default(15), stroke_width=2, stroke_fill="#000000")
