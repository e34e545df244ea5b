"""DICOM that is damaged or has impossible values is refused with a message, and never misread."""

from __future__ import annotations

import io
import random
import re
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, DeflatedExplicitVRLittleEndian, HTJ2KLossless

from apps.medical.adapters import dicom
from apps.medical.adapters.source import read_volume
from apps.medical.types import CTVolume
from shared.errors import InvalidInputError
from tests.apps.medical.chests import dicom_slice, pack


@pytest.fixture
def scan() -> CTVolume:
    voxels = np.random.default_rng(0).integers(-1000, 400, size=(5, 8, 10)).astype(np.int16)
    return CTVolume(voxels_zyx=voxels, spacing_mm=(0.7, 0.8, 2.5), origin_lps_mm=(-20.0, 15.0, -300.0))


def members(scan: CTVolume, **tags: object) -> dict[str, bytes]:
    """The series' files; a tag that is a function is called with the index of each slice."""
    return {
        f"I{k}": dicom_slice(scan, k, **{n: value(k) if callable(value) else value for n, value in tags.items()})
        for k in range(len(scan.voxels_zyx))
    }


def assert_refused(folder: Path, slices: dict[str, bytes], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        read_volume([pack(folder, slices)])


@pytest.mark.parametrize("first_or_last", [0, 4])
@pytest.mark.parametrize("cut", [140, 200, 400])
def test_a_slice_truncated_within_its_header_is_refused(scan, tmp_path, first_or_last, cut):
    """Skipping the first or last slice would leave no gap."""
    slices = members(scan)
    slices[f"I{first_or_last}"] = slices[f"I{first_or_last}"][:cut]
    assert_refused(
        tmp_path, slices, f"I{first_or_last} is a (DICOM file that ends within the header|damaged DICOM file)"
    )


def test_reports_without_pixels_are_ignored(scan, tmp_path):
    report = dcmread(io.BytesIO(dicom_slice(scan, 0, Modality="SR")))
    kind = "1.2.840.10008.5.1.4.1.1.88.67"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = kind
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    out = io.BytesIO()
    report.save_as(out, enforce_file_format=True)
    volume = read_volume([pack(tmp_path, {**members(scan), "dose": out.getvalue()})])
    assert np.array_equal(volume.voxels_zyx, scan.voxels_zyx)


@pytest.mark.parametrize(
    ("original", "replacement"),
    [(b"0.8\\0.7", b"nan\\nan"), (b"0.8\\0.7", b"x.8\\0.7"), (b"0.8\\0.7", b"0.80000"), (b"-1024", b"abcde")],
)
def test_invalid_numbers_are_refused(scan, tmp_path, original, replacement):
    slices = members(scan)
    assert all(original in content for content in slices.values())
    assert_refused(
        tmp_path,
        {name: content.replace(original, replacement) for name, content in slices.items()},
        "I0 (has no usable PixelSpacing|has no valid rescale slope)",
    )


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PatientID": lambda k: "a" if k < 2 else "b"}, "images of several patients"),
        ({"BitsStored": 12, "HighBit": 15}, "lowest bits"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, "not two perpendicular unit vectors"),
        ({"ImageOrientationPatient": [0] * 6}, "not two perpendicular unit vectors"),
        ({"ImagePositionPatient": lambda k: [0, k * 0.8, k * 2.5]}, "tilted gantry"),
        ({"ImagePositionPatient": lambda k: [30 * (k in (2, 3)), 0, k * 2.5]}, "sideways .* 30.0 mm between I1 and I2"),
        ({"ImagePositionPatient": lambda k: [0, 1.5 * (k == 2), k * 2.5]}, "sideways .* 1.5 mm between I1 and I2"),
        ({"ImagePositionPatient": [0, 0, 0]}, "two images have the same position"),
        ({"Rows": 0}, "pixels cannot be read"),
        ({"Rows": 65535, "Columns": 65535}, "states 5 images of 65535 by 65535 pixels, which cannot be a CT"),
        ({"Rows": ""}, "states 5 images of None by [0-9]+ pixels, which cannot be a CT"),
        ({"PixelData": b"\0\0" * 20}, "pixels cannot be read"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is RGB"),
        ({"RescaleSlope": 0}, "rescale slope"),
        ({"RescaleType": "MGML"}, "values in MGML, not Hounsfield units"),
    ],
)
def test_impossible_values_are_refused(scan, tmp_path, tags, words):
    assert_refused(tmp_path, members(scan, **tags), words)


def test_rounded_positions_do_not_count_as_sideways_shifts(scan, tmp_path):
    places = [[-20 + 0.4 * (k % 2), 15, -300 + 2.5 * k] for k in range(5)]
    volume = read_volume([pack(tmp_path, members(scan, ImagePositionPatient=lambda k: places[k]))])
    assert np.array_equal(volume.voxels_zyx, scan.voxels_zyx)


