"""The masks of the findings as DICOM Segmentation and NIfTI: voxels, positions, patient, and that others read them."""

import gzip
import logging
import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import CTImageStorage
from scipy import ndimage

from apps.medical.adapters.nifti import nifti
from apps.medical.adapters.source import read_volume
from apps.medical.inference.diameter import measure_nodule
from apps.medical.inference.grid import reorient_to_lps, stored_piece
from apps.medical.outputs.labels import LABELS, label_map, pieces_source
from apps.medical.outputs.report import report_source, structured_report
from apps.medical.outputs.result import result
from apps.medical.outputs.segmentation import SEGMENTATION, can_be_segmented, segmentation
from apps.medical.predictor import NodulePredictor, Options
from apps.medical.service import MedicalCodec
from apps.medical.types import CTVolume, Findings, Nodule, Piece
from shared.deploy.predictor import Request, make_all_files
from tests.apps.medical.chests import WHO, chest, dicom_slice, found, pack, series
from tests.apps.medical.test_enhanced import enhanced
from tests.apps.medical.test_report import groups
from tests.apps.medical.test_storage import ORDERS, SIGNS, stored

FRAME = {"FrameOfReferenceUID": "1.2.9"}


@pytest.fixture
def volume(tmp_path) -> CTVolume:
    return read_volume([pack(tmp_path, series(chest(), **FRAME))])


def nodule(volume: CTVolume, low: tuple[int, int, int] = (20, 12, 6), score: float = 0.9, **fields: object) -> Nodule:
    """A nodule with a random mask in a box of 5 by 7 by 3 voxels, which reaches all sides of the box."""
    mask = np.random.default_rng(low).random((5, 7, 3)) < 0.6
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    return of_mask(volume, mask, low, score, **fields)


def of_mask(volume: CTVolume, mask: np.ndarray, low: tuple[int, int, int], score: float, **fields: object) -> Nodule:
    ends = volume.to_lps_mm([np.array(low) - 0.5, np.array(low) + mask.shape - 0.5])
    box = (*ends.min(axis=0).tolist(), *ends.max(axis=0).tolist())
    piece = Piece(low_ijk=low, size_ijk=mask.shape, bits=np.packbits(mask).tobytes())
    defaults = {"centre_lps_mm": tuple(ends.mean(axis=0).tolist()), "mean_diameter_mm": 10.0, "score": score}
    return Nodule(**{**defaults, "box_lps_mm": box, "axes_mm": (12.0, 8.0), "piece": piece, **fields})


def written(volume: CTVolume, findings: Findings) -> bytes:
    report, pieces = report_source(volume, findings, {"lung_nodules": 6}), pieces_source(volume, findings)
    assert report is not None and pieces is not None and can_be_segmented(volume, findings)
    return segmentation(report, pieces)


def read(content: bytes) -> hd.seg.Segmentation:
    return hd.seg.segread(BytesIO(content))


def test_no_identifier_is_logged(volume, caplog):
    caplog.set_level(logging.INFO)
    assert len(read(written(volume, found(nodule(volume)))).SegmentSequence) == 1
    assert caplog.text == ""


def places_mm(segmentation: hd.seg.Segmentation, segment: int) -> np.ndarray:
    """The centres (n, 3) of a segment's voxels in LPS, by the frames' own positions."""
    (shared,) = segmentation.SharedFunctionalGroupsSequence
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    step_down, step_across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    centres = []
    for frame, own in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        if own.FrameContentSequence[0].DimensionIndexValues[0] == segment:
            j, i = np.nonzero(frame)
            first = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
            centres.append(first + np.outer(i * step_across, across) + np.outer(j * step_down, down))
    return np.concatenate(centres)


def expected_mm(volume: CTVolume, measured: Nodule) -> np.ndarray:
    return volume.to_lps_mm(np.argwhere(measured.piece.mask_ijk) + measured.piece.low_ijk)


def by_place(points: np.ndarray) -> np.ndarray:
    points = points.round(3) + 0.0
    return points[np.lexsort(points.T)]


def same_places(segmentation: hd.seg.Segmentation, volume: CTVolume, *nodules: Nodule) -> None:
    for segment, nodule in enumerate(nodules, start=1):
        found_mm, expected = by_place(places_mm(segmentation, segment)), by_place(expected_mm(volume, nodule))
        assert found_mm.shape == expected.shape
        assert found_mm == pytest.approx(expected, abs=0.01)


