"""The picture of a case: axial slices through the best findings, each circled."""

from __future__ import annotations

import io

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
    """A PNG: up to six findings, or the middle slice where there are none.

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
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=False)
    return out.getvalue()


def _tile(volume: CTVolume, nodule: Nodule, rank: int) -> Image.Image:
    k = slice_number(volume, nodule) - 1
    tile, scale, offset = _slice(volume, k)
    pen = ImageDraw.Draw(tile)
    index = volume.to_index_ijk(nodule.centre_lps_mm)
    across = [
        n - 1 - at if turned else at
        for n, at, turned in zip(volume.size_ijk[:2], index[:2], _turned(volume), strict=True)
    ]
    x, y = ((at + 0.5) * volume.spacing_mm[axis] * scale + offset[axis] for axis, at in enumerate(across))
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
    width, height = volume.size_ijk[0] * volume.spacing_mm[0], volume.size_ijk[1] * volume.spacing_mm[1]
    scale = TILE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    offset = ((TILE - size[0]) // 2, (TILE - size[1]) // 2)
    tile = Image.new("RGB", (TILE, TILE), "black")
    shown = grey[tuple(slice(None, None, -1 if turned else 1) for turned in reversed(_turned(volume)))]
    tile.paste(Image.fromarray(shown).resize(size, Image.Resampling.BILINEAR).convert("RGB"), offset)
    pen = ImageDraw.Draw(tile)
    _text(pen, (8, TILE // 2 - 9), "R")
    _text(pen, (TILE - 18, TILE // 2 - 9), "L")
    return tile, scale, (float(offset[0]), float(offset[1]))


def _turned(volume: CTVolume) -> tuple[bool, bool]:
    """Whether i runs to the patient's right, and j to the front: then the picture runs against them."""
    return bool(volume.direction[0, 0] < 0), bool(volume.direction[1, 1] < 0)


def _text(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str) -> None:
    pen.text(at, text, fill="#ffffff", font=ImageFont.load_default(15), stroke_width=2, stroke_fill="#000000")
