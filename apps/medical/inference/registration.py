"""A place in one chest CT, found again in another of the same patient: both images are aligned at the lungs.

First the boxes of the lungs are laid on each other, or, as where a scan has a part of the lungs or one lung alone, one
is slid to where the images fit best. Then an affine transform is fitted by Mattes' mutual information, then a
field of displacements, which follows the breathing, by Thirion's demons (Vercauteren et al., NeuroImage 45, 2009): all
by SimpleITK, on voxels of 4 mm. What lies beyond the ends of either image counts nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK
from numpy.typing import ArrayLike

from apps.medical.types import CTVolume, Float64

COARSE_MM = 4.0
MARGIN_MM = 20.0
"""So much around the box of the lungs is compared: ribs and the spine hold an image in place."""

WINDOW_HU = (-1000.0, 300.0)
STAGES = ((4, 40), (2, 40), (1, 10))
"""Of the displacements: how many times ``COARSE_MM`` the voxels are, and the iterations."""

SMOOTH_VOXELS = 2.0
"""Displacements are smoothed by a Gaussian of this standard deviation."""

SEED = 1
_BACK_ITERATIONS, _BACK_MM = 30, 0.1
_SLIDE_MM, _MIN_OVERLAP = 12.0, 0.5
"""Steps along the body in which the first place is looked for, and the least share of the shorter box that overlaps."""

_UNLIKE_WIDTH = 1.2
"""Where one box is so many times as wide, the other may be that of one lung: it is tried at either side too."""

_MIN_GAIN = 1.05
"""So many times as alike must the images be where the boxes are slid, not scaled: of whole lungs the scale is right."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the places of one scan lie in another.

    ``correlation`` is that of the two images around the lungs once they are aligned, from -1 to 1, where both are.
    """

    transform: SimpleITK.Transform
    correlation: float

    def moved(self, positions_lps_mm: ArrayLike) -> Float64:
        """Positions (n, 3) in the one scan as positions in the other, LPS mm."""
        points = np.asarray(positions_lps_mm, np.float64).reshape(-1, 3)
        return np.array([self.transform.TransformPoint(point.tolist()) for point in points]).reshape(-1, 3)

    def moved_back(self, positions_lps_mm: ArrayLike) -> Float64:
        """Positions (n, 3) in the other scan as positions in the one, to 0.1 mm where breathing is smooth."""
        wanted = np.asarray(positions_lps_mm, np.float64).reshape(-1, 3)
        found = wanted - self.moved([0.0, 0.0, 0.0])
        for _ in range(_BACK_ITERATIONS):
            missed = wanted - self.moved(found)
            found = found + missed
            if np.abs(missed).max(initial=0.0) < _BACK_MM:
                break
        return found


def align(scan: CTVolume, lung_box: ArrayLike, other: CTVolume, other_lung_box: ArrayLike) -> Alignment:
    """Places of ``scan`` to places of ``other``; the boxes are those of the lungs, two corners (6,) in LPS mm.

    Some four to nine CPU-seconds, whatever the size of the scans.
    """
    box, other_box = (np.asarray(one, np.float64).reshape(2, 3) for one in (lung_box, other_lung_box))
    (fixed, in_fixed), (moving, in_moving) = _coarse(scan, box), _coarse(other, other_box)
    method = _information(in_fixed, in_moving)
    affine = _affine(method, fixed, moving, _first(method, (fixed, moving), box, other_box))
    in_both = _moved(in_moving, affine, fixed, SimpleITK.sitkNearestNeighbor) & in_fixed
    laid = _moved(moving, affine, fixed)
    # Where one of the two has ended nothing is to be drawn anywhere.
    breathing = _displacements(fixed, _within(laid, in_both, fixed))
    # The last that is named moves a point first.
    both = SimpleITK.CompositeTransform([affine, breathing])
    in_both = _moved(in_moving, both, fixed, SimpleITK.sitkNearestNeighbor) & in_fixed
    shared = SimpleITK.GetArrayViewFromImage(in_both) > 0
    values = [SimpleITK.GetArrayViewFromImage(one)[shared] for one in (fixed, _moved(moving, both, fixed))]
    return Alignment(both, float(np.corrcoef(*values)[0, 1]) if shared.any() else 0.0)


def _moved(
    image: SimpleITK.Image, transform: SimpleITK.Transform, onto: SimpleITK.Image, how: int = SimpleITK.sitkLinear
) -> SimpleITK.Image:
    """The image on the voxels of ``onto``, whose places ``transform`` moves into it; a mask is 0 beyond its ends."""
    outside = WINDOW_HU[0] if how == SimpleITK.sitkLinear else 0
    return SimpleITK.Resample(image, onto, transform, how, outside)


def _within(image: SimpleITK.Image, mask: SimpleITK.Image, elsewhere: SimpleITK.Image) -> SimpleITK.Image:
    """``image`` in the mask, and ``elsewhere`` outside of it."""
    inside = SimpleITK.Cast(mask, SimpleITK.sitkFloat32)
    return image * inside + elsewhere * (1.0 - inside)


def smoothed_image(volume: CTVolume, sigma_mm: float, *, finer_than_mm: float) -> SimpleITK.Image:
    """The scan cut to ``WINDOW_HU``, smoothed by a Gaussian along the axes on which voxels are finer than that."""
    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    image = SimpleITK.Clamp(image, SimpleITK.sitkFloat32, *WINDOW_HU)
    for axis, spacing in enumerate(volume.spacing_mm):
        if spacing < finer_than_mm:
            image = SimpleITK.RecursiveGaussian(image, sigma_mm, direction=axis)
    return image


def _coarse(volume: CTVolume, box_lps_mm: Float64) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """The scan around a box (2, 3), cut to ``WINDOW_HU``, on voxels of ``COARSE_MM`` along the axes of LPS.

    With it which of the voxels lie in the scan: 1 there, else 0.
    """
    image = smoothed_image(volume, COARSE_MM / 2, finer_than_mm=COARSE_MM / 2)
    low, high = box_lps_mm[0] - MARGIN_MM, box_lps_mm[1] + MARGIN_MM
    size = np.ceil((high - low) / COARSE_MM).astype(int).tolist()
    voxels = SimpleITK.Image(size, SimpleITK.sitkUInt8)
    voxels.SetOrigin(low.tolist())
    voxels.SetSpacing([COARSE_MM] * 3)
    nowhere, whole = SimpleITK.Transform(), SimpleITK.Cast(image * 0 + 1, SimpleITK.sitkUInt8)
    covered = _moved(whole, nowhere, voxels, SimpleITK.sitkNearestNeighbor)
    return _moved(image, nowhere, voxels), covered


def _information(in_fixed: SimpleITK.Image, in_moving: SimpleITK.Image) -> SimpleITK.ImageRegistrationMethod:
    """What fits two images by Mattes' mutual information, in these masks of them."""
    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # so that the same scans give the same places
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(in_fixed)
    method.SetMetricMovingMask(in_moving)
    method.SetInterpolator(SimpleITK.sitkLinear)
    return method