def test_a_segment_is_a_finding_of_the_report_with_its_identifiers(volume):
    findings = found(nodule(volume), nodule(volume, (60, 40, 12), 0.7), nodule(volume, (70, 40, 3), 0.2))
    segmentation = read(written(volume, findings))
    report = dcmread(BytesIO(structured_report(report_source(volume, findings, {"lung_nodules": 6}))))
    assert segmentation.SegmentationType == "BINARY" and segmentation.SegmentsOverlap == "NO"
    described = [segmentation.get_segment_description(number) for number in segmentation.segment_numbers]
    assert [segment.tracking_uid for segment in described] == [group.tracking_uid for group in groups(report)]
    assert [segment.tracking_id for segment in described] == ["Finding 1", "Finding 2"]
    for description in described:
        assert description.segmented_property_category.meaning == "Morphologically Abnormal Structure"
        assert description.segmented_property_type == groups(report)[0].finding_type
        assert description.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
        assert (description.algorithm_identification.name, description.algorithm_identification.version) == (
            "Trivium lung nodules",
            "lung_nodules 6",
        )
    assert segmentation.StudyInstanceUID == volume.identifiers["StudyInstanceUID"]
    assert segmentation.FrameOfReferenceUID == volume.identifiers["FrameOfReferenceUID"]
    assert segmentation.SeriesInstanceUID not in (volume.identifiers["SeriesInstanceUID"], report.SeriesInstanceUID)
    same_places(segmentation, volume, *findings.nodules[:2])
    assert segmentation.number_of_frames == 6
    # Each frame references its source image, by which highdicom combines them.
    images = [volume.images[k].sop_instance_uid for k in range(6, 9)]
    planes = segmentation.get_pixels_by_source_instance(images, segment_numbers=[1])
    assert planes.sum() == findings.nodules[0].piece.voxels
    assert (planes[..., 0].transpose(2, 1, 0)[20:25, 12:19] == findings.nodules[0].piece.mask_ijk).all()


def turn(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


TILT = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])


@pytest.mark.parametrize(
    "direction",
    [turn(20), turn(45) @ TILT, np.diag([-1.0, 1.0, -1.0]), np.diag([-1.0, -1.0, 1.0])],
    ids=["turned", "oblique", "feet first", "prone"],
)
def test_frames_have_the_positions_of_the_scans_images(tmp_path, direction):
    turned = replace(chest(), direction=direction, spacing_mm=(2.5, 3.0, 5.0))
    scan = read_volume([pack(tmp_path, series(turned, **FRAME))])
    findings = found(nodule(scan), nodule(scan, (60, 40, 12), 0.7))
    same_places(read(written(scan, findings)), scan, *findings.nodules)
    grid = read(written(scan, findings)).get_volume(combine_segments=True, allow_missing_positions=True)
    assert np.abs(np.linalg.det(grid.affine[:3, :3])) == pytest.approx(np.prod(scan.spacing_mm), rel=1e-3)


def test_files_in_reversed_order_change_nothing(tmp_path):
    scan = chest()
    slices = [dicom_slice(scan, k, **FRAME, InstanceNumber=k + 1) for k in range(20)]
    upwards, downwards = tmp_path / "up", tmp_path / "down"
    for folder, ordered in ((upwards, slices), (downwards, slices[::-1])):
        folder.mkdir()
        for number, content in enumerate(ordered):
            (folder / f"{number:03}.dcm").write_bytes(content)
    segmentations = [
        read(written(volume, found(nodule(volume)))) for volume in (read_volume([upwards]), read_volume([downwards]))
    ]
    assert segmentations[0].SeriesInstanceUID == segmentations[1].SeriesInstanceUID
    same_places(segmentations[1], read_volume([upwards]), nodule(read_volume([upwards])))


