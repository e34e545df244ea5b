"""A place in one chest CT, found again in another of the same patient: both images are aligned at the lungs.

First the boxes of the lungs are laid on each other, then an affine transform is fitted by Mattes' mutual information,
then a field of displacements, which follows the breathing, by Thirion's demons (Vercauteren et al., NeuroImage 45,
2009): all by SimpleITK, on voxels of 4 mm.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the places of one scan lie in another.

    ``correlation`` is that of the two images around the lungs once they are aligned, from -1 to 1.
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

    Some three CPU-seconds, whatever the size of the scans.
    """
    box, other_box = (np.asarray(one, np.float64).reshape(2, 3) for one in (lung_box, other_lung_box))
    fixed, moving = _coarse(scan, box), _coarse(other, other_box)
    affine = _affine(fixed, moving, box, other_box)
    laid = SimpleITK.Resample(moving, fixed, affine, SimpleITK.sitkLinear, WINDOW_HU[0])
    breathing = _displacements(fixed, laid)
    # The last that is named moves a point first.
    both = SimpleITK.CompositeTransform([affine, breathing])
    aligned = SimpleITK.Resample(moving, fixed, both, SimpleITK.sitkLinear, WINDOW_HU[0])
    values = (SimpleITK.GetArrayViewFromImage(one).ravel() for one in (fixed, aligned))
    return Alignment(both, float(np.corrcoef(*values)[0, 1]))


def _coarse(volume: CTVolume, box_lps_mm: Float64) -> SimpleITK.Image:
    """The scan around a box (2, 3), cut to ``WINDOW_HU``, on voxels of ``COARSE_MM`` along the axes of LPS."""
    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    image = SimpleITK.Clamp(image, SimpleITK.sitkFloat32, *WINDOW_HU)
    for axis, spacing in enumerate(volume.spacing_mm):
        if spacing < COARSE_MM / 2:
            image = SimpleITK.RecursiveGaussian(image, COARSE_MM / 2, direction=axis)
    low, high = box_lps_mm[0] - MARGIN_MM, box_lps_mm[1] + MARGIN_MM
    size = np.ceil((high - low) / COARSE_MM).astype(int).tolist()
    air, kind, axes = WINDOW_HU[0], SimpleITK.sitkFloat32, np.eye(3).ravel().tolist()
    return SimpleITK.Resample(
        image, size, SimpleITK.Transform(), SimpleITK.sitkLinear, low.tolist(), [COARSE_MM] * 3, axes, air, kind
    )


def _affine(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, box_lps_mm: Float64, other_box_lps_mm: Float64
) -> SimpleITK.Transform:
    """From places of ``fixed`` to places of ``moving``; it begins with that of the boxes (2, 3)."""
    middle, other_middle = box_lps_mm.mean(axis=0), other_box_lps_mm.mean(axis=0)
    transform = SimpleITK.AffineTransform(3)
    transform.SetCenter(middle.tolist())
    transform.SetTranslation((other_middle - middle).tolist())
    scale = np.ptp(other_box_lps_mm, axis=0) / np.ptp(box_lps_mm, axis=0)
    transform.SetMatrix(np.diag(scale).ravel().tolist())
    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # so that the same scans give the same places
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.4], SEED)
    method.SetInterpolator(SimpleITK.sitkLinear)
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
