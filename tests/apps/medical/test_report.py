"""The DICOM report of the findings: its content, regions and patient, and that other software reads it."""

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation

from apps.medical.adapters.source import read_volume
from apps.medical.outputs.report import REPORT, report_source, structured_report
from apps.medical.outputs.result import result
from apps.medical.service import INCOMPLETE, MedicalCodec
from apps.medical.types import Nodule
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError
from tests.apps.medical.chests import WHO, chest, found, pack, series
from tests.apps.medical.test_enhanced import enhanced


def nodule(volume, k, score, label="nodule", axes=(12.0, 8.0)):
    middle = volume.to_lps_mm([20, 12, k])
    low, high = middle - [6, 4, 5], middle + [6, 4, 5]
    return Nodule(
        centre_lps_mm=tuple(middle.tolist()),
        mean_diameter_mm=10.0,
        score=score,
        box_lps_mm=(*low.tolist(), *high.tolist()),
        label=label,
        axes_mm=axes,
    )


def written(volume, findings, **models):
    source = report_source(volume, findings, models)
    assert source is not None
    return dcmread(BytesIO(structured_report(source)))


def groups(report):
    content = hd.sr.Comprehensive3DSR.from_dataset(report).content
    return content.get_planar_roi_measurement_groups()


def test_a_finding_is_a_region_on_its_image_with_sizes(scan):
    volume = read_volume([scan])
    report = written(volume, found(nodule(volume, 7, 0.875), nodule(volume, 3, 0.2)), lung_nodules=6)
    (group,) = groups(report)  # the other finding is below the operating score
    region = group.roi
    assert region.graphic_type == hd.sr.GraphicTypeValues.POLYLINE
    assert group.finding_type.meaning == "Nodule" and group.finding_sites[0].value.meaning == "Lung"
    values = [(m.name.meaning, m.value, m.unit.value) for m in group.get_measurements()]
    assert values == [
        ("Diameter", 10.0, "mm"),
        ("Long axis", 12.0, "mm"),
        ("Short axis", 8.0, "mm"),
        ("Certainty of Finding", 87.5, "%"),
    ]
    spacing = np.array(volume.spacing_mm[:2])
    corner = volume.to_index_ijk(nodule(volume, 7, 1).box_lps_mm[:3])[:2] + 0.5
    assert region.value[0] == pytest.approx(corner, abs=0.01)
    assert np.ptp(region.value, axis=0) * spacing == pytest.approx([12, 8], abs=0.05)
    assert np.array_equal(region.value[0], region.value[-1])
    (referenced,) = report.CurrentRequestedProcedureEvidenceSequence
    (inside,) = referenced.ReferencedSeriesSequence
    assert referenced.StudyInstanceUID == volume.identifiers["StudyInstanceUID"]
    assert inside.SeriesInstanceUID == volume.identifiers["SeriesInstanceUID"]
    assert {reference.ReferencedSOPInstanceUID for reference in inside.ReferencedSOPSequence} == {
        image.sop_instance_uid for image in volume.images
    }
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.8"
    assert "lung_nodules 6" in str(report) and report.VerificationFlag == "UNVERIFIED"


def test_a_frame_of_an_enhanced_ct_is_referenced_by_its_number(tmp_path):
    (tmp_path / "enhanced.dcm").write_bytes(enhanced(chest()))
    volume = read_volume([tmp_path / "enhanced.dcm"])
    assert len({image.sop_instance_uid for image in volume.images}) == 1
    (group,) = groups(written(volume, found(nodule(volume, 7, 0.9))))
    image = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2.1"
    assert image.ReferencedFrameNumber == volume.images[7].instance_number


def test_the_patient_is_named_only_on_request(scan):
    for is_named, expected in ((False, dict.fromkeys(WHO, "")), (True, WHO)):
        volume = read_volume([scan], patient=is_named)
        report = written(volume, found(nodule(volume, 7, 0.9)))
        assert {keyword: str(report.get(keyword) or "") for keyword in WHO} == expected
        assert report.StudyInstanceUID == volume.identifiers["StudyInstanceUID"]


def test_invalid_patient_values_of_the_ct_are_copied_unchanged(tmp_path):
    odd = {"PatientBirthDate": "01/02/1950", "PatientSex": "W", "AccessionNumber": "A" * 40, "StudyTime": "25:00"}
    with disable_value_validation():
        scan = pack(tmp_path, series(chest(), **odd))
    volume = read_volume([scan], patient=True)
    report = written(volume, found(nodule(volume, 7, 0.9)))
    assert {keyword: str(report[keyword].value) for keyword in odd} == odd