def test_frames_of_an_enhanced_ct_are_referenced(tmp_path):
    image = dcmread(BytesIO(enhanced(chest())))
    image.FrameOfReferenceUID = "1.2.9"
    image.save_as(tmp_path / "enhanced.dcm")
    volume = read_volume([tmp_path / "enhanced.dcm"])
    findings = found(nodule(volume), nodule(volume, (60, 40, 12), 0.7))
    segmentation = read(written(volume, findings))
    same_places(segmentation, volume, *findings.nodules)
    frames = {
        own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for own in segmentation.PerFrameFunctionalGroupsSequence
    }
    assert frames == {volume.images[k].instance_number for k in (6, 7, 8, 12, 13, 14)}
    # highdicom does not support frames outside the volume, a second file, or another class.
    for changed in ({"frame": 40}, {"sop_instance_uid": "1.2.3.77"}, {"sop_class_uid": CTImageStorage}):
        images = (replace(volume.images[0], **changed), *volume.images[1:])
        assert not can_be_segmented(replace(volume, images=images), findings)


def test_findings_that_overlap_keep_all_their_voxels(volume, tmp_path):
    findings = found(nodule(volume), nodule(volume, (22, 14, 7), 0.8))
    segmentation = read(written(volume, findings))
    assert segmentation.SegmentsOverlap == "YES"
    same_places(segmentation, volume, *findings.nodules)
    labels = SimpleITK.GetArrayFromImage(image_of(findings, volume, tmp_path / LABELS))
    assert (labels == 1).sum() == findings.nodules[0].piece.voxels  # the higher score wins where they overlap
    assert 0 < (labels == 2).sum() < findings.nodules[1].piece.voxels


def test_frames_whose_pixels_do_not_fill_bytes_are_packed_together(tmp_path):
    scan = chest()
    odd = replace(scan, voxels_zyx=np.ascontiguousarray(scan.voxels_zyx[:, :79, :99]))
    volume = read_volume([pack(tmp_path, series(odd, **FRAME))])
    findings = found(nodule(volume), nodule(volume, (94, 72, 17), 0.7))
    same_places(read(written(volume, findings)), volume, *findings.nodules)


def test_a_finding_that_could_not_be_measured_has_no_segment(volume):
    unmeasured = replace(nodule(volume), piece=None, axes_mm=None)
    findings = found(unmeasured, nodule(volume, (60, 40, 12), 0.7))
    segmentation = read(written(volume, findings))
    (described,) = [segmentation.get_segment_description(number) for number in segmentation.segment_numbers]
    assert described.tracking_id == "Finding 2"
    same_places(segmentation, volume, findings.nodules[1])
    assert not can_be_segmented(volume, found(unmeasured, nodule(volume, score=0.2)))
    assert pieces_source(volume, found(unmeasured)) is None


def test_there_is_no_segmentation_without_a_frame_of_reference(tmp_path):
    volume = read_volume([pack(tmp_path, series(chest()))])
    assert not can_be_segmented(volume, found(nodule(volume)))


@pytest.mark.parametrize(
    "sop_class", ["1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2.1", "1.3.12.2.1107.5.9.1"]
)
def test_there_is_no_segmentation_of_single_images_of_another_class(volume, sop_class):
    images = tuple(replace(image, sop_class_uid=sop_class) for image in volume.images)
    assert not can_be_segmented(replace(volume, images=images), found(nodule(volume)))


def test_the_patient_is_named_only_on_request(tmp_path):
    scan = pack(tmp_path, series(chest(), SpecificCharacterSet="ISO_IR 192", **FRAME, **WHO))
    for is_named, expected in ((False, dict.fromkeys(WHO, "")), (True, WHO)):
        volume = read_volume([scan], patient=is_named)
        content = written(volume, found(nodule(volume)))
        assert {keyword: str(read(content).get(keyword) or "") for keyword in WHO} == expected
        assert (WHO["PatientID"].encode() in content) is is_named
        assert WHO["PatientID"].encode() not in pieces_source(volume, found(nodule(volume)))


def test_only_equal_findings_share_a_series(volume):
    weak = nodule(volume, (60, 40, 12), 0.2)
    first, with_weak, moved = (
        read(written(volume, found(*nodules)))
        for nodules in ([nodule(volume)], [nodule(volume), weak], [nodule(volume, (20, 12, 7))])
    )
    assert first.SeriesInstanceUID == with_weak.SeriesInstanceUID != moved.SeriesInstanceUID
    assert first.SOPInstanceUID != moved.SOPInstanceUID
    uids = [dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID for dataset in (first, with_weak)]
    assert uids[0] == uids[1] == first.DimensionIndexSequence[1].DimensionOrganizationUID


