"""Aligns two chest CTs of the same patient at the lungs, to map positions in one scan to the other.

The alignment starts with the boxes of the lungs on top of each other. If a scan shows only a part of the lungs or one
lung, it may instead start with one box shifted to where the images fit best. Then it fits an affine transform by
Mattes' mutual information, and a displacement field for the breathing by Thirion's demons (Vercauteren et al.,
NeuroImage 45, 2009). All steps use SimpleITK, on voxels of 4 mm, and ignore regions outside either image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK
from numpy.typing import ArrayLike

from apps.medical.types import CTVolume, Float64

VOXEL_MM = 4.0
MARGIN_MM = 20.0
"""Margin around the box of the lungs: ribs and spine stabilise the alignment."""

WINDOW_HU = (-1000.0, 300.0)
STAGES = ((4, 40), (2, 40), (1, 10))
"""Stages of the displacement field: voxel size in units of ``VOXEL_MM``, and number of iterations."""

FIELD_SIGMA_VOXELS = 2.0
"""Standard deviation of the Gaussian that smooths the displacement field."""

SEED = 1
_INVERSE_ITERATIONS, _INVERSE_TOLERANCE_MM = 30, 0.1
_SHIFT_STEP_MM, _MIN_OVERLAP = 12.0, 0.5
"""The step of the initial shifts along the body, and the minimum fraction of the shorter box that must overlap."""

_MAX_WIDTH_RATIO = 1.2
"""If the widths of the boxes differ by more than this ratio, the narrower one may hold one lung. The alignment then
also tries to start with it at either side of the wider box."""

_MIN_GAIN = 1.05
"""A shifted start must improve the similarity by this factor over the scaled one, which suits whole lungs."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Maps positions in one scan to another.

    ``correlation`` is that of the aligned images around the lungs, from -1 to 1, where both have voxels.
    """

    transform: SimpleITK.Transform
    correlation: float

    def transform_points(self, positions_lps_mm: ArrayLike) -> Float64:
        """Maps positions (N, 3) in the first scan to positions in the other, LPS mm."""
        points = np.asarray(positions_lps_mm, np.float64).reshape(-1, 3)
        return np.array([self.transform.TransformPoint(point.tolist()) for point in points]).reshape(-1, 3)

    def inverse_transform_points(self, positions_lps_mm: ArrayLike) -> Float64:
        """Maps positions (N, 3) in the other scan to the first one, LPS mm.

        The error is at most 0.1 mm where the displacement field is smooth.
        """
        targets = np.asarray(positions_lps_mm, np.float64).reshape(-1, 3)
        positions = targets - self.transform_points([0.0, 0.0, 0.0])
        for _ in range(_INVERSE_ITERATIONS):
            residuals = targets - self.transform_points(positions)
            positions = positions + residuals
            if np.abs(residuals).max(initial=0.0) < _INVERSE_TOLERANCE_MM:
                break
        return positions


def align(scan: CTVolume, lung_box: ArrayLike, other: CTVolume, other_lung_box: ArrayLike) -> Alignment:
    """Aligns ``scan`` to ``other``; the boxes are those of the lungs, two corners (6,) in LPS mm.

    Takes about four to nine CPU-seconds, regardless of the size of the scans.
    """
    box, other_box = (np.asarray(corners, np.float64).reshape(2, 3) for corners in (lung_box, other_lung_box))
    (fixed, in_fixed), (moving, in_moving) = _crop(scan, box), _crop(other, other_box)
    method = _registration_method(in_fixed, in_moving)
    affine = _fit_affine(method, fixed, moving, _initial_transform(method, (fixed, moving), box, other_box))
    in_both = _resample(in_moving, affine, fixed, SimpleITK.sitkNearestNeighbor) & in_fixed
    aligned = _resample(moving, affine, fixed)
    # Outside either image the moving image is replaced by the fixed one, so that nothing is displaced there.
    breathing = _fit_displacements(fixed, _composite(aligned, in_both, fixed))
    # A composite transform applies the last one first.
    transform = SimpleITK.CompositeTransform([affine, breathing])
    in_both = _resample(in_moving, transform, fixed, SimpleITK.sitkNearestNeighbor) & in_fixed
    shared = SimpleITK.GetArrayViewFromImage(in_both) > 0
    images = (fixed, _resample(moving, transform, fixed))
    values = [SimpleITK.GetArrayViewFromImage(image)[shared] for image in images]
    return Alignment(transform, float(np.corrcoef(*values)[0, 1]) if shared.any() else 0.0)


def _resample(
    image: SimpleITK.Image,
    transform: SimpleITK.Transform,
    grid: SimpleITK.Image,
    interpolator: int = SimpleITK.sitkLinear,
) -> SimpleITK.Image:
    """Resamples an image to ``grid``, whose positions ``transform`` maps to the image; a mask is 0 outside it."""
    outside = WINDOW_HU[0] if interpolator == SimpleITK.sitkLinear else 0
    return SimpleITK.Resample(image, grid, transform, interpolator, outside)


def _composite(image: SimpleITK.Image, mask: SimpleITK.Image, elsewhere: SimpleITK.Image) -> SimpleITK.Image:
    """``image`` inside the mask and ``elsewhere`` outside it."""
    inside = SimpleITK.Cast(mask, SimpleITK.sitkFloat32)
    return image * inside + elsewhere * (1.0 - inside)


def smoothed_image(volume: CTVolume, sigma_mm: float, *, finer_than_mm: float) -> SimpleITK.Image:
    """The scan clipped to ``WINDOW_HU``, smoothed by a Gaussian along axes with a spacing below ``finer_than_mm``."""
    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    image = SimpleITK.Clamp(image, SimpleITK.sitkFloat32, *WINDOW_HU)
    for axis, spacing in enumerate(volume.spacing_mm):
        if spacing < finer_than_mm:
            image = SimpleITK.RecursiveGaussian(image, sigma_mm, direction=axis)
    return image


def _crop(volume: CTVolume, box_lps_mm: Float64) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """The scan around a box (2, 3), clipped to ``WINDOW_HU``, on voxels of ``VOXEL_MM`` along the axes of LPS.

    Also returns a mask of the voxels inside the scan.
    """
    image = smoothed_image(volume, VOXEL_MM / 2, finer_than_mm=VOXEL_MM / 2)
    low, high = box_lps_mm[0] - MARGIN_MM, box_lps_mm[1] + MARGIN_MM
    size = np.ceil((high - low) / VOXEL_MM).astype(int).tolist()
    voxels = SimpleITK.Image(size, SimpleITK.sitkUInt8)
    voxels.SetOrigin(low.tolist())
    voxels.SetSpacing([VOXEL_MM] * 3)
    identity, ones = SimpleITK.Transform(), SimpleITK.Cast(image * 0 + 1, SimpleITK.sitkUInt8)
    inside = _resample(ones, identity, voxels, SimpleITK.sitkNearestNeighbor)
    return _resample(image, identity, voxels), inside


def _registration_method(in_fixed: SimpleITK.Image, in_moving: SimpleITK.Image) -> SimpleITK.ImageRegistrationMethod:
    """A registration of two images by Mattes' mutual information inside these masks."""
    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # so that results are reproducible
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(in_fixed)
    method.SetMetricMovingMask(in_moving)
    method.SetInterpolator(SimpleITK.sitkLinear)
    return method


