"""DICOM, NRRD and NIfTI give the same volume; invalid input is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from apps.medical.adapters.nifti import nifti
from apps.medical.adapters.source import read_volume
from apps.medical.datasets.luna16_files import read_marks, read_scans, read_truths
from apps.medical.types import CTVolume
from shared.errors import InvalidInputError
from tests.apps.medical.chests import dicom_slice, pack, series

SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-20.0, 15.0, -300.0)


@pytest.fixture
def scan():
    random = np.random.default_rng(0)
    voxels = random.integers(-1000, 400, size=(6, 10, 12)).astype(np.int16)
    return CTVolume(voxels_zyx=voxels, spacing_mm=SPACING, origin_lps_mm=ORIGIN)


def assert_refused(path: Path, *words: str, **options: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        read_volume([path], **options)
    for word in words:
        assert word in str(raised.value)


def same(first: CTVolume, second: CTVolume) -> None:
    assert np.array_equal(first.voxels_zyx, second.voxels_zyx)
    assert first.spacing_mm == pytest.approx(second.spacing_mm, abs=1e-4)
    assert first.origin_lps_mm == pytest.approx(second.origin_lps_mm, abs=1e-3)
    assert first.direction == pytest.approx(second.direction, abs=1e-5)


def test_indices_and_millimetres_are_inverse():
    turned = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    volume = CTVolume(
        voxels_zyx=np.zeros((3, 4, 5), np.int16), spacing_mm=SPACING, origin_lps_mm=ORIGIN, direction=turned
    )
    index = np.array([[1.5, 2.0, 0.25], [0, 0, 0]])
    assert volume.to_index_ijk(volume.to_lps_mm(index)) == pytest.approx(index)
    assert volume.to_lps_mm([1, 0, 0]) == pytest.approx(np.add(ORIGIN, [0, -0.7, 0]))


def test_dicom_nrrd_and_nifti_agree(scan, tmp_path):
    archive = pack(tmp_path, {**series(scan), "readme.txt": b"hello", "DICOMDIR": b"x" * 200})
    same(read_volume([archive]), scan)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in series(scan).items():
        (folder / name).write_bytes(content)
    same(read_volume([folder]), scan)
    same(read_volume(sorted(folder.iterdir())), scan)
    image = SimpleITK.GetImageFromArray(scan.voxels_zyx)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    for name in ("scan.nrrd", "scan.mha", "scan.nii.gz"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        same(read_volume([tmp_path / name]), scan)
    (tmp_path / "ours.nii.gz").write_bytes(nifti(scan))
    same(read_volume([tmp_path / "ours.nii.gz"]), scan)


def test_files_of_different_formats_are_refused(scan, tmp_path):
    image = SimpleITK.GetImageFromArray(scan.voxels_zyx)
    for name in ("scan.nrrd", "scan.mhd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in series(scan).items():
        (folder / name).write_bytes(content)
    nrrd, notes = tmp_path / "scan.nrrd", tmp_path / "notes.txt"
    notes.write_text("a note")
    for others in (sorted(folder.iterdir()), [folder], [pack(tmp_path, series(scan))]):
        with pytest.raises(InvalidInputError, match=r"scan\.nrrd was provided together with .*; provide one CT"):
            read_volume([nrrd, *others])
    assert read_volume([nrrd, notes]).size_ijk == scan.size_ijk
    assert read_volume([tmp_path / "scan.mhd", tmp_path / "scan.raw"]).size_ijk == scan.size_ijk
    assert_refused(
        pack(tmp_path, {**series(scan), "scan.gipl": b"x,y"}, "two.zip"), "two.zip holds scan.gipl beside DICOM"
    )
    shutil.copy(nrrd, folder)
    assert_refused(folder, "scan.nrrd was provided together with IM0")
    assert_refused(pack(tmp_path, {**series(scan), "scan.nrrd": b"NRRD"}, "mixed.zip"), "holds scan.nrrd beside DICOM")
    with pytest.raises(InvalidInputError, match=r"scan\.nrrd beside DICOM"):
        read_volume([folder / name for name in series(scan)] + [pack(tmp_path, {"scan.nrrd": b"NRRD"}, "n.zip")])
    assert_refused(pack(tmp_path, {"scan.gipl": b"x" * 9}, "only.zip"), "no DICOM image; it holds scan.gipl")


def test_other_files_of_an_export_are_ignored(scan, tmp_path):
    beside = ["DICOMDIR", "a/readme.TXT", "a/info.xml", "info.json", ".DS_Store", "__MACOSX/a/._IM1", ".git/config"]
    beside += [
        "AUTORUN.INF",
        "VIEWER/viewer.exe",
        "VIEWER/lib.dll",
        "INDEX.HTM",
        "key.jpg",
        "report.pdf",
        "LICENSE",
        "metadata.csv",
    ]
    same(read_volume([pack(tmp_path, {**series(scan), **dict.fromkeys(beside, b"x" * 200)})]), scan)


def test_an_image_may_be_in_a_folder_or_a_zip_with_a_separate_data_file(scan, tmp_path):
    image = SimpleITK.GetImageFromArray(scan.voxels_zyx)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    SimpleITK.WriteImage(image, str(folder / "scan.mhd"))
    (folder / "readme.txt").write_text("a note")
    same(read_volume([folder.parent]), scan)
    same(read_volume(sorted(folder.iterdir())), scan)
    packed = {f"a/{file.name}": file.read_bytes() for file in folder.iterdir()}
    same(read_volume([pack(tmp_path, packed)]), scan)
    assert_refused(pack(tmp_path, {"a/scan.mhd": packed["a/scan.mhd"]}, "half.zip"), "keeps its voxels in 'scan.raw'")
    assert_refused(pack(tmp_path, {**packed, "b/other.mhd": packed["a/scan.mhd"]}, "two.zip"), "2 volumes")
    assert_refused(pack(tmp_path, {**packed, "../../evil.mhd": b"x"}, "evil.zip"), "outside the archive")
    assert_refused(folder, "leave out the option `series`", series="4")
    renamed = {"scan (1).mhd": packed["a/scan.mhd"], "scan (1).raw": packed["a/scan.raw"]}
    assert_refused(
        pack(tmp_path, renamed, "renamed.zip"), "scan (1).mhd keeps its voxels in 'scan.raw'; provide that file"
    )
    (folder / "scan.raw").unlink()
    assert_refused(folder, "keeps its voxels in 'scan.raw'")


def test_files_with_the_same_name_in_several_folders_are_one_series(scan, tmp_path):
    """As on a medium: PA000001/ST000001/SE000001/IM000001, beside a DICOMDIR."""
    for k in range(6):
        home = tmp_path / "DICOM" / f"PA{k}"
        home.mkdir(parents=True)
        (home / "IM000001").write_bytes(dicom_slice(scan, k))
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    same(read_volume([tmp_path]), scan)
    same(read_volume([path for path in sorted(tmp_path.rglob("*")) if path.is_file()]), scan)


def test_a_damaged_zip_is_refused(scan, tmp_path):
    torn = pack(tmp_path, series(scan))
    torn.write_bytes(torn.read_bytes()[:3000])
    assert_refused(torn, "scan.zip cannot be read as a zip", "create it again")
    (tmp_path / "text.zip").write_text("not packed")
    assert_refused(tmp_path / "text.zip", "text.zip cannot be read as a zip")


def test_slices_in_reverse_order_give_the_same_volume(scan, tmp_path):
    down = {"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}
    flipped = pack(tmp_path, series(scan, **down))
    volume = read_volume([flipped])
    assert volume.direction[:, 2] == pytest.approx([0, 0, -1])
    assert volume.to_lps_mm([0, 0, 0])[2] == pytest.approx(scan.to_lps_mm([0, 0, 5])[2])
    assert np.array_equal(volume.voxels_zyx[0], scan.voxels_zyx[5])


def test_data_other_than_a_ct_series_is_refused(scan, tmp_path):
    assert_refused(pack(tmp_path, series(scan, Modality=None)), "Modality", "IM")
    assert_refused(pack(tmp_path, series(scan, Modality="MR")), "MR", "not CT")
    assert_refused(pack(tmp_path, {"a.txt": b"nothing"}), "no DICOM image")
    assert_refused(pack(tmp_path, series(scan, ImagePositionPatient=None)), "ImagePositionPatient")
    assert_refused(pack(tmp_path, series(scan, RescaleIntercept=None)), "rescale")
    assert_refused(pack(tmp_path, series(scan, NumberOfFrames=20)), "multi-frame")
    assert_refused(tmp_path / "missing.zip", "does not exist")


def test_an_image_that_two_systems_wrote_is_read_once(scan, tmp_path):
    """Every system that stores an image writes its own file header, so the two files differ."""
    whole = series(scan)
    for k in range(len(scan.voxels_zyx)):
        image = dcmread(io.BytesIO(dicom_slice(scan, k)))
        image.file_meta.ImplementationVersionName = "ARCHIVE_2"
        copy = io.BytesIO()
        image.save_as(copy, enforce_file_format=True)
        whole[f"copy/{k}"] = copy.getvalue()
    volume = read_volume([pack(tmp_path, whole)])
    assert np.array_equal(volume.voxels_zyx, scan.voxels_zyx) and not volume.remarks
    # If all images share one identifier, their positions distinguish them.
    assert read_volume([pack(tmp_path, series(scan, SOPInstanceUID="1.2.3.99"))]).size_ijk == scan.size_ijk
    # Pixels that differ are no copy.
    other = dicom_slice(scan, 1, RescaleType="HU", PixelData=bytes(2 * 10 * 12))
    assert_refused(pack(tmp_path, {**series(scan), "other": other}), "the same position")


def test_missing_and_duplicate_slices_are_refused(scan, tmp_path):
    whole = series(scan)
    names = list(whole)
    assert_refused(pack(tmp_path, {name: whole[name] for name in names if name != names[2]}), "missing", "5.00 mm")
    duplicate = dicom_slice(scan, 1, SOPInstanceUID="1.2.3.99")
    assert_refused(pack(tmp_path, {**whole, "again": duplicate}), "the same position")
    same(read_volume([pack(tmp_path, {**whole, "copies/again": whole[names[1]]})]), scan)
    assert_refused(pack(tmp_path, {names[0]: whole[names[0]]}), "at least 3")


def test_several_series_are_refused_until_one_is_named(scan, tmp_path):
    second_series = {
        f"B{k}": dicom_slice(scan, k, SeriesInstanceUID="9.9", SeriesNumber=5, SeriesDescription="MUELLER")
        for k in range(6)
    }
    scout = {"scout": dicom_slice(scan, 0, SeriesInstanceUID="7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}
    mixed = pack(tmp_path, {**series(scan), **second_series, **scout})
    with pytest.raises(InvalidInputError, match=r"2 series: series 4 \(CT, 6 images\); series 5") as several:
        read_volume([mixed])
    assert "MUELLER" not in str(several.value), "of a refused job the sentence is kept"
    assert read_volume([mixed], series="5").identifiers["SeriesInstanceUID"] == "9.9"
    assert read_volume([mixed], series="1.2.3").identifiers["SeriesInstanceUID"] == "1.2.3"
    assert_refused(mixed, "no series 8", series="8")
    same(read_volume([pack(tmp_path, {**series(scan), **scout}, "one.zip")]), scan)


def compressed(content: bytes) -> bytes:
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    image = dcmread(io.BytesIO(content))
    image.compress(RLELossless)
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("packed", [lambda content: content, compressed], ids=["plain", "compressed"])
@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"RescaleSlope": None}, "rescale slope"),
        ({"RescaleIntercept": 0}, "air near -1000"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1"),
        ({"PixelSpacing": [0, 0.7]}, "PixelSpacing of 0 mm"),
    ],
)
def test_values_that_are_not_hounsfield_units_are_refused_however_they_are_stored(scan, tmp_path, packed, tags, words):
    assert_refused(pack(tmp_path, {name: packed(content) for name, content in series(scan, **tags).items()}), words)


def test_hostile_archives_are_refused(scan, tmp_path):
    assert_refused(pack(tmp_path, {"../../etc/cron": dicom_slice(scan, 0)}), "outside the archive")
    assert_refused(pack(tmp_path, {"C:/x": dicom_slice(scan, 0)}), "outside the archive")
    for nameless in (".", "/"):
        assert_refused(pack(tmp_path, {nameless: dicom_slice(scan, 0)}), "outside the archive")
    assert_refused(pack(tmp_path, {"bomb": b"\0" * 40_000_000}), "would unpack")
    locked = pack(tmp_path, {"IM1": dicom_slice(scan, 0)})
    content = bytearray(locked.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    locked.write_bytes(content)
    assert_refused(locked, "encrypted")
    torn = pack(tmp_path, series(scan))
    broken = bytearray(torn.read_bytes())
    broken[60:90] = b"\xff" * 30
    torn.write_bytes(broken)
    assert_refused(torn, "unpacked")


def test_images_that_are_not_ct_are_refused(tmp_path):
    ramp = np.linspace(0, 1, 8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    for name, values, word in (
        ("scaled.nrrd", ramp, "Hounsfield"),
        ("flat.nrrd", ramp[0] * 1000 - 1000, "not one volume"),
        ("nan.nrrd", np.where(ramp > 0.5, np.nan, -1000), "finite"),
    ):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.astype(np.float32)), str(tmp_path / name))
        assert_refused(tmp_path / name, word, name)
    (tmp_path / "torn.nii.gz").write_bytes(b"\x1f\x8b not really")
    assert_refused(tmp_path / "torn.nii.gz", "cannot be read")


_META = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\n"
_NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 8 8 8\nencoding: raw\nendian: little\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("sly.mhd", _META + "ElementDataFile = {}\n"),
        ("sly.mhd", _META + "ElementDataFile: {}\n"),
        ("sly.mha", _META + "  ElementDataFile   {}\n"),
        ("sly.mhd", _META + "Comment = ElementDataFile = LOCAL\nElementDataFile = {}\n"),
        ("sly.mhd", _META + "ElementDataFile = LIST\n{}\n"),
        ("sly.mhd", _META + "#" + "x" * 300_000 + "\nElementDataFile = {}\n"),
        ("sly.nhdr", _NRRD + "data file: {}\n"),
        ("sly.nrrd", _NRRD + "Datafile:{}\n\n"),
        ("sly.nhdr", _NRRD.replace("\n", "\r\n") + "data file: {}\r\n"),
        ("sly.nhdr", _NRRD + "data file: LIST\n{}\n"),
        ("sly.nhdr", _NRRD + "data file: LIST 3\n{}\n"),
        ("sly.nhdr", _NRRD + "data file: %s 1 1 1\n#{}\n"),
        ("sly.nhdr", _NRRD + "#" + "x" * 20_000 + "\ndata file: {}\n"),
        ("sly.nhdr", _NRRD + "#" + "x" * 300_000 + "\ndata file: {}\n"),
    ],
)
def test_a_header_cannot_name_a_file_elsewhere_on_the_machine(tmp_path, name, header):
    somebody_else_s = tmp_path / "other" / "scan.raw"
    somebody_else_s.parent.mkdir()
    np.linspace(-1000, 1000, 512).astype("<i2").tofile(somebody_else_s)
    for name_of_a_list in ("LIST", "LIST 3", "%s 1 1 1"):
        (tmp_path / name_of_a_list).touch()
    (tmp_path / name).write_text(header.format(somebody_else_s), newline="")
    with pytest.raises(InvalidInputError, match=rf"{name} (keeps its voxels|has no readable header)"):
        read_volume([tmp_path / name])


_CT = (
    "ElementSpacing = 1 1 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n",
    "space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n",
)
_FILLER = ("#" + "x" * 400 + "=\n") * 700
"""Lines that both formats allow, longer than the part of a header that is checked."""


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("sly.mha", _META + _CT[0] + "elementdatafile = LOCAL\n" + _FILLER + "ElementDataFile = {}\n"),
        ("sly.mhd", _META + _CT[0] + "Comment = ElementDataFile = near.raw\n" + _FILLER + "ElementDataFile = {}\n"),
        ("sly.mha", _META + _CT[0] + "no field\nElementDataFile = LOCAL\n" + _FILLER + "ElementDataFile = {}\n"),
        ("sly.nhdr", _NRRD + _CT[1] + "# data file: near.raw\n" + _FILLER + "data file: {}\n"),
        ("sly.nrrd", _NRRD + _CT[1] + "# data file: near.raw\n" + _FILLER + "data file: {}\n\n"),
    ],
)
def test_a_header_cannot_name_a_file_elsewhere_after_the_part_that_is_checked(tmp_path, name, header):
    elsewhere, near = tmp_path / "other" / "scan.raw", tmp_path / "near.raw"
    elsewhere.parent.mkdir()
    for file in (elsewhere, near):
        np.linspace(-1000, 1000, 512).astype("<i2").tofile(file)
    (tmp_path / name).write_text(header.format(elsewhere))
    with pytest.raises(InvalidInputError, match=rf"{name} has no readable header"):
        read_volume([tmp_path / name, near])


@pytest.mark.realdata
def test_real_dicom_without_modality_is_refused(medical_data):
    with pytest.raises(InvalidInputError, match="Modality"):
        read_volume([medical_data / "lungmask_dicom" / "testdata"])


@pytest.mark.realdata
def test_real_compressed_dicom_is_read(medical_data):
    volume = read_volume([medical_data / "totalsegmentator" / "example_ct_dicom"])
    assert volume.size_ijk == (512, 512, 20)
    assert volume.spacing_mm == pytest.approx((0.9765625, 0.9765625, 2.0))
    assert np.median(volume.voxels_zyx[:, 200:260, 120:180]) == pytest.approx(100, abs=80)


@pytest.mark.realdata
def test_luna16_files_match_the_challenges_description(medical_data):
    folder = medical_data / "luna16_annotations"
    truths = read_truths(folder / "annotations.csv", folder / "annotations_excluded.csv")
    assert sum(not truth.excluded for truth in truths) == 1186
    assert sum(truth.excluded for truth in truths) == 35192
    assert len(read_scans(folder / "seriesuids.csv")) == 888


def test_a_submission_without_probabilities_is_refused(tmp_path):
    (tmp_path / "marks.csv").write_text("seriesuid,coordX,coordY,coordZ\na,1,2,3\n")
    with pytest.raises(InvalidInputError, match="probability"):
        read_marks(tmp_path / "marks.csv")
    (tmp_path / "good.csv").write_text("seriesuid,coordX,coordY,coordZ,probability\na,1,2,3,0.5\n")
    assert read_marks(tmp_path / "good.csv")[0].centre_mm == (1.0, 2.0, 3.0)
