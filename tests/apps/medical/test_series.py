"""The choice of the series to read, and the instance numbers of its slices."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from apps.medical.adapters.source import read_volume
from apps.medical.outputs.files import slicer_markups
from apps.medical.outputs.result import result, slice_label
from apps.medical.types import CTVolume, Nodule
from shared.errors import InvalidInputError
from tests.apps.medical.chests import chest, dicom_slice, found, pack, series


def nodule_at(volume: CTVolume, k: int) -> Nodule:
    x, y, z = volume.to_lps_mm([28.0, 40.0, k])
    box = (x - 4, y - 4, z - 4, x + 4, y + 4, z + 4)
    return Nodule(centre_lps_mm=(x, y, z), mean_diameter_mm=8.0, score=0.9, box_lps_mm=box)


def found_at(volume: CTVolume, k: int) -> dict:
    content = result(volume, found(nodule_at(volume, k)))
    return content["findings"][0] | {
        "numbers": content["volume"]["instance_numbers"],
        "source": content["volume"]["source"],
    }


def thin(spacing: float, count: int = 12) -> CTVolume:
    voxels = np.random.default_rng(0).integers(-1000, 400, size=(count, 8, 8)).astype(np.int16)
    return CTVolume(voxels_zyx=voxels, spacing_mm=(1.0, 1.0, spacing), origin_lps_mm=(0.0, 0.0, -100.0))


def members(prefix: str, volume: CTVolume, **tags: object) -> dict[str, bytes]:
    return {f"{prefix}/{name}": content for name, content in series(volume, **tags).items()}


@pytest.mark.parametrize("rows_down", [1, -1], ids=["feet to head", "head to feet"])
@pytest.mark.parametrize("first", [1, 201])
def test_a_finding_names_its_image(tmp_path, rows_down, first):
    scan = chest()
    if rows_down < 0:
        # With rows from back to front the normal points to the feet.
        scan = CTVolume(
            voxels_zyx=scan.voxels_zyx[::-1, ::-1].copy(),
            spacing_mm=scan.spacing_mm,
            origin_lps_mm=tuple(scan.to_lps_mm([0, 79, 19])),
            direction=np.diag([1.0, -1.0, -1.0]),
        )
    slices = {
        f"I{(7 * k) % 23}": dicom_slice(scan, k, InstanceNumber=first + (3 * k) % 20, SOPInstanceUID=f"1.2.3.{k + 50}")
        for k in range(20)
    }
    archive = pack(tmp_path, slices)
    volume = read_volume([archive])
    finding = found_at(volume, 9)
    # The header of the image at the nodule's height, read with pydicom.
    height = finding["centre_lps_mm"][2]
    headers = [dcmread(_as_file(tmp_path, content)) for content in slices.values()]
    image = min(headers, key=lambda header: abs(float(header.ImagePositionPatient[2]) - height))
    assert finding["instance_number"] == image.InstanceNumber
    assert finding["image"] == {
        "label": f"image {image.InstanceNumber}" + (" of 20" if first == 1 else ""),
        "instance_number": image.InstanceNumber,
        "sop_instance_uid": image.SOPInstanceUID,
        "position_lps_mm": [float(value) for value in image.ImagePositionPatient],
    }
    assert image.pixel_array[39 if rows_down < 0 else 40, 28] - 1024 == 30, "the nodule is in that image"
    assert finding["numbers"][finding["slice"] - 1] == image.InstanceNumber
    label = slice_label(volume, finding["slice"] - 1)
    assert label == f"image {image.InstanceNumber}" + (" of 20" if first == 1 else "")


def _as_file(folder: Path, content: bytes) -> Path:
    (folder / "one.dcm").write_bytes(content)
    return folder / "one.dcm"


@pytest.mark.parametrize("numbers", [{"InstanceNumber": None}, {"InstanceNumber": 1}], ids=["none", "all the same"])
def test_instance_numbers_that_are_not_unique_are_not_displayed(tmp_path, numbers):
    volume = read_volume([pack(tmp_path, series(chest(), **numbers))])
    assert slice_label(volume, 9) == "slice 10 of 20"
    finding = found_at(volume, 9)
    assert finding["numbers"] is None and finding["image"]["sop_instance_uid"] == "1.2.3.10"
    assert finding["instance_number"] is None and finding["image"]["instance_number"] is None


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize(("step_kept", "has_remark"), [(1, False), (2, True), (3, True)])
def test_a_remark_says_that_slices_are_missing_if_numbers_are_skipped_throughout(tmp_path, step, step_kept, has_remark):
    scan = chest()
    spread = replace(scan, voxels_zyx=scan.voxels_zyx[::step_kept], spacing_mm=(3.0, 3.0, 5.0 * step_kept))
    slices = {
        f"{k}": dicom_slice(spread, k, InstanceNumber=61 + step * step_kept * k) for k in range(len(spread.voxels_zyx))
    }
    remarks = " ".join(read_volume([pack(tmp_path, slices)]).remarks)
    assert ("Slices are missing" in remarks) is has_remark
    if has_remark:
        assert (
            f"which is {step_kept * (len(slices) - 1) + 1} images" in remarks
            and f"{len(slices)} were provided" in remarks
        )


@pytest.mark.parametrize("numbers", [[1, 2, 4, 5], [2, 4, 3, 7], [5, 5, 5, 5], [2, 4, None, 8]])
def test_a_single_skipped_number_or_unordered_numbers_give_no_remark(tmp_path, numbers):
    slices = {f"{k}": dicom_slice(chest(), k, InstanceNumber=number) for k, number in enumerate(numbers)}
    assert "Slices are missing" not in " ".join(read_volume([pack(tmp_path, slices)]).remarks)


def test_other_sources_count_slices_in_their_own_order():
    assert slice_label(chest(), 9) == "slice 10 of 20"
    finding = found_at(chest(), 9)
    assert finding["image"] is None and finding["numbers"] is None and finding["source"] == "file"


@pytest.mark.realdata
def test_a_real_series_has_the_numbers_that_pydicom_reads(medical_data):
    folder = medical_data / "totalsegmentator" / "example_ct_dicom"
    volume = read_volume([folder])
    headers = sorted((dcmread(path) for path in folder.iterdir()), key=lambda h: float(h.ImagePositionPatient[2]))
    assert [i.instance_number for i in volume.images] == [header.InstanceNumber for header in headers]
    assert [i.sop_instance_uid for i in volume.images] == [header.SOPInstanceUID for header in headers]
    for k, header in enumerate(headers):
        assert volume.images[k].position_lps_mm == tuple(map(float, header.ImagePositionPatient))
        assert volume.to_lps_mm([0, 0, k]) == pytest.approx(volume.images[k].position_lps_mm, abs=0.01)


def test_the_thin_series_with_a_lung_kernel_is_read_and_named(tmp_path):
    soft = members("a", thin(1.0), SeriesInstanceUID="1.5", SeriesNumber=3, ConvolutionKernel="B31f", SliceThickness=1)
    lung = members("b", thin(1.0), SeriesInstanceUID="1.6", SeriesNumber=4, ConvolutionKernel="B70f", SliceThickness=1)
    thick = members("c", thin(5.0), SeriesInstanceUID="1.7", SeriesNumber=2, ConvolutionKernel="B70f", SliceThickness=5)
    pet = members("d", thin(0.5), SeriesInstanceUID="1.8", SeriesNumber=9, Modality="PT")
    mip = members("e", thin(0.5), SeriesInstanceUID="1.9", SeriesNumber=8, ImageType=["DERIVED", "SECONDARY", "MIP"])
    coronal = members(
        "f", thin(0.5), SeriesInstanceUID="1.10", SeriesNumber=7, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    bolus = members("g", thin(0.5), SeriesInstanceUID="1.11", SeriesNumber=6, ImagePositionPatient=[0, 0, 0])
    name = {"SeriesDescription": "Lunge MUELLER"}
    everything = (
        soft | lung | thick | pet | mip | coronal | bolus | members("h", thin(3.0), SeriesInstanceUID="1.3", **name)
    )
    volume = read_volume([pack(tmp_path, everything)])
    assert volume.identifiers["SeriesInstanceUID"] == "1.6"
    (remark,) = volume.remarks
    assert remark.startswith("Several series were provided. Read: series 4 (CT, 1 mm, kernel B70f, 12 images).")
    assert "series 3 (CT, 1 mm, kernel B31f, 12 images)" in remark and "MUELLER" not in remark
    assert result(volume, found(searched=False))["remarks"][0] == remark
    doubled = everything | {f"again/{name}": content for name, content in everything.items()}
    assert read_volume([pack(tmp_path, doubled)]).remarks == (remark,)
    chosen = read_volume([pack(tmp_path, everything)], series="2")
    assert chosen.identifiers["SeriesInstanceUID"] == "1.7" and chosen.spacing_mm[2] == pytest.approx(5.0)
    assert chosen.remarks[0].startswith("Several series were provided, and one was requested. Read: series 2 (CT, 5 mm")
    with pytest.raises(InvalidInputError, match="not in axial slices"):
        read_volume([pack(tmp_path, everything)], series="7")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ConvolutionKernel": "B60f"}, "2 series: series 4 .CT, 1 mm, kernel B70f, 12 images.; series 5 .*B60f"),
        ({"StudyInstanceUID": "1.4"}, "2 series of several studies"),
        ({"PatientID": "other", "SliceThickness": 9}, "2 series of several patients"),
    ],
)
def test_if_the_choice_is_ambiguous_the_series_must_be_named(tmp_path, changes, words):
    tags = {"ConvolutionKernel": "B70f", "PatientID": "one", "SliceThickness": 1}
    both = members("a", thin(1.0), **tags) | members(
        "b", thin(1.0), **(tags | {"SeriesInstanceUID": "1.9", "SeriesNumber": 5} | changes)
    )
    with pytest.raises(InvalidInputError, match=words):
        read_volume([pack(tmp_path, both)])
    assert read_volume([pack(tmp_path, both)], series="5").identifiers["SeriesInstanceUID"] == "1.9"


@pytest.mark.parametrize(
    ("kernel_read", "other_kernel"),
    [("Br59d", "Br40d"), ("Br64f", "Br49"), ("Hr60", "Hr40"), ("Bl57", "Br59"), ("LUNG", "BONEPLUS")],
)
def test_a_lung_kernel_is_preferred_or_else_a_sharp_one(tmp_path, kernel_read, other_kernel):
    both = members("a", thin(1.0), SeriesNumber=5, SeriesInstanceUID="1.9", ConvolutionKernel=kernel_read)
    both |= members("b", thin(1.0), ConvolutionKernel=other_kernel)
    assert read_volume([pack(tmp_path, both)]).identifiers["SeriesInstanceUID"] == "1.9"


def test_a_series_can_be_named_by_its_number_with_leading_zeros(tmp_path):
    both = members("a", thin(1.0), SeriesNumber=3, SeriesInstanceUID="1.9") | members("b", thin(1.0), SeriesNumber=30)
    for number in ("3", "03", "1.9"):
        assert read_volume([pack(tmp_path, both)], series=number).identifiers["SeriesInstanceUID"] == "1.9"
    with pytest.raises(InvalidInputError, match="holds no series 9"):
        read_volume([pack(tmp_path, both)], series="9")


def saved_screen(**tags: object) -> bytes:
    """A screenshot of a workstation, in the series but without a position."""
    without = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"))
    kind = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}
    return dicom_slice(chest(), 0, SOPInstanceUID="1.2.3.99", **without, **kind | tags)


def test_a_screenshot_in_the_series_is_left_out_with_a_remark(tmp_path):
    whole = series(chest()) | {"screen": saved_screen()}
    volume = read_volume([pack(tmp_path, whole)])
    assert np.array_equal(volume.voxels_zyx, chest().voxels_zyx)
    assert volume.remarks == ("1 screenshot in the series (secondary capture without a position) left out.",)
    elsewhere = series(chest()) | {"screen": saved_screen(SeriesInstanceUID="1.9")}
    assert read_volume([pack(tmp_path, elsewhere)]).remarks == ()
    with pytest.raises(InvalidInputError, match="screen has no usable ImagePositionPatient"):
        read_volume(
            [
                pack(
                    tmp_path,
                    series(chest())
                    | {
                        "screen": saved_screen(
                            SOPClassUID="1.2.840.10008.5.1.4.1.1.2", ImageType=["ORIGINAL", "PRIMARY"]
                        )
                    },
                )
            ]
        )


def of_kind(number: int, count: int = 10, **tags: object) -> dict[str, bytes]:
    uid = f"1.2.{number}"
    contents = [dicom_slice(chest(), k, SeriesInstanceUID=uid, SeriesNumber=number, **tags) for k in range(count)]
    return {f"{number}/{k}": content for k, content in enumerate(contents)}


def dose_report() -> dict[str, bytes]:
    kind = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR", "SeriesInstanceUID": "1.99"}
    image = dcmread(io.BytesIO(dicom_slice(chest(), 0, **kind)))
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(image, name)
    out = io.BytesIO()
    image.save_as(out)
    return {"report": out.getvalue()}


SCOUT, MIP = ["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "SECONDARY", "AXIAL", "MIP"]
CORONAL, SCREEN = [1, 0, 0, 0, 0, -1], "1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (of_kind(1, 4, ImageType=SCOUT), "series 1 (CT, 4 images), scouts"),
        (
            of_kind(1, 2, ImageType=SCOUT) | of_kind(5, Modality="MR") | dose_report(),
            "series 1 (CT, 2 images), scouts; series 5 (MR, 10 images); 1 SR without images",
        ),
        (
            of_kind(7, ImageOrientationPatient=CORONAL) | of_kind(8, ImageType=MIP),
            "series 7 (CT, 10 images), not in axial slices; series 8 (CT, 10 images), MIP",
        ),
        (
            of_kind(3, 2) | of_kind(9, 4, SOPClassUID=SCREEN, ImagePositionPatient=None),
            "series 3 (CT, 2 images), too few images; series 9 (CT, 4 images), screenshots",
        ),
    ],
)
def test_the_error_about_a_study_without_a_ct_volume_lists_its_contents(tmp_path, study, words):
    with pytest.raises(InvalidInputError) as raised:
        read_volume([pack(tmp_path, study)])
    message = f"scan.zip holds no chest CT in axial slices, but {words}. Provide the axial series of the CT"
    assert str(raised.value) == message
    assert read_volume([pack(tmp_path, study | of_kind(20, 20))]).size_ijk[2] == 20


@pytest.mark.parametrize("kind", ["MIP", "MIP THICK", "CSA MIP", "MINIP", "PROJECTION IMAGE", "MAXIMUM"])
@pytest.mark.parametrize("series_option", [None, "8"], ids=["alone", "named"])
def test_a_projection_is_refused(tmp_path, kind, series_option):
    """In a maximum intensity projection vessels look like nodules, and sizes cannot be measured."""
    other_series = {} if series_option is None else of_kind(1)
    study = of_kind(8, ImageType=["DERIVED", "SECONDARY", "AXIAL", kind]) | other_series | dose_report()
    with pytest.raises(InvalidInputError, match=rf"series 8 \(CT, 10 images\) is a projection \(ImageType {kind}\)"):
        read_volume([pack(tmp_path, study)], series=series_option)


@pytest.mark.parametrize(("kind", "has_remark"), [("MPR", True), ("REFORMATTED", True), ("AVERAGE", False)])
def test_a_reformatted_series_has_a_remark(tmp_path, kind, has_remark):
    (*remarks,) = read_volume([pack(tmp_path, of_kind(8, ImageType=["DERIVED", "SECONDARY", kind]))]).remarks
    sentence = f"The series was reformatted from another (ImageType {kind}). If you have the original, provide it."
    assert remarks == ([sentence] if has_remark else [])


@pytest.mark.parametrize(
    ("thickness", "apart", "has_remark"),
    [(10, 1.0, True), (3, 1.5, True), (5, 5.0, False), (2, 1.0, False), (None, 1.0, False)],
)
def test_thick_overlapping_images_have_a_remark(tmp_path, thickness, apart, has_remark):
    """Slab averages may be spaced like thin slices; thin slices may be marked AVERAGE too."""
    study = members("a", thin(apart), ImageType=["DERIVED", "SECONDARY", "AVERAGE"])
    if thickness is not None:
        study = members("a", thin(apart), ImageType=["DERIVED", "SECONDARY", "AVERAGE"], SliceThickness=thickness)
    (*remarks,) = read_volume([pack(tmp_path, study)]).remarks
    sentence = f"Images are {thickness} mm thick (SliceThickness) and {apart:g} mm apart: nodules smaller "
    assert [remark.startswith(sentence) for remark in remarks] == ([True] if has_remark else [])


def test_the_error_about_a_folder_with_only_reports_says_so(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no DICOM image; it holds 1 SR without images"):
        read_volume([pack(tmp_path, dose_report())])


def test_a_number_shared_by_two_series_is_ambiguous(tmp_path):
    both = members("a", thin(1.0)) | members("b", thin(2.0), SeriesInstanceUID="1.9")
    with pytest.raises(InvalidInputError, match=r"series 4 \(CT, .*\) 1\.2\.3; series 4 \(CT, .*\) 1\.9\. Provide one"):
        read_volume([pack(tmp_path, both)], series="4")


def test_padding_pixels_become_air(tmp_path):
    scan = chest()
    marked = scan.voxels_zyx.astype(np.int32) + 1024
    marked[:, :4, :4] = 63536
    stored = {f"I{k}": dicom_slice(scan, k, PixelData=marked[k].astype(np.uint16).tobytes()) for k in range(20)}
    assert read_volume([pack(tmp_path, stored)]).voxels_zyx.max() > 3000
    for padding in (63536, 63000):
        tags = {"PixelPaddingValue": padding} | ({"PixelPaddingRangeLimit": 65535} if padding == 63000 else {})
        padded = {
            f"I{k}": dicom_slice(scan, k, PixelData=marked[k].astype(np.uint16).tobytes(), **tags) for k in range(20)
        }
        voxels = read_volume([pack(tmp_path, padded)]).voxels_zyx
        assert voxels[:, :4, :4].max() == -1024
        assert np.array_equal(voxels[:, 4:], scan.voxels_zyx[:, 4:])


def test_remarks_distinguish_slice_spacing_from_pixel_spacing():
    coarse = CTVolume(voxels_zyx=chest().voxels_zyx, spacing_mm=(1.8, 1.8, 0.6), origin_lps_mm=(0.0, 0.0, 0.0))
    remarks = result(coarse, found())["remarks"]
    assert len(remarks) == 1 and remarks[0].startswith("Pixels are 1.8 mm wide")


def test_3d_slicer_s_points_name_the_image(tmp_path):
    volume = read_volume([pack(tmp_path, series(chest()))])
    text = slicer_markups(volume, found(nodule_at(volume, 9))).decode()
    assert '"description": "score 0.900, image 11 of 20"' in text


def test_images_of_other_short_series_are_left_out_with_a_remark(tmp_path):
    parts = list(members("a", thin(1.0), SeriesInstanceUID="1.1", SeriesNumber=3).items())
    stray = [dcmread(io.BytesIO(content)) for _, content in parts[-2:]]
    for image in stray:
        image.SeriesInstanceUID, image.SeriesNumber = "1.2", 4
    for name, image in zip(("b/1", "b/2"), stray, strict=True):
        out = io.BytesIO()
        image.save_as(out, enforce_file_format=True)
        parts.append((name, out.getvalue()))
    whole = dict(parts[:-4]) | dict(parts[-2:])
    volume = read_volume([pack(tmp_path, whole)])
    assert volume.size_ijk[2] == 10
    words = "2 axial CT images of other series, too few for a volume, left out."
    assert words in volume.remarks
    assert words in read_volume([pack(tmp_path, whole)], series="3").remarks
