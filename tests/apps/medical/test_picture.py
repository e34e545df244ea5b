"""The picture of a case is in radiological orientation, however the scan is stored."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from apps.medical.outputs.picture import picture
from apps.medical.types import CTVolume, Nodule
from tests.apps.medical.chests import chest, found
from tests.apps.medical.test_storage import stored

RIGHT_FRONT_MM = (-60.0, -42.0, -350.0)
"""In the patient's right lung, towards the front: LPS."""


def lopsided() -> CTVolume:
    """The chest with a single large dense ball at ``RIGHT_FRONT_MM``."""
    volume = chest()
    i, j, k = np.rint(volume.to_index_ijk(RIGHT_FRONT_MM)).astype(int)
    volume.voxels_zyx[k - 1 : k + 2, j - 4 : j + 5, i - 4 : i + 5] = 1000
    volume.voxels_zyx[9:11, 38:42, 28:32] = -850
    return volume


def pixels(volume: CTVolume, *nodules: Nodule) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture(volume, found(*nodules)))), np.int16)


NODULE = Nodule(
    centre_lps_mm=RIGHT_FRONT_MM,
    mean_diameter_mm=27.0,
    score=0.8,
    box_lps_mm=(-73.5, -55.5, -358.0, -46.5, -28.5, -342.0),
)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)], ids=["LPS", "RPS", "LAS", "RAS"])
def test_the_patient_s_right_is_on_the_left_and_the_front_at_the_top(signs):
    volume = stored(lopsided(), (0, 1, 2), signs)
    image = pixels(volume, NODULE)
    yellow = np.argwhere((image[..., 0] > 240) & (image[..., 1] > 190) & (image[..., 2] < 90))
    y, x = yellow.mean(axis=0)
    height, width = image.shape[:2]
    assert x < width / 2 - 40 and y < height / 2 - 20
    # The ball is within its circle; only the letters at the edges are as bright.
    inside = image[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6]
    assert inside.min() == 255
    assert image[int(y) - 5 : int(y) + 6, width - int(x) - 5 : width - int(x) + 6].max() < 200
    assert np.array_equal(image, pixels(lopsided(), NODULE))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_slices_whose_rows_run_from_front_to_back_are_transposed(signs):
    """DICOM may swap row and column directions; the picture is the same."""
    volume = stored(lopsided(), (1, 0, 2), signs)
    image = pixels(volume, NODULE).astype(int)
    label = slice(image.shape[0] - 30, None)
    expected = pixels(lopsided(), NODULE).astype(int)
    image[label], expected[label] = 0, 0
    assert np.array_equal(image, expected)


def test_the_sides_are_labelled():
    """R at the left edge and L at the right edge, in front of room air only: L is a stem, R has more beside it."""
    volume = lopsided()
    volume.voxels_zyx[:] = -1000
    is_bright = pixels(volume)[..., 0] > 200
    middle = slice(is_bright.shape[0] // 2 - 12, is_bright.shape[0] // 2 + 12)
    left, right = is_bright[middle, :24], is_bright[middle, -24:]
    assert right.any() and left.sum() > 1.3 * right.sum() and not is_bright[middle, 24:-24].any()