def test_the_report_contains_the_remarks(scan):
    volume = replace(read_volume([scan]), remarks=("Images are missing.",))
    report = written(volume, replace(found(nodule(volume, 7, 0.9)), unlisted=1))
    comments = [
        item.TextValue for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121106"
    ]
    assert comments[0] == "Images are missing." and comments == result(volume, replace(found(), unlisted=1))["remarks"]
    assert len(groups(report)) == 1


def test_an_incomplete_series_says_so_in_the_case_and_in_the_report(scan):
    codec = MedicalCodec()
    for options, is_incomplete in (({"incomplete": "yes"}, True), ({"incomplete": "no"}, False), ({}, False)):
        decoded = codec.decode(Request(files=(scan,), options=options))
        response = codec.encode(decoded, [found(nodule(decoded.inputs[0], 7, 0.9))])
        report = codec.make(REPORT, response.later.sources)
        assert (INCOMPLETE in response.result["remarks"]) is is_incomplete and (
            INCOMPLETE.encode() in report
        ) is is_incomplete
    with pytest.raises(InvalidInputError, match="the option incomplete is 'maybe'; expected yes or no"):
        codec.decode(Request(files=(scan,), options={"incomplete": "maybe"}))


def test_the_option_patient_is_yes_or_no(scan):
    codec = MedicalCodec()
    for option, is_kept in ((None, False), ("no", False), ("yes", True)):
        options = {} if option is None else {"patient": option}
        (volume,) = codec.decode(Request(files=[scan], options=options)).inputs
        assert bool(volume.patient) is is_kept
    with pytest.raises(InvalidInputError, match="the option patient is 'true'; expected yes or no"):
        codec.decode(Request(files=[scan], options={"patient": "true"}))


def test_the_file_is_reproducible(scan):
    volume = read_volume([scan])
    source = report_source(volume, found(nodule(volume, 7, 0.9)), {})
    assert source is not None and structured_report(source) == structured_report(source)
    report = dcmread(BytesIO(structured_report(source)))
    made_at = datetime.fromisoformat(json.loads(source)["made"])
    assert (report.ContentDate, report.ContentTime) == (f"{made_at:%Y%m%d}", f"{made_at:%H%M%S}")
    assert (report.InstanceCreationDate, report.InstanceCreationTime) == (report.ContentDate, report.ContentTime)


def test_the_same_findings_of_another_analysis_are_another_report_in_the_same_series(scan):
    volume = read_volume([scan])
    source = json.loads(report_source(volume, found(nodule(volume, 7, 0.9)), {}) or "")
    first, later = (
        dcmread(BytesIO(structured_report(json.dumps({**source, "made": made_at}).encode())))
        for made_at in ("2026-01-31T09:30:00+01:00", "2026-02-01T10:00:00+01:00")
    )
    assert (later.ContentDate, later.ContentTime) == ("20260201", "100000")
    assert first.SOPInstanceUID != later.SOPInstanceUID
    assert first.SeriesInstanceUID == later.SeriesInstanceUID != volume.identifiers["SeriesInstanceUID"]
    assert groups(first)[0].tracking_uid == groups(later)[0].tracking_uid
    other_finding = written(volume, found(nodule(volume, 8, 0.9)))
    assert other_finding.SeriesInstanceUID != first.SeriesInstanceUID


def test_there_is_no_report_without_dicom_or_without_a_finding_above_the_operating_score(scan):
    codec = MedicalCodec()
    decoded = codec.decode(Request(files=[scan], options={}))
    (volume,) = decoded.inputs
    for findings in (found(), found(nodule(volume, 7, 0.2)), found(searched=False)):
        assert REPORT not in codec.encode(decoded, [findings]).later.files
    assert report_source(chest(), found(nodule(volume, 7, 0.9)), {}) is None


def test_weaker_findings_do_not_change_series_and_tracking_identifiers(scan):
    volume = read_volume([scan])
    sure, weak = nodule(volume, 7, 0.9), nodule(volume, 3, 0.2)
    sure_only, with_weak = written(volume, found(sure)), written(volume, found(sure, weak))
    assert sure_only.SeriesInstanceUID == with_weak.SeriesInstanceUID
    assert groups(sure_only)[0].tracking_uid == groups(with_weak)[0].tracking_uid


