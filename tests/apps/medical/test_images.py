"""NIfTI, NRRD and MetaImage files: truncated, with other axis orders, with orientations that disagree."""

from __future__ import annotations

import gzip
import random
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from apps.medical.adapters.axial import AXES_REORDERED
from apps.medical.adapters.images import ASSUMED_LPS, NO_ORIGIN
from apps.medical.adapters.nifti import nifti
from apps.medical.adapters.source import read_volume
from apps.medical.outputs.files import findings_csv
from apps.medical.types import CTVolume, Nodule
from shared.errors import InvalidInputError
from tests.apps.medical.chests import chest, found

AFFINE = np.array([[-0.8, 0, 0, 30], [0, -0.7, 0, -5], [0, 0, 2.5, -300], [0, 0, 0, 1]])


def values() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 400, size=(12, 10, 8)).astype(np.int16)


def saved(path: Path, image: nibabel.Nifti1Image) -> Path:
    nibabel.save(image, path)
    return path


def posed(sform: np.ndarray | None, qform: np.ndarray | None) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(values(), None)
    image.set_sform(sform, 0 if sform is None else 1)
    image.set_qform(qform, 0 if qform is None else 1)
    return image


def assert_refused(path: Path, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        read_volume([path])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("lost", [1, 40, 1000, 2200])
def test_a_truncated_nifti_is_refused_rather_than_filled_with_zeros(tmp_path, name, lost):
    path = saved(tmp_path / name, nibabel.Nifti1Image(values(), AFFINE))
    assert np.array_equal(read_volume([path]).voxels_zyx, values().T)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - lost, 4)])
    assert_refused(path, rf"{name} (cannot be read as NIfTI|is not a single-file NIfTI image).*; ")