def test_slice_spacing_that_changes_is_refused(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 400, size=(40, 4, 4)).astype(np.int16)
    scan = CTVolume(voxels_zyx=voxels, spacing_mm=(1.0, 1.0, 1.0), origin_lps_mm=(0.0, 0.0, 0.0))
    heights = np.cumsum([1.0] * 20 + [1.15] * 20)
    assert_refused(
        tmp_path, members(scan, ImagePositionPatient=lambda k: [0, 0, float(heights[k])]), "changes along the series"
    )


@pytest.mark.parametrize(
    "tags",
    [
        {"BitsStored": 12, "HighBit": 11, "PixelData": "overlay"},
        {"PixelRepresentation": 1, "RescaleIntercept": 0, "BitsStored": 12, "HighBit": 11, "PixelData": "twelve"},
        {"PixelRepresentation": 1, "RescaleIntercept": 0, "PixelData": "signed"},
    ],
    ids=lambda tags: tags["PixelData"],
)
def test_values_are_read_from_the_stored_bits(scan, tmp_path, tags):
    def stored(k: int) -> bytes:
        values = scan.voxels_zyx[k].astype(np.int32)
        kinds = {"overlay": (values + 1024) | 0x8000, "twelve": values & 0xFFF, "signed": values & 0xFFFF}
        return kinds[tags["PixelData"]].astype("<u2").tobytes()

    volume = read_volume([pack(tmp_path, members(scan, **(tags | {"PixelData": stored})))])
    assert np.array_equal(volume.voxels_zyx, scan.voxels_zyx)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, -1024), (2, -1000), (-1, 0), (3000, -900), (0.5, -1024), (1.25, 7.5), (20000, -800)]
)
def test_values_are_scaled_rounded_and_clipped(slope, intercept, scan, tmp_path):
    stored = np.random.default_rng(1).integers(-(1 << 15), 1 << 15, scan.voxels_zyx.shape).astype("<i2")
    stored[:, ::2] = round((-800 - intercept) / slope)  # a CT needs air
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "PixelRepresentation": 1}
    archive = pack(tmp_path, members(scan, **tags, PixelData=lambda k: stored[k].tobytes()))
    expected = np.clip(np.rint(stored * np.float64(slope) + intercept), -1024, 32767)
    assert np.array_equal(read_volume([archive]).voxels_zyx, expected)


def test_a_file_without_preamble_is_read(scan, tmp_path):
    volume = read_volume([pack(tmp_path, {name: content[132:] for name, content in members(scan).items()})])
    assert np.array_equal(volume.voxels_zyx, scan.voxels_zyx)


def test_memory_is_limited_while_headers_are_read(scan, tmp_path, monkeypatch):
    """Of a large archive only a limited part is kept; the rest is decompressed one file at a time."""
    monkeypatch.setattr(dicom, "_MAX_CACHED_BYTES", 8 << 20)
    noise = np.random.default_rng(0).bytes(4 << 20)
    filler = {f"S{k}": dicom_slice(scan, k % 5, SeriesInstanceUID="9", PixelData=noise) for k in range(12)}
    for archive in (pack(tmp_path, members(scan)), pack(tmp_path, members(scan) | filler, "much.zip")):
        # The first archive imports pydicom, so that the second one's memory is that of reading alone.
        tracemalloc.start()
        read_volume([archive], series="1.2.3")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert archive.name == "much.zip" and most < 24 << 20


def test_corrupted_bytes_give_a_refusal_or_a_volume_and_no_other_error(scan, tmp_path):
    chance = random.Random(2)
    slices = members(scan)
    for _ in range(150):
        damaged = {}
        for name, content in slices.items():
            copy = bytearray(content)
            for _ in range(chance.randint(1, 3)):
                copy[chance.randrange(132, len(copy))] = chance.randrange(256)
            damaged[name] = bytes(copy)
        try:
            volume = read_volume([pack(tmp_path, damaged)])
        except InvalidInputError as refusal:
            assert len(str(refusal)) > 20
        else:
            assert np.isfinite(volume.spacing_mm).all() and np.isfinite(volume.origin_lps_mm).all()


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"LossyImageCompression": "01"}, "5 of 5 images were lossy compressed \\(0028,2110\\)"),
        ({"LossyImageCompression": "01", "LossyImageCompressionRatio": ["4.5", "12"]}, "up to 12 to 1"),
        ({"LossyImageCompression": lambda k: "01" if k == 2 else "00"}, "1 of 5 images"),
        ({"LossyImageCompression": "01", "RescaleSlope": 3}, "rescale slope multiplies the errors by 3"),
    ],
)
def test_lossy_compression_gives_a_remark(scan, tmp_path, tags, words):
    volume = read_volume([pack(tmp_path, members(scan, **tags))])
    assert re.search(words, " ".join(volume.remarks))


def test_lossless_images_have_no_remark(scan, tmp_path):
    for tags in ({}, {"LossyImageCompression": "00", "LossyImageCompressionRatio": "1"}):
        assert read_volume([pack(tmp_path, members(scan, **tags))]).remarks == ()