@pytest.mark.parametrize("degrees", [10, 30, 45])
def test_a_region_has_the_same_size_in_an_oblique_image(scan, degrees):
    turn = np.deg2rad(degrees)
    turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    volume = replace(read_volume([scan]), direction=turned)
    (group,) = groups(written(volume, found(nodule(volume, 7, 0.9))))
    sides = np.ptp(group.roi.value, axis=0) * volume.spacing_mm[:2]
    assert sides == pytest.approx([12, 8], abs=0.1)
    assert (group.roi.value[0] + group.roi.value[2]) / 2 == pytest.approx([20.5, 12.5], abs=0.1)


def test_images_of_a_private_class_give_no_report(scan):
    volume = read_volume([scan])
    images = tuple(replace(image, sop_class_uid="1.3.12.2.1107.5.9.1") for image in volume.images)
    assert report_source(replace(volume, images=images), found(nodule(volume, 7, 0.9)), {}) is None


def test_images_that_share_an_identifier_give_no_report(scan):
    volume = read_volume([scan])
    alike = tuple(replace(image, sop_instance_uid="1.2.3.4") for image in volume.images)
    assert report_source(replace(volume, images=alike), found(nodule(volume, 7, 0.9)), {}) is None


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("value", ["Doe^Jane", "1.2..3", "1." + "2" * 63, "1.2.x"])
@pytest.mark.filterwarnings("ignore:(Invalid value|The value length):UserWarning")
def test_invalid_identifiers_give_no_report_but_a_remark(tmp_path, keyword, value):
    volume = read_volume([pack(tmp_path, series(chest(), **{keyword: value}))])
    source = report_source(volume, found(nodule(volume, 7, 0.9)), {})
    assert (source is None) is (keyword != "FrameOfReferenceUID")  # only the segmentation needs it
    text = json.dumps(result(volume, found(nodule(volume, 7, 0.9))))
    assert f"{keyword} " in text and "of the images ignored (not a valid DICOM UID" in text
    assert value not in text and value not in str(source) and keyword not in volume.identifiers


@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
def test_leading_zeros_of_an_identifier_are_kept(tmp_path):
    volume = read_volume([pack(tmp_path, series(chest(), StudyInstanceUID="1.2.03"))])
    assert written(volume, found(nodule(volume, 7, 0.9))).StudyInstanceUID == "1.2.03"


def test_a_report_that_leaves_findings_out_is_partial(scan):
    volume = read_volume([scan])
    some = found(nodule(volume, 7, 0.9))
    flags = [written(volume, replace(some, unlisted=unlisted)).CompletionFlag for unlisted in (0, 4)]
    assert flags == ["COMPLETE", "PARTIAL"]


def test_of_several_patient_ids_the_first_is_copied(tmp_path):
    volume = read_volume([pack(tmp_path, series(chest(), PatientID="4711\\KIS"))], patient=True)
    assert written(volume, found(nodule(volume, 7, 0.9))).PatientID == "4711"


def test_custom_labels_become_custom_codes(scan):
    volume = read_volume([scan])
    (group,) = groups(written(volume, found(nodule(volume, 7, 0.9, label="ground glass", axes=None))))
    assert (group.finding_type.meaning, group.finding_type.scheme_designator) == ("ground glass", "99TRIVIUM")
    assert [m.name.meaning for m in group.get_measurements()] == ["Diameter", "Certainty of Finding"]
    codes = set()
    for place in ("upper", "lower"):
        (group,) = groups(written(volume, found(nodule(volume, 7, 0.9, label=f"spiculated mass of the {place} lobe"))))
        codes.add(group.finding_type.value)
    assert len(codes) == 2 and all(len(code) <= 16 for code in codes)


def test_the_codec_offers_it_for_dicom(scan):
    codec = MedicalCodec()
    decoded = codec.decode(Request(files=[scan], options={}))
    response = codec.encode(decoded, [found(nodule(decoded.inputs[0], 7, 0.9))])
    (source,) = response.later.files[REPORT]
    assert dcmread(BytesIO(codec.make(REPORT, {source: response.later.sources[source]}))).Modality == "SR"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dicom3tools_finds_no_errors(scan, tmp_path):
    volume = read_volume([scan], patient=True)
    findings = found(nodule(volume, 7, 0.9), nodule(volume, 3, 0.8))
    source = report_source(volume, findings, {"lung_nodules": 6})
    assert source is not None
    (tmp_path / REPORT).write_bytes(structured_report(source))
    completed = subprocess.run(["dciodvfy", str(tmp_path / REPORT)], capture_output=True, text=True, timeout=60)
    assert "Comprehensive3DSR" in completed.stdout + completed.stderr
    assert "Error" not in completed.stdout + completed.stderr