@pytest.mark.parametrize(("name", "new_name"), [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii")])
def test_nifti_compression_is_detected_by_content(tmp_path, name, new_name):
    path = saved(tmp_path / name, nibabel.Nifti1Image(values(), AFFINE)).rename(tmp_path / new_name)
    assert np.array_equal(read_volume([path]).voxels_zyx, values().T)


def test_a_corrupted_nifti_is_refused(tmp_path):
    path = saved(tmp_path / "a.nii.gz", nibabel.Nifti1Image(values(), AFFINE))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert_refused(path, "a.nii.gz cannot be read as NIfTI .*CRC")


def test_orientations_that_disagree_or_are_missing_are_refused(tmp_path):
    moved = AFFINE.copy()
    moved[0, 0] *= -1
    for name, sform, qform, words in (
        ("both.nii", AFFINE, moved, "states two orientations, .* mm apart"),
        ("none.nii", None, None, "does not state its orientation"),
    ):
        assert_refused(saved(tmp_path / name, posed(sform, qform)), words)
    for name, sform, qform in (("s.nii", AFFINE, None), ("q.nii", None, AFFINE), ("same.nii", AFFINE, AFFINE)):
        volume = read_volume([saved(tmp_path / name, posed(sform, qform))])
        assert volume.origin_lps_mm == pytest.approx((-30, 5, -300), abs=1e-4)
        assert volume.spacing_mm == pytest.approx((0.8, 0.7, 2.5))
        assert volume.direction == pytest.approx(np.eye(3), abs=1e-6)
    doubtful = posed(AFFINE, None)
    doubtful.header["pixdim"][1:4] = (0.8, 0.7, 1.25)
    (tmp_path / "doubtful.nii").write_bytes(doubtful.to_bytes())
    assert_refused(tmp_path / "doubtful.nii", "states two spacings")
    metres = posed(np.diag([0.001, 0.001, 0.001, 1]) @ AFFINE, None)
    metres.header.set_xyzt_units("meter")
    assert read_volume([saved(tmp_path / "metres.nii", metres)]).spacing_mm == pytest.approx((0.8, 0.7, 2.5))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (0, 2, 1), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_slices_stored_along_any_axis_become_axial(tmp_path, axes, suffix):
    """The voxel at each patient position is the same, however the array is stored."""
    stored, affine = np.transpose(values(), axes), AFFINE[:, [*axes, 3]]
    path = tmp_path / f"turned{suffix}"
    if suffix == ".nii.gz":
        saved(path, nibabel.Nifti1Image(stored, affine))
    else:
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        image = SimpleITK.GetImageFromArray(stored.transpose(2, 1, 0))
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        SimpleITK.WriteImage(image, str(path))
    volume = read_volume([path])
    assert volume.size_ijk == (12, 10, 8) and volume.spacing_mm == pytest.approx((0.8, 0.7, 2.5), abs=1e-4)
    assert np.array_equal(volume.voxels_zyx, values().T)
    assert volume.to_lps_mm([3, 4, 5]) == pytest.approx([-30 + 2.4, 5 + 2.8, -287.5], abs=1e-3)
    assert volume.remarks == (() if axes == (0, 1, 2) else (AXES_REORDERED,)) or axes == (1, 0, 2)


def test_files_without_a_single_axial_volume_are_refused(tmp_path):
    turned = AFFINE.copy()
    c, s = np.cos(0.8), np.sin(0.8)
    turned[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ turned[:3, :3]
    assert_refused(saved(tmp_path / "oblique.nii", nibabel.Nifti1Image(values(), turned)), "oblique.nii is oblique")
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.9
    assert_refused(saved(tmp_path / "tilted.nii", posed(sheared, None)), "tilted.nii is sheared")
    four = np.stack([values()] * 2, axis=-1)
    assert_refused(saved(tmp_path / "four.nii.gz", nibabel.Nifti1Image(four, AFFINE)), "four.nii.gz is not one volume")
    single = nibabel.Nifti1Image(four[..., :1], AFFINE)
    assert read_volume([saved(tmp_path / "one.nii.gz", single)]).size_ijk == (12, 10, 8)
    colours = np.zeros((4, 4, 4), [(c, "u1") for c in "RGB"])
    assert_refused(
        saved(tmp_path / "rgb.nii", nibabel.Nifti1Image(colours, AFFINE)),
        "rgb.nii has the NIfTI data type .*not a real number",
    )
    analyze = bytearray(gzip.decompress(nifti(chest())))
    analyze[344:348] = b"\0\0\0\0"
    (tmp_path / "old.nii").write_bytes(analyze)
    assert_refused(tmp_path / "old.nii", "old.nii is not a single-file NIfTI image")
    shifted = np.where(values() < -500, -3024, values() + 1024).astype(np.int16)
    assert_refused(saved(tmp_path / "shifted.nii", nibabel.Nifti1Image(shifted, AFFINE)), "expected Hounsfield units")
    bomb = gzip.compress(gzip.decompress(nifti(chest())) + b"\0" * (1 << 26))
    (tmp_path / "bomb.nii.gz").write_bytes(bomb)
    assert_refused(tmp_path / "bomb.nii.gz", "has too much data after its one volume")


def test_scaled_and_big_endian_values_are_hounsfield_units(tmp_path):
    image = nibabel.Nifti1Image((values() // 2).astype(">i2"), AFFINE)
    image.header.set_data_dtype(">i2")
    raw = bytearray(image.to_bytes())
    order = ">" if raw[:4] == b"\0\0\x01\x5c" else "<"
    raw[112:120] = np.array([2, -24], f"{order}f4").tobytes()
    (tmp_path / "scaled.nii").write_bytes(raw)
    assert np.array_equal(read_volume([tmp_path / "scaled.nii"]).voxels_zyx, (values() // 2 * 2 - 24).T)


@pytest.mark.parametrize(
    ("space", "signs"), [("left-posterior-superior", (1, 1)), ("right-anterior-superior", (-1, -1)), ("LAS", (1, -1))]
)
def test_nrrd_is_read_in_its_stated_space(tmp_path, space, signs):
    header = (
        f"NRRD0005\ntype: short\ndimension: 3\nspace: {space}\nsizes: 12 10 8\nspace directions: (0.8,0,0) (0,0.7,0) "
        "(0,0,2.5)\nkinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (10,20,-300)\n\n"
    )
    path = tmp_path / "a.nrrd"
    path.write_bytes(header.encode() + values().T.astype("<i2").tobytes())
    volume = read_volume([path])
    assert volume.remarks == ()
    x, y = signs
    assert volume.to_lps_mm([1, 1, 1]) == pytest.approx([x * 10.8, y * 20.7, -297.5])
    assert np.array_equal(volume.voxels_zyx, values().T)
    silent = header.replace(f"space: {space}\n", "").replace("space origin: (10,20,-300)\n", "")
    silent = silent.replace("space directions: (0.8,0,0) (0,0.7,0) (0,0,2.5)", "spacings: 0.8 0.7 2.5")
    path.write_bytes(silent.encode() + values().T.astype("<i2").tobytes())
    assert_refused(path, "a.nrrd does not state its orientation")


@pytest.mark.parametrize(
    ("original", "replacement", "words"),
    [
        ("space: LPS", "space: scanner-xyz", "none of LPS, RAS and LAS"),
        ("space: LPS", 'space: LPS\nspace units: "m" "m" "m"', "units other than mm"),
        ("space directions: (0.8,0,0) (0,0.7,0) (0,0,2.5)\n", "", "must state `space directions`"),
        (
            "space directions: (0.8,0,0) (0,0.7,0) (0,0,2.5)\n",
            "spacings: 0.8 0.7 2.5\n",
            "NRRD does not allow `spacings`",
        ),
        ("sizes: 12 10 8", "sizes: 12 10 9", "cannot be read as .nrrd"),
        ("(10,20,-300)\n\n", "(10,20,", "no readable header"),  # voxels in the header crash ITK with SIGSEGV
    ],
)
def test_nrrd_without_a_complete_grid_is_refused(tmp_path, original, replacement, words):
    header = (
        "NRRD0005\ntype: short\ndimension: 3\nspace: LPS\nsizes: 12 10 8\nspace directions: (0.8,0,0) (0,0.7,0) "
        "(0,0,2.5)\nendian: little\nencoding: raw\nspace origin: (10,20,-300)\n\n"
    )
    assert original in header
    (tmp_path / "a.nrrd").write_bytes(
        header.replace(original, replacement).encode() + values().T.astype("<i2").tobytes()
    )
    assert_refused(tmp_path / "a.nrrd", words)


def test_nrrd_without_an_origin_has_a_remark(tmp_path):
    header = (
        "NRRD0005\ntype: short\ndimension: 3\nspace: LPS\nsizes: 12 10 8\nspace directions: (0.8,0,0) (0,0.7,0) "
        "(0,0,2.5)\nendian: little\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values().T.astype("<i2").tobytes())
    assert read_volume([tmp_path / "a.nrrd"]).remarks == (NO_ORIGIN,)


def metaimage(folder: Path, content: bytes, *lines: str, name: str = "a.mha", data: str = "LOCAL") -> Path:
    fields = ("ObjectType = Image", "NDims = 3", "DimSize = 12 10 8", "ElementType = MET_SHORT", *lines)
    header = "".join(f"{line}\n" for line in (*fields, f"ElementDataFile = {data}"))
    if data != "LOCAL":
        (folder / data).write_bytes(content)
    (folder / name).write_bytes(header.encode() + (content if data == "LOCAL" else b""))
    return folder / name


@pytest.mark.parametrize("data", ["LOCAL", "a.zraw"])
def test_a_truncated_or_damaged_compressed_metaimage_is_refused(tmp_path, data):
    """ITK returns uninitialised memory for voxels that it cannot decompress."""
    packed = zlib.compress(values().T.astype("<i2").tobytes())
    lines = ("CompressedData = True", "ElementSpacing = 0.8 0.7 2.5")
    name = "a.mha" if data == "LOCAL" else "a.mhd"
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    whole = metaimage(tmp_path, packed, *lines, name=name, data=data)
    files = [whole] + ([tmp_path / data] if data != "LOCAL" else [])
    assert np.array_equal(read_volume(files).voxels_zyx, values().T)
    for content in (packed[:-40], packed[:-1], bytes(damaged), b"x" * 300, zlib.compress(b"short")):
        metaimage(tmp_path, content, *lines, name=name, data=data)
        with pytest.raises(InvalidInputError, match="compressed voxels are truncated or damaged"):
            read_volume(files)


LYING, TURNED_ROUND = "TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = -1 0 0 0 -1 0 0 0 1"


@pytest.mark.parametrize(
    ("lines", "remarks"),
    [
        ((LYING, "Offset = 1 2 3"), ()),
        ((LYING, "Offset = 1 2 3", "AnatomicalOrientation = RAI"), ()),  # the sides that axes start from, as ITK writes
        ((TURNED_ROUND, "Offset = 1 2 3", "AnatomicalOrientation = LPI"), ()),
        ((LYING, "Offset = 1 2 3", "AnatomicalOrientation = LPS"), ()),  # the sides that axes end at, as others write
        ((TURNED_ROUND, "Offset = 1 2 3", "AnatomicalOrientation = ???"), ()),
        (("AnatomicalOrientation = RAI", "Position = 1 2 3"), ()),
        (("AnatomicalOrientation = ???", "Offset = 1 2 3"), (ASSUMED_LPS,)),
        ((), (ASSUMED_LPS, NO_ORIGIN)),
    ],
)
def test_a_metaimage_has_its_stated_orientation_and_a_remark_on_assumptions(tmp_path, lines, remarks):
    content = values().T.astype("<i2").tobytes()
    volume = read_volume([metaimage(tmp_path, content, "ElementSpacing = 0.8 0.7 2.5", *lines)])
    assert volume.remarks == remarks
    sign = -1 if TURNED_ROUND in lines else 1
    assert volume.to_lps_mm([1, 1, 0]) - volume.to_lps_mm([0, 0, 0]) == pytest.approx([sign * 0.8, sign * 0.7, 0])


@pytest.mark.parametrize(
    "lines",
    [
        (LYING, "AnatomicalOrientation = LPI"),
        (TURNED_ROUND, "AnatomicalOrientation = RAI"),
        ("AnatomicalOrientation = LPI",),
        ("AnatomicalOrientation = LPS",),
    ],
)
def test_a_metaimage_with_contradictory_orientations_is_refused(tmp_path, lines):
    content = values().T.astype("<i2").tobytes()
    assert_refused(
        metaimage(tmp_path, content, "ElementSpacing = 0.8 0.7 2.5", *lines),
        "so left and right are unknown; state only the correct orientation",
    )


def test_a_metaimage_without_spacing_or_truncated_is_refused(tmp_path):
    content = values().T.astype("<i2").tobytes()
    assert_refused(metaimage(tmp_path, content), "states no ElementSpacing")
    assert_refused(metaimage(tmp_path, content[:-9], "ElementSpacing = 1 1 1"), "its voxel data are truncated")
    huge = metaimage(tmp_path, content, "ElementSpacing = 1 1 1")
    huge.write_bytes(huge.read_bytes().replace(b"12 10 8", b"99999 99999 99999"))
    assert_refused(huge, "which is too large for a CT")


def test_corrupted_headers_give_a_refusal_or_a_volume_and_no_other_error(tmp_path):
    chance = random.Random(3)
    whole = gzip.decompress(nifti(chest()))
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(352)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        (tmp_path / "a.nii").write_bytes(damaged)
        try:
            volume = read_volume([tmp_path / "a.nii"])
        except InvalidInputError as refusal:
            assert str(refusal).startswith("a.nii")
        else:
            assert np.isfinite(volume.spacing_mm).all() and np.isfinite(volume.origin_lps_mm).all()


def test_readers_print_no_names_to_the_terminal(tmp_path, capfd):
    for name, content in (
        ("MUELLER1.nii", b"x" * 1000),
        ("MUELLER2.nii.gz", b"\x1f\x8b" + bytes(100)),
        ("MUELLER3.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 8 8 8\nencoding: raw\n\nabab"),
        (
            "MUELLER4.mha",
            b"ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nElementDataFile = LOCAL\nx",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, f"^{name}")
    assert "MUELLER" not in "".join(capfd.readouterr())


def test_findings_of_a_luna16_image_are_a_submission_in_its_coordinates(tmp_path):
    """Marks keep their positions after writing and reading, under the SeriesInstanceUID in the file's name."""
    from apps.medical.datasets.luna16_files import read_marks

    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.197987940182806628828566429132"
    scan = chest()
    image = SimpleITK.GetImageFromArray(scan.voxels_zyx[:, ::-1, ::-1])
    image.SetSpacing(scan.spacing_mm)
    # Some of LUNA16's images have their first two axes reversed.
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin(scan.to_lps_mm([99, 79, 0]).tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"{uid}.mhd"))
    volume = read_volume([tmp_path / f"{uid}.mhd", tmp_path / f"{uid}.raw"])
    centre = tuple(volume.to_lps_mm(volume.to_index_ijk(scan.to_lps_mm([29.3, 39.6, 9.7]))).tolist())
    assert volume.voxels_zyx[tuple(np.rint(volume.to_index_ijk(scan.to_lps_mm([29, 39, 10]))).astype(int)[::-1])] == 30
    nodule = Nodule(centre_lps_mm=centre, mean_diameter_mm=8.0, score=0.123456, box_lps_mm=(0, 0, 0, 1, 1, 1))
    text = findings_csv(volume, found(nodule))
    assert text.splitlines()[0].startswith(b"seriesuid,coordX,coordY,coordZ,probability")
    (tmp_path / "marks.csv").write_bytes(text)
    (mark,) = read_marks(tmp_path / "marks.csv")
    assert mark.scan == uid and mark.score == pytest.approx(0.123456, abs=1e-6)
    assert mark.centre_mm == pytest.approx(scan.to_lps_mm([29.3, 39.6, 9.7]), abs=5e-4)


def test_a_name_in_the_findings_table_cannot_be_a_formula():
    nodule = Nodule(centre_lps_mm=(1, 2, 3), mean_diameter_mm=8.0, score=0.5, box_lps_mm=(0, 0, 0, 1, 1, 1))
    for name, cell in (("=1+1.nii.gz", "'=1+1.nii.gz"), ("scan-1.nii.gz", "scan-1.nii.gz")):
        row = findings_csv(replace(chest(), name=name), found(nodule)).decode().splitlines()[1]
        assert row.split(",")[0] == cell


def test_a_volume_survives_the_round_trip_through_nifti(tmp_path):
    turned = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    scan = CTVolume(
        voxels_zyx=values().T.copy(), spacing_mm=(0.8, 0.7, 2.5), origin_lps_mm=(1.0, 2.0, 3.0), direction=turned
    )
    (tmp_path / "a.nii.gz").write_bytes(nifti(scan))
    volume = read_volume([tmp_path / "a.nii.gz"])
    index = volume.to_index_ijk(scan.to_lps_mm([3, 4, 5]))
    i, j, k = np.rint(index).astype(int)
    assert volume.voxels_zyx[k, j, i] == scan.voxels_zyx[5, 4, 3]