def _initial_transform(
    method: SimpleITK.ImageRegistrationMethod,
    images: tuple[SimpleITK.Image, SimpleITK.Image],
    box_lps_mm: Float64,
    other_box_lps_mm: Float64,
) -> SimpleITK.Transform:
    """The start of the fit: one box (2, 3) scaled to the other, or shifted if the images are then more similar.

    Boxes of whole lungs differ in scale by a breath at most. For a part of the lungs the scale would be wrong. The same
    is true from left to right if one scan shows only one lung: because of its field of view, or because the other lung
    is removed or not aerated.
    """
    centre, other_centre = box_lps_mm.mean(axis=0), other_box_lps_mm.mean(axis=0)
    sizes, other_sizes = np.ptp(box_lps_mm, axis=0), np.ptp(other_box_lps_mm, axis=0)
    ratios = other_sizes / sizes
    heights = sizes[2], other_sizes[2]
    max_shift = sum(heights) / 2 - _MIN_OVERLAP * min(heights)

    def initial(scale: Float64, shift_mm: Sequence[float]) -> SimpleITK.Transform:
        transform = SimpleITK.AffineTransform(3)
        transform.SetCenter(centre.tolist())
        transform.SetTranslation((other_centre - centre + shift_mm).tolist())
        transform.SetMatrix(np.diag(scale).ravel().tolist())
        return transform

    def similarity(transform: SimpleITK.Transform) -> float:
        method.SetInitialTransform(transform)
        try:
            return -float(method.MetricEvaluate(*coarser))
        except RuntimeError:  # the images do not overlap
            return 0.0

    coarser = [
        SimpleITK.Shrink(SimpleITK.SmoothingRecursiveGaussian(image, 2 * VOXEL_MM), [2, 2, 2]) for image in images
    ]
    scaled = initial(ratios, (0.0, 0.0, 0.0))
    shifts = np.arange(-np.floor(max_shift / _SHIFT_STEP_MM), max_shift / _SHIFT_STEP_MM) * _SHIFT_STEP_MM
    shifted = [initial(np.array([ratios[0], ratios[1], 1.0]), (0.0, 0.0, shift)) for shift in shifts]
    if max(ratios[0], 1 / ratios[0]) > _MAX_WIDTH_RATIO:
        sides = np.array([-0.5, 0.5]) * (other_sizes[0] - sizes[0])
        shifted += [initial(np.array([1.0, ratios[1], 1.0]), (side, 0.0, shift)) for side in sides for shift in shifts]
    best = max(shifted, key=similarity, default=scaled)
    return best if similarity(best) > _MIN_GAIN * similarity(scaled) else scaled


def _fit_affine(
    method: SimpleITK.ImageRegistrationMethod,
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    transform: SimpleITK.Transform,
) -> SimpleITK.Transform:
    """Fits the affine transform from positions in ``fixed`` to positions in ``moving``, starting at ``transform``."""
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.4], SEED)
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2 * VOXEL_MM, VOXEL_MM])
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 60, convergenceMinimumValue=1e-5, convergenceWindowSize=5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return transform


def _fit_displacements(fixed: SimpleITK.Image, aligned: SimpleITK.Image) -> SimpleITK.Transform:
    """Fits the displacements from positions in ``fixed`` to positions in ``aligned``, an image on the same voxels."""
    matched = SimpleITK.HistogramMatching(aligned, fixed, 256, 15, True)
    demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)
    demons.SetStandardDeviations(FIELD_SIGMA_VOXELS)
    field = None
    for shrink, iterations in STAGES:
        pair = [fixed, matched]
        if shrink > 1:
            smoothed = (SimpleITK.SmoothingRecursiveGaussian(image, VOXEL_MM * shrink / 2) for image in pair)
            pair = [SimpleITK.Shrink(image, [shrink] * 3) for image in smoothed]
        demons.SetNumberOfIterations(iterations)
        if field is None:
            field = demons.Execute(*pair)
        else:
            initial_field = SimpleITK.Resample(
                field, pair[0], SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0, SimpleITK.sitkVectorFloat64
            )
            field = demons.Execute(*pair, initial_field)
    return SimpleITK.DisplacementFieldTransform(field)
