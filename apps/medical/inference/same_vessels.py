"""Whether two chest CTs that were aligned show the same lungs: their vessels, piece by piece.

Whole images of any two chests are alike once one is drawn onto the other; the branching of the vessels is a person's
own. Pieces of the one scan at the border of air are looked for near their places in the other, as block matching does
(Ourselin et al., Image and Vision Computing 19, 2001), so that some millimetres of error of the alignment do not count.
"""

from __future__ import annotations

import numpy as np
import SimpleITK
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from scipy.ndimage import uniform_filter

from apps.medical.inference.registration import WINDOW_HU, Alignment, smoothed_image
from apps.medical.types import CTVolume, Float64

VOXEL_MM = 2.0
HALF, REACH = 6, 4
"""Of a piece: voxels to either side of its middle; and how far around its place it is looked for."""

PIECES, FEWEST = 60, 15
AERATED = (0.8, 0.995)
"""The share of a piece that is aerated: more is lung without a vessel, less the chest wall."""

AERATED_THERE = 0.6
"""At its place in the other scan at least this share is: less where the alignment is some millimetres off."""

_AIR_HU, _NOWHERE = -500.0, -5000.0
_SEED = 1


def vessel_correlation(scan: CTVolume, lung_box: ArrayLike, other: CTVolume, alignment: Alignment) -> float | None:
    """How alike the pieces of the lungs of ``scan`` are to their places in ``other``, from -1 to 1.

    A quarter of them correlates less, at the best place within ``REACH`` voxels. ``lung_box`` is that of the lungs of
    ``scan``, two corners (6,) in LPS mm. What holds no air in ``other``, as beside an effusion or where a lung was
    removed, tells nothing. None where fewer than ``FEWEST`` pieces lie in the lungs of both scans.
    """
    low, high = np.asarray(lung_box, np.float64).reshape(2, 3)
    grid = SimpleITK.Image(np.ceil((high - low) / VOXEL_MM).astype(int).tolist(), SimpleITK.sitkUInt8)
    grid.SetOrigin(low.tolist())
    grid.SetSpacing([VOXEL_MM] * 3)
    here = _on_grid(scan, grid, SimpleITK.Transform())
    there = _on_grid(other, grid, alignment.transform)
    aerated, aerated_there = (uniform_filter((one < _AIR_HU).astype(np.float32), 2 * HALF + 1) for one in (here, there))
    middles = np.argwhere((aerated > AERATED[0]) & (aerated < AERATED[1]) & (aerated_there > AERATED_THERE))
    margin = HALF + REACH
    middles = middles[((middles >= margin) & (middles < np.array(here.shape) - margin)).all(axis=1)]
    found = []
    for k, j, i in np.random.default_rng(_SEED).permutation(middles)[:PIECES].tolist():
        piece = here[k - HALF : k + HALF + 1, j - HALF : j + HALF + 1, i - HALF : i + HALF + 1]
        around = there[k - margin : k + margin + 1, j - margin : j + margin + 1, i - margin : i + margin + 1]
        if min(piece.min(), around.min()) >= WINDOW_HU[0] - 1:
            found.append(_best_correlation(piece, around))
    return float(np.quantile(found, 0.25)) if len(found) >= FEWEST else None


def _on_grid(volume: CTVolume, grid: SimpleITK.Image, transform: SimpleITK.Transform) -> Float64:
    """The scan at the places that ``transform`` makes of those of ``grid``, cut to the window; far below it outside."""
    image = smoothed_image(volume, VOXEL_MM / 2, finer_than_mm=VOXEL_MM)
    image = SimpleITK.Resample(image, grid, transform, SimpleITK.sitkLinear, _NOWHERE)
    values = SimpleITK.GetArrayFromImage(image).astype(np.float64)
    # A Gaussian goes a little beyond the window.
    return np.asarray(np.where(values > _NOWHERE, np.maximum(values, WINDOW_HU[0]), values))


def _best_correlation(piece: Float64, around: Float64) -> float:
    """The greatest of the correlations of ``piece`` with all places in ``around``."""
    windows = sliding_window_view(around, piece.shape).reshape(-1, piece.size)
    windows = windows - windows.mean(axis=1, keepdims=True)
    centred = (piece - piece.mean()).ravel()
    lengths = np.sqrt((windows**2).sum(axis=1) * (centred @ centred))
    return float((windows @ centred / np.maximum(lengths, 1e-6)).max())
