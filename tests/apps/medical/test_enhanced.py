"""Enhanced CT: a whole series in one file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from apps.medical.adapters.source import read_volume
from apps.medical.outputs.result import slice_label
from apps.medical.types import CTVolume
from shared.errors import InvalidInputError
from tests.apps.medical.chests import chest, dicom_slice, pack, series

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
ORDER = [(7 * k) % 20 for k in range(20)]
"""The frames are not in the order of the slices."""


def group(**sequences: dict[str, object]) -> Dataset:
    """Functional groups: each a sequence of one item."""
    groups = Dataset()
    for name, values in sequences.items():
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(groups, name, [item])
    return groups


def enhanced(volume: CTVolume, *, shift: int = 0, packed: bool = False, frames: list[int] = ORDER) -> bytes:
    """``shift`` is added to every second frame's intercept, and taken from its stored values."""
    image = dcmread(io.BytesIO(dicom_slice(volume, 0)))
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ENHANCED
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(image, keyword)
    image.NumberOfFrames = len(frames)
    image.SharedFunctionalGroupsSequence = [
        group(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [3, 3], "SliceThickness": 5},
            CTImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]},
        )
    ]
    shifts = [shift * (n % 2) for n in range(len(frames))]
    image.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence={"ImagePositionPatient": volume.to_lps_mm([0, 0, k]).tolist()},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": -1024 + moved},
        )
        for k, moved in zip(frames, shifts, strict=True)
    ]
    stored = [volume.voxels_zyx[k].astype(np.int32) + 1024 - moved for k, moved in zip(frames, shifts, strict=True)]
    image.PixelData = np.stack(stored).astype("<u2").tobytes()
    if packed:
        image.compress(RLELossless)
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_frames_become_slices_at_their_stated_positions(tmp_path, packed):
    scan = chest()
    (tmp_path / "one").write_bytes(enhanced(scan, packed=packed))
    volume = read_volume([tmp_path / "one"])
    assert np.array_equal(volume.voxels_zyx, scan.voxels_zyx)
    assert volume.spacing_mm == pytest.approx(scan.spacing_mm)
    assert volume.origin_lps_mm == pytest.approx(scan.origin_lps_mm)
    # A viewer displays the frame number.
    assert [image.instance_number for image in volume.images] == [ORDER.index(k) + 1 for k in range(20)]
    assert slice_label(volume, 9) == f"image {ORDER.index(9) + 1} of 20"


def test_each_frame_has_its_own_rescale_values(tmp_path):
    scan = chest()
    (tmp_path / "one").write_bytes(enhanced(scan, shift=24))
    assert np.array_equal(read_volume([tmp_path / "one"]).voxels_zyx, scan.voxels_zyx)
    (tmp_path / "packed").write_bytes(enhanced(scan, shift=24, packed=True))
    with pytest.raises(InvalidInputError, match="compressed, and its frames have different rescale slopes"):
        read_volume([tmp_path / "packed"])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([0, 1, 3, 4], "missing or unevenly spaced"),
        ([0, 1, 2, 2], "two images have the same position"),
        ([0, 1], "at least 3"),
    ],
)
def test_frames_are_checked_like_single_images(tmp_path, frames, words):
    (tmp_path / "one").write_bytes(enhanced(chest(), frames=frames))
    with pytest.raises(InvalidInputError, match=words):
        read_volume([tmp_path / "one"])


def test_fewer_pixels_than_frames_are_refused(tmp_path: Path):
    image = dcmread(io.BytesIO(enhanced(chest())))
    image.NumberOfFrames = 19
    image.PixelData = image.PixelData[: 19 * 80 * 100 * 2]
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    (tmp_path / "one").write_bytes(out.getvalue())
    with pytest.raises(InvalidInputError, match="fewer frames than its header states"):
        read_volume([tmp_path / "one"])


def test_frames_without_a_position_are_refused(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="multi-frame image, but not enhanced CT"):
        read_volume([pack(tmp_path, series(chest(), NumberOfFrames=20))])


@pytest.mark.parametrize(("unit", "read"), [("HU", True), ("Z_EFF", False)])
def test_frames_in_other_units_are_refused(tmp_path: Path, unit: str, read: bool):
    image = dcmread(io.BytesIO(enhanced(chest())))
    for frame in image.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence[0].RescaleType = unit
    image.save_as(tmp_path / "one", enforce_file_format=True)
    if read:
        assert np.array_equal(read_volume([tmp_path / "one"]).voxels_zyx, chest().voxels_zyx)
        return
    with pytest.raises(InvalidInputError, match="has values in Z_EFF, not Hounsfield units"):
        read_volume([tmp_path / "one"])