def _first(
    method: SimpleITK.ImageRegistrationMethod,
    images: tuple[SimpleITK.Image, SimpleITK.Image],
    box_lps_mm: Float64,
    other_box_lps_mm: Float64,
) -> SimpleITK.Transform:
    """Where the fit begins: the boxes (2, 3) on each other, unless the images are more alike where one is slid.

    Boxes of whole lungs are scaled by a breath at the most; of a part of the lungs the scale would be wrong, and so it
    would be across where one scan has one lung alone: a field of view around it, or the other removed or without air.
    """
    middle, other_middle = box_lps_mm.mean(axis=0), other_box_lps_mm.mean(axis=0)
    sizes, other_sizes = np.ptp(box_lps_mm, axis=0), np.ptp(other_box_lps_mm, axis=0)
    across = other_sizes / sizes
    heights = sizes[2], other_sizes[2]
    farthest = sum(heights) / 2 - _MIN_OVERLAP * min(heights)

    def begun(scale: Float64, slid_mm: Sequence[float]) -> SimpleITK.Transform:
        transform = SimpleITK.AffineTransform(3)
        transform.SetCenter(middle.tolist())
        transform.SetTranslation((other_middle - middle + slid_mm).tolist())
        transform.SetMatrix(np.diag(scale).ravel().tolist())
        return transform

    def alike(transform: SimpleITK.Transform) -> float:
        method.SetInitialTransform(transform)
        try:
            return -float(method.MetricEvaluate(*coarser))
        except RuntimeError:  # nothing of one image lies in the other
            return 0.0

    coarser = [SimpleITK.Shrink(SimpleITK.SmoothingRecursiveGaussian(one, 2 * COARSE_MM), [2, 2, 2]) for one in images]
    scaled = begun(across, (0.0, 0.0, 0.0))
    steps = np.arange(-np.floor(farthest / _SLIDE_MM), farthest / _SLIDE_MM) * _SLIDE_MM
    slid = [begun(np.array([across[0], across[1], 1.0]), (0.0, 0.0, step)) for step in steps]
    if max(across[0], 1 / across[0]) > _UNLIKE_WIDTH:
        sides = np.array([-0.5, 0.5]) * (other_sizes[0] - sizes[0])
        slid += [begun(np.array([1.0, across[1], 1.0]), (side, 0.0, step)) for side in sides for step in steps]
    best = max(slid, key=alike, default=scaled)
    return best if alike(best) > _MIN_GAIN * alike(scaled) else scaled


def _affine(
    method: SimpleITK.ImageRegistrationMethod,
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    transform: SimpleITK.Transform,
) -> SimpleITK.Transform:
    """From places of ``fixed`` to places of ``moving``; it begins with ``transform``."""
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.4], SEED)
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2 * COARSE_MM, COARSE_MM])
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 60, convergenceMinimumValue=1e-5, convergenceWindowSize=5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return transform


def _displacements(fixed: SimpleITK.Image, laid: SimpleITK.Image) -> SimpleITK.Transform:
    """From places of ``fixed`` to places of ``laid``, an image on the same voxels."""
    alike = SimpleITK.HistogramMatching(laid, fixed, 256, 15, True)
    demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)
    demons.SetStandardDeviations(SMOOTH_VOXELS)
    field = None
    for times, iterations in STAGES:
        pair = [fixed, alike]
        if times > 1:
            smoothed = (SimpleITK.SmoothingRecursiveGaussian(one, COARSE_MM * times / 2) for one in pair)
            pair = [SimpleITK.Shrink(one, [times] * 3) for one in smoothed]
        demons.SetNumberOfIterations(iterations)
        if field is None:
            field = demons.Execute(*pair)
        else:
            begun = SimpleITK.Resample(
                field, pair[0], SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0, SimpleITK.sitkVectorFloat64
            )
            field = demons.Execute(*pair, begun)
    return SimpleITK.DisplacementFieldTransform(field)