LOST = {"LossyImageCompression": "01", "LossyImageCompressionRatio": ["4.5", "12"]}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, ["00", None, None]),
        ({"LossyImageCompression": "00", "LossyImageCompressionMethod": "ISO_15444_1"}, ["00", None, None]),
        ({**LOST, "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"]}, ["01", 12, "ISO_15444_1"]),
        ({"LossyImageCompression": "01"}, ["01", None, None]),
    ],
)
def test_lossy_compression_of_the_ct_is_stated_in_both_files(tmp_path, tags, expected):
    scan = read_volume([pack(tmp_path, series(chest(), **FRAME, **tags))])
    findings = found(nodule(scan))
    segmentation = read(written(scan, findings))
    keywords = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    assert [segmentation.get(keyword) for keyword in keywords] == expected
    report = structured_report(report_source(scan, findings, {}))
    assert (b"images were lossy compressed" in report) is (expected[0] == "01")


def test_the_file_is_reproducible(volume):
    findings = found(nodule(volume))
    report, pieces = report_source(volume, findings, {"lung_nodules": 6}), pieces_source(volume, findings)
    assert segmentation(report, pieces) == segmentation(report, pieces)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("multi", [False, True], ids=["single", "enhanced"])
def test_dicom3tools_finds_no_errors(tmp_path, multi):
    scan = pack(tmp_path, series(chest(), SpecificCharacterSet="ISO_IR 192", **FRAME, **WHO))
    if multi:
        image = dcmread(BytesIO(enhanced(chest())))
        image.FrameOfReferenceUID = "1.2.9"
        image.save_as(scan := tmp_path / "enhanced.dcm")
    volume = read_volume([scan], patient=True)
    for name, nodules in (("one", [nodule(volume)]), ("two", [nodule(volume), nodule(volume, (22, 14, 7), 0.8)])):
        (tmp_path / name).write_bytes(written(volume, found(*nodules)))
        completed = subprocess.run(["dciodvfy", str(tmp_path / name)], capture_output=True, text=True, timeout=60)
        assert "Segmentation" in completed.stdout + completed.stderr
        assert "Error" not in completed.stdout + completed.stderr


def image_of(findings: Findings, volume: CTVolume, path: Path) -> SimpleITK.Image:
    source = pieces_source(volume, findings)
    assert source is not None
    path.write_bytes(label_map(source))
    return SimpleITK.ReadImage(str(path))


@pytest.mark.parametrize(
    "direction", [np.eye(3), turn(20) @ TILT, np.diag([-1.0, 1.0, -1.0]), np.diag([-1.0, -1.0, 1.0])]
)
def test_labels_are_ranks_in_the_scan_s_own_grid(tmp_path, direction):
    scan = replace(chest(), direction=direction, spacing_mm=(2.5, 3.0, 5.0))
    (tmp_path / "scan.nii.gz").write_bytes(nifti(scan))
    volume = read_volume([tmp_path / "scan.nii.gz"])
    findings = found(nodule(volume), replace(nodule(volume), piece=None), nodule(volume, (60, 40, 12), 0.2))
    image = image_of(findings, volume, tmp_path / LABELS)
    scan_image = SimpleITK.ReadImage(str(tmp_path / "scan.nii.gz"))
    assert image.GetSize() == scan_image.GetSize() and image.GetSpacing() == scan_image.GetSpacing()
    assert image.GetDirection() == scan_image.GetDirection() and image.GetOrigin() == scan_image.GetOrigin()
    for rank in (1, 3):
        k, j, i = np.nonzero(SimpleITK.GetArrayFromImage(image) == rank)
        places_lps_mm = [image.TransformIndexToPhysicalPoint(list(map(int, at))) for at in zip(i, j, k, strict=True)]
        assert by_place(np.array(places_lps_mm)) == pytest.approx(
            by_place(expected_mm(volume, findings.nodules[rank - 1])), abs=0.01
        )
    read_back = nibabel.load(tmp_path / LABELS)
    assert read_back.affine == pytest.approx(nibabel.load(tmp_path / "scan.nii.gz").affine)
    assert set(np.unique(np.asarray(read_back.dataobj))) == {0, 1, 3} and read_back.get_data_dtype() == np.uint8