@pytest.mark.parametrize(("stated", "is_lossy"), [("00", False), (None, True)])
def test_jpeg_2000_counts_as_lossless_if_the_images_say_so(scan, tmp_path, stated, is_lossy):
    def packed(content: bytes) -> bytes:
        data, stream = dcmread(io.BytesIO(content)), io.BytesIO()
        Image.fromarray(data.pixel_array).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
        data.PixelData = encapsulate([stream.getvalue()])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = JPEG2000  # which may be lossy or lossless
        out = io.BytesIO()
        data.save_as(out, enforce_file_format=True)
        return out.getvalue()

    tags = {} if stated is None else {"LossyImageCompression": stated}
    images = {name: packed(content) for name, content in members(scan, **tags).items()}
    volume = read_volume([pack(tmp_path, images)])
    assert any("lossy compressed" in remark for remark in volume.remarks) is is_lossy


def high_throughput(scan, stream: bytes) -> dict[str, bytes]:
    """The scan's images with one HTJ2K codestream as the pixels of each, 48 by 48."""
    contents = {}
    for name, content in members(scan).items():
        data, out = dcmread(io.BytesIO(content)), io.BytesIO()
        data.Rows = data.Columns = 48
        data.PixelRepresentation, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 16, 15
        data.RescaleSlope, data.RescaleIntercept = 1, -100
        data.PixelData = encapsulate([stream])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = HTJ2KLossless
        data.save_as(out, enforce_file_format=True)
        contents[name] = out.getvalue()
    return contents


def test_htj2k_is_decoded_exactly(scan, tmp_path):
    stream = (Path(__file__).parents[2] / "data" / "waves.j2c").read_bytes()
    volume = read_volume([pack(tmp_path, high_throughput(scan, stream))])
    x, y = np.meshgrid(np.arange(48), np.arange(48))
    stored = np.rint(800 * np.sin(x / 7) * np.cos(y / 5) - 200)
    assert (volume.voxels_zyx == np.maximum(stored - 100, -1024)).all() and volume.remarks == ()


def test_htj2k_with_a_wrong_size_or_truncated_is_refused(scan, tmp_path):
    stream = (Path(__file__).parents[2] / "data" / "waves.j2c").read_bytes()
    huge = bytearray(stream)
    huge[8:16] = huge[24:32] = (60_000).to_bytes(
        4, "big"
    ) * 2  # SIZ: the image's and the tile's (ISO/IEC 15444-1 A.5.1)
    for content, sentence in (
        (bytes(huge), "differs from its header"),
        (stream[:40], "its pixels cannot be read"),
    ):
        with pytest.raises(InvalidInputError, match=sentence):
            read_volume([pack(tmp_path, high_throughput(scan, content))])


def deflated(content: bytes, more: int) -> bytes:
    """The file in the deflated transfer syntax, with ``more`` zeros after its last element."""
    data = dcmread(io.BytesIO(content))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    if not more:
        return out.getvalue()
    start = 144 + int.from_bytes(out.getvalue()[140:144], "little")
    plain, packer = zlib.decompress(out.getvalue()[start:], -zlib.MAX_WBITS), zlib.compressobj(9, wbits=-15)
    # A value of zeros in a private element: (7FE1,0010) OB.
    element = b"\xe1\x7f\x10\x00OB\0\0" + more.to_bytes(4, "little")
    zeros = bytes(1 << 20)
    parts = [packer.compress(plain + element), *(packer.compress(zeros) for _ in range(more >> 20)), packer.flush()]
    return out.getvalue()[:start] + b"".join(parts)


def test_a_deflated_series_is_read_unless_it_expands_too_much(scan, tmp_path):
    slices = {name: deflated(content, 0) for name, content in members(scan).items()}
    assert np.array_equal(read_volume([pack(tmp_path, slices)]).voxels_zyx, scan.voxels_zyx)
    large = tmp_path / "large.dcm"
    large.write_bytes(deflated(next(iter(members(scan).values())), 64 << 20))
    assert large.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError, match=r"large.dcm would decompress to more than .* its size") as refusal:
            read_volume([large])
        assert refusal.value.status == 413 and tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()


def test_reading_files_in_parallel_gives_the_same_volume_and_the_same_refusals(scan, tmp_path, monkeypatch):
    slices = members(scan)
    found, words = [], []
    damaged = bytearray(pack(tmp_path, slices, "damaged.zip").read_bytes())
    at = damaged.find(b"PK\x01\x02") // 2
    damaged[at : at + 64] = bytes(64)
    (tmp_path / "damaged.zip").write_bytes(damaged)
    for threads in ("1", "4"):
        monkeypatch.setenv("TRIVIUM_THREADS", threads)
        found.append(read_volume([pack(tmp_path, slices)]))
        with pytest.raises(InvalidInputError) as refusal:
            read_volume([tmp_path / "damaged.zip"])
        words.append(str(refusal.value))
    assert np.array_equal(found[0].voxels_zyx, found[1].voxels_zyx)
    assert found[0].origin_lps_mm == found[1].origin_lps_mm
    assert words[0] == words[1] and "cannot be unpacked" in words[0]
