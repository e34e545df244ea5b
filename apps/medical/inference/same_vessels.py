"""Tells whether two aligned chest CTs show the same patient, by comparing their lung vessels block by block.

After deformable alignment the images of any two chests are similar, but the branching of the vessels is individual.
Blocks of one scan that contain air and tissue are searched for near their positions in the other by block matching
(Ourselin et al., Image and Vision Computing 19, 2001), which tolerates alignment errors of some millimetres.
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
BLOCK_RADIUS, SEARCH_RADIUS = 6, 4
"""Half the side of a block, and the search radius, in voxels."""

MAX_BLOCKS, MIN_BLOCKS = 60, 15
AERATED = (0.8, 0.995)
"""Limits of the aerated share of a block: above, it is lung without a vessel; below, chest wall."""

MIN_AERATED_IN_OTHER = 0.6
"""Minimum aerated share at the same place in the other scan; lower because the alignment may be off."""

_AIR_HU, _OUTSIDE_HU = -500.0, -5000.0
_SEED = 1


def vessel_correlation(scan: CTVolume, lung_box: ArrayLike, other: CTVolume, alignment: Alignment) -> float | None:
    """Correlation, from -1 to 1, of blocks of the lungs of ``scan`` with the same places in ``other``.

    Returns the lower quartile over the blocks, each at its best place within ``SEARCH_RADIUS`` voxels. ``lung_box`` has
    two corners (6,) in LPS mm around the lungs of ``scan``. Blocks without air in ``other``, for example in an effusion
    or where a lung was removed, are skipped. None if fewer than ``MIN_BLOCKS`` blocks are in the lungs of both scans.
    """
    low, high = np.asarray(lung_box, np.float64).reshape(2, 3)
    grid = SimpleITK.Image(np.ceil((high - low) / VOXEL_MM).astype(int).tolist(), SimpleITK.sitkUInt8)
    grid.SetOrigin(low.tolist())
    grid.SetSpacing([VOXEL_MM] * 3)
    fixed = _on_grid(scan, grid, SimpleITK.Transform())
    moving = _on_grid(other, grid, alignment.transform)
    aerated, aerated_in_other = (
        uniform_filter((image < _AIR_HU).astype(np.float32), 2 * BLOCK_RADIUS + 1) for image in (fixed, moving)
    )
    centres = np.argwhere((aerated > AERATED[0]) & (aerated < AERATED[1]) & (aerated_in_other > MIN_AERATED_IN_OTHER))
    margin = BLOCK_RADIUS + SEARCH_RADIUS
    centres = centres[((centres >= margin) & (centres < np.array(fixed.shape) - margin)).all(axis=1)]
    correlations = []
    for k, j, i in np.random.default_rng(_SEED).permutation(centres)[:MAX_BLOCKS].tolist():
        block = fixed[
            k - BLOCK_RADIUS : k + BLOCK_RADIUS + 1,
            j - BLOCK_RADIUS : j + BLOCK_RADIUS + 1,
            i - BLOCK_RADIUS : i + BLOCK_RADIUS + 1,
        ]
        region = moving[k - margin : k + margin + 1, j - margin : j + margin + 1, i - margin : i + margin + 1]
        if min(block.min(), region.min()) >= WINDOW_HU[0] - 1:
            correlations.append(_best_correlation(block, region))
    return float(np.quantile(correlations, 0.25)) if len(correlations) >= MIN_BLOCKS else None


def _on_grid(volume: CTVolume, grid: SimpleITK.Image, transform: SimpleITK.Transform) -> Float64:
    """The scan resampled to ``grid`` through ``transform``, clipped to the window; ``_OUTSIDE_HU`` outside the scan."""
    image = smoothed_image(volume, VOXEL_MM / 2, finer_than_mm=VOXEL_MM)
    image = SimpleITK.Resample(image, grid, transform, SimpleITK.sitkLinear, _OUTSIDE_HU)
    values = SimpleITK.GetArrayFromImage(image).astype(np.float64)
    # The smoothing filter overshoots the window slightly.
    return np.asarray(np.where(values > _OUTSIDE_HU, np.maximum(values, WINDOW_HU[0]), values))


def _best_correlation(block: Float64, region: Float64) -> float:
    """The highest correlation of ``block`` with any place in ``region``."""
    windows = sliding_window_view(region, block.shape).reshape(-1, block.size)
    windows = windows - windows.mean(axis=1, keepdims=True)
    centred = (block - block.mean()).ravel()
    norms = np.sqrt((windows**2).sum(axis=1) * (centred @ centred))
    return float((windows @ centred / np.maximum(norms, 1e-6)).max())