@settings(max_examples=48)
@given(st.sampled_from(ORDERS), st.sampled_from(SIGNS))
def test_a_mask_refers_to_the_voxels_of_the_scan_as_provided(order, signs):
    scan = CTVolume(
        voxels_zyx=np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5),
        spacing_mm=(1.0, 2.0, 3.0),
        origin_lps_mm=(5.0, -6.0, 7.0),
    )
    mask = np.random.default_rng(0).random((2, 3, 4)) < 0.5
    handed_in = stored(scan, order, signs)
    piece = stored_piece(handed_in, mask, (2, 3, 1))
    expected = reorient_to_lps(handed_in).voxels_zyx.transpose(2, 1, 0)[2:4, 3:6, 1:5][mask]
    part = handed_in.voxels_zyx.transpose(2, 1, 0)[
        tuple(slice(a, a + n) for a, n in zip(piece.low_ijk, piece.size_ijk, strict=True))
    ]
    assert sorted(part[piece.mask_ijk]) == sorted(expected)
    assert piece.voxels == mask.sum()


@pytest.mark.parametrize(("size_mm", "most"), [(6.0, 0.21), (10.0, 0.08), (20.0, 0.03)])
def test_the_volume_of_a_sphere(size_mm, most):
    """It is too small by nearly the same share wherever the centre lies between voxels; by more for small spheres."""
    spacing = np.array([0.7, 0.7, 1.25])
    errors = []
    for shift in np.random.default_rng(1).random((12, 3)):
        middle = (np.array([21, 21, 12]) + shift) * spacing
        index = [
            (np.arange(4 * n) + 0.5) / 4 * step - at for n, step, at in zip((44, 44, 26), spacing, middle, strict=True)
        ]
        inside = np.sqrt(index[0][:, None, None] ** 2 + index[1][:, None] ** 2 + index[2] ** 2) < size_mm / 2
        share = inside.reshape(44, 4, 44, 4, 26, 4).mean(axis=(1, 3, 5))  # of each voxel
        image = ndimage.gaussian_filter(900 * share - 860, (0.6, 0.6, 0.4)).astype(np.float32)
        ends = np.concatenate([(middle - size_mm / 2) / spacing, (middle + size_mm / 2) / spacing])
        measured = measure_nodule(image, ends, spacing)
        assert measured is not None
        assert measured.mask_xyz.shape == tuple((measured.box[3:] - measured.box[:3]).astype(int))
        errors.append(measured.mask_xyz.sum() * spacing.prod() / (np.pi / 6 * size_mm**3) - 1)
    assert -most < min(errors) and max(errors) < min(errors) + 0.06 <= 0.06


def test_a_scans_findings_have_masks_and_files(untrained: NodulePredictor, tmp_path):
    codec = MedicalCodec(untrained)
    feet_first = replace(chest(), direction=np.diag([-1.0, 1.0, -1.0]), origin_lps_mm=(150.0, -120.0, -300.0))
    decoded = codec.decode(Request(files=(pack(tmp_path, series(feet_first, **FRAME)),), options={}))
    (volume,) = decoded.inputs
    (findings,) = untrained.predict(decoded.inputs, Options(min_score=0.0, max_findings=20))
    findings = replace(findings, operating_score=findings.nodules[4].score)
    response = make_all_files(codec.encode(decoded, [findings]), codec)
    listed = response.result["findings"]
    pieces = [nodule.piece for nodule in findings.nodules]
    assert any(pieces[:5])
    for nodule, shown, piece in zip(findings.nodules, listed, pieces, strict=True):
        if piece is None:
            assert shown["volume_mm3"] is None
            continue
        assert shown["volume_mm3"] == pytest.approx(piece.voxels * 45.0)
        places = expected_mm(volume, nodule)
        half = np.array([1.5, 1.5, 2.5])
        assert [*(places.min(axis=0) - half), *(places.max(axis=0) + half)] == pytest.approx(
            nodule.box_lps_mm, abs=1e-6
        )
    segmentation = read(response.files[SEGMENTATION])
    same_places(segmentation, volume, *[nodule for nodule in findings.nodules[:5] if nodule.piece])
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress(response.files[LABELS])).shape == (100, 80, 20)
    plain = codec.encode(replace(decoded, inputs=(chest(),)), [findings]).later.files
    assert LABELS in plain and SEGMENTATION not in plain
    assert LABELS not in codec.encode(decoded, [found()]).later.files
    assert result(volume, found())["findings"] == []
