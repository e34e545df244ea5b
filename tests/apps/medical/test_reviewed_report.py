"""The report of a reviewed case over HTTP: its content and observers, and that other software reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from fastapi.testclient import TestClient
from highdicom.sr import GraphicTypeValues
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from apps.medical.adapters.nifti import nifti
from apps.medical.adapters.source import read_volume
from apps.medical.outputs.report import report_source
from apps.medical.outputs.result import result
from apps.medical.outputs.reviewed import review_json, reviewed_report, reviewed_source
from shared.errors import InvalidInputError
from shared.review import Review
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.apps.medical.chests import found, pack, series
from tests.apps.medical.test_enhanced import enhanced
from tests.apps.medical.test_fhir import assert_valid, components, resources
from tests.apps.medical.test_report import nodule
from tests.browser.medical_site import AT_MM, chest, medical_app

WHO = {"PatientName": "Müller^Jürgen", "PatientID": "4711", "SpecificCharacterSet": "ISO_IR 192"}
MISSED = {"centre_lps_mm": [-54.0, 9.0, -340.0], "diameter_mm": 7.5}
REPORT, FHIR = "findings.sr.dcm", "findings.fhir.json"
Case = str
"""The address of a case."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("medical")
    settings = Settings(store=root / "store", device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"medical": medical_app(root)})) as test_client:
        yield test_client


@pytest.fixture
def case(client: TestClient, tmp_path: Path) -> Case:
    """A case with two findings, of which the first, 60 mm to the right, reaches the operating score."""
    return hand_in(client, pack(tmp_path, series(chest(), **WHO)), patient="yes")


def hand_in(client: TestClient, file: Path, **options: str) -> Case:
    response = client.post("/api/medical/predict", files={"files": (file.name, file.read_bytes())}, data=options)
    assert response.status_code == 200, response.text
    return f"/api/medical/cases/{response.json()['case']}"


def review(client: TestClient, case: Case, **fields: Any) -> None:
    response = client.put(f"{case}/review", json=fields)
    assert response.status_code == 200, response.text


def report(client: TestClient, case: Case, **options: str) -> Dataset:
    response = client.get(f"{case}/review/{REPORT}", params=options)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/dicom"
    return dcmread(BytesIO(response.content))


def refusal_detail(client: TestClient, case: Case, status: int, **options: str) -> str:
    for name in (REPORT, FHIR):
        response = client.get(f"{case}/review/{name}", params=options)
        assert response.status_code == status, response.text
    return str(response.json()["detail"])


def groups(dataset: Dataset) -> list[Any]:
    return hd.sr.Comprehensive3DSR.from_dataset(dataset).content.get_planar_roi_measurement_groups()


def observers(items: Any) -> list[str]:
    """The observers that a sequence of content items states."""
    names = {codes.DCM.PersonObserverName.value, codes.DCM.DeviceObserverName.value}
    found = [item for item in items if item.ConceptNameCodeSequence[0].CodeValue in names]
    assert all(item.RelationshipType == "HAS OBS CONTEXT" for item in found)
    return [str(item.get("PersonName") or item.TextValue) for item in found]


def comments(dataset: Dataset) -> list[str]:
    return [item.TextValue for item in dataset.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121106"]


def tracked(dataset: Dataset) -> list[tuple[str, str]]:
    return [(group.tracking_identifier, group.tracking_uid) for group in groups(dataset)]


def test_it_contains_accepted_and_added_findings_but_no_rejected_ones(client: TestClient, case: Case) -> None:
    note = "2 is a nodule.\nKnötchen"
    verdicts = {"1": "rejected", "2": "accepted"}
    review(client, case, reviewer="Ada", verdicts=verdicts, missed=[MISSED], note=note)
    dataset = report(client, case)
    found, added = groups(dataset)
    # The accepted finding is below the operating score.
    assert found.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.15"
    assert [(m.name.meaning, m.value) for m in found.get_measurements()] == [
        ("Diameter", 9.0),
        ("Long axis", 9.5),
        ("Short axis", 8.5),
        ("Certainty of Finding", 30.0),
    ]
    assert added.roi.graphic_type == GraphicTypeValues.CIRCLE
    centre, edge = added.roi.value
    index_ijk = chest().to_index_ijk(MISSED["centre_lps_mm"])
    assert centre == pytest.approx(index_ijk[:2] + 0.5, abs=0.01)
    assert abs(edge - centre) * 3.0 == pytest.approx([3.75, 0.0], abs=0.05)
    assert added.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.13"
    assert [(m.name.meaning, m.value, m.derivation) for m in added.get_measurements()] == [("Diameter", 7.5, None)]
    assert added.finding_type.meaning == "Nodule" and added.finding_sites[0].value.meaning == "Lung"
    assert observers(dataset.ContentSequence) == ["Ada^", "Trivium"]
    containers = dataset.ContentSequence[-1 - len(comments(dataset))].ContentSequence
    assert [observers(group.ContentSequence) for group in containers] == [["Trivium"], ["Ada^"]]
    assert "known" not in str(containers[1]) and "Algorithm" not in str(containers[1])
    summary, reader_note, *_ = comments(dataset)
    assert re.match(r"Reviewed by Ada on 20\d\d-\d\d-\d\d at \d\d:\d\d UTC: 1 software finding accepted, ", summary)
    assert "1 rejected, 1 nodule added by the reader." in summary
    assert reader_note == "2 is a nodule.\r\nKnötchen"
    assert (str(dataset.PatientName), dataset.PatientID, dataset.StudyInstanceUID) == ("Müller^Jürgen", "4711", "1.2")
    assert (dataset.VerificationFlag, dataset.CompletionFlag, dataset.PreliminaryFlag) == (
        "UNVERIFIED",
        "COMPLETE",
        "PRELIMINARY",
    )
    assert "reviewed" in dataset.SeriesDescription and "VerifyingObserverSequence" not in dataset


def test_it_does_not_change_the_files_of_the_case_and_references_the_original_report(
    client: TestClient, case: Case
) -> None:
    review(client, case, verdicts={"1": "accepted"}, missed=[MISSED])
    for url in client.get(case).json()["files"].values():
        assert client.get(url).status_code == 200
    earlier = dcmread(BytesIO(client.get(f"{case}/files/{REPORT}").content))
    dataset = report(client, case)
    assert tracked(dataset)[0] == tracked(earlier)[0] and len(set(tracked(dataset))) == 2
    assert dataset.SeriesInstanceUID != earlier.SeriesInstanceUID and dataset.SeriesNumber != earlier.SeriesNumber
    (before,) = dataset.PredecessorDocumentsSequence
    (of_series,) = before.ReferencedSeriesSequence
    assert of_series.SeriesInstanceUID == earlier.SeriesInstanceUID
    assert of_series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == earlier.SOPInstanceUID


def test_it_is_reproducible_and_a_changed_review_gives_another_report_in_the_series(
    client: TestClient, case: Case
) -> None:
    review(client, case, reviewer="Ada", verdicts={"1": "accepted"}, missed=[MISSED])
    first, second = (client.get(f"{case}/review/{REPORT}").content for _ in range(2))
    assert first == second
    first_report = dcmread(BytesIO(first))
    smaller = {**MISSED, "diameter_mm": 4.0}
    review(client, case, reviewer="Ada", verdicts={"2": "accepted"}, missed=[smaller, MISSED])
    two = report(client, case)
    assert first_report.SOPInstanceUID != two.SOPInstanceUID and first_report.SeriesInstanceUID == two.SeriesInstanceUID
    # An added nodule keeps its identity wherever it is in the list.
    uids = [[uid for _, uid in tracked(dataset)] for dataset in (first_report, two)]
    assert uids[0][1] == uids[1][2] and len({*uids[0], *uids[1]}) == 4


@pytest.mark.parametrize(
    ("reviewer", "written"),
    [
        ("Doe^John", "Doe^John"),
        ("Müller", "Müller^"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("a\\b", "a/b^"),
        ("a=b=c=d", "a b c d^"),
        ("N" * 64, "N" * 63 + "^"),
        (None, "Unnamed reader^"),
    ],
)
def test_the_reviewer_has_a_dicom_person_name(
    client: TestClient, case: Case, reviewer: str | None, written: str
) -> None:
    review(client, case, reviewer=reviewer, missed=[MISSED])
    dataset = report(client, case)
    assert observers(dataset.ContentSequence) == [written, "Trivium"]
    person = dataset.ContentSequence[-1 - len(comments(dataset))].ContentSequence[0].ContentSequence
    assert observers(person) == [written]


def test_a_frame_of_an_enhanced_ct_is_referenced_by_its_number(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "enhanced.dcm").write_bytes(enhanced(chest()))
    case = hand_in(client, tmp_path / "enhanced.dcm")
    finding = client.get(case).json()["result"]["findings"][0]
    review(client, case, verdicts={"1": "accepted"}, missed=[{**MISSED, "centre_lps_mm": list(AT_MM[0])}])
    images = [group.roi.ContentSequence[0].ReferencedSOPSequence[0] for group in groups(report(client, case))]
    assert [image.ReferencedFrameNumber for image in images] == [finding["instance_number"]] * 2
    assert {image.ReferencedSOPClassUID for image in images} == {"1.2.840.10008.5.1.4.1.1.2.1"}


def test_the_reviewer_is_chosen_by_name_or_else_the_newest_review(client: TestClient, case: Case) -> None:
    review(client, case, verdicts={"1": "accepted", "2": "accepted"})
    review(client, case, reviewer="Ada", verdicts={"1": "accepted"}, missed=[MISSED])
    review(client, case, reviewer="Grace", verdicts={"2": "accepted"})
    for options, who, count in (
        ({}, "Grace", 1),
        ({"reviewer": "Ada"}, "Ada", 2),
        ({"reviewer": ""}, "an unnamed reader", 2),
    ):
        dataset = report(client, case, **options)
        assert len(groups(dataset)) == count and comments(dataset)[0].startswith(f"Reviewed by {who} on ")
    assert "not reviewed by 'Eve'; its reviewers: Grace, Ada, an unnamed reader" in refusal_detail(
        client, case, 404, reviewer="Eve"
    )


def test_added_nodules_give_a_report_even_if_nothing_was_found(client: TestClient, tmp_path: Path) -> None:
    case = hand_in(client, pack(tmp_path, series(chest())), score="0.95")
    assert REPORT not in client.get(case).json()["files"]
    assert refusal_detail(client, case, 404) == "the case has no review"
    review(client, case, reviewer="Ada", note="nothing")
    assert "neither accepts nor adds a finding" in refusal_detail(client, case, 409)
    review(client, case, reviewer="Ada", missed=[MISSED])
    dataset = report(client, case)
    assert len(groups(dataset)) == 1 and "PredecessorDocumentsSequence" not in dataset


def test_a_case_without_dicom_has_no_report(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "chest.nii.gz").write_bytes(nifti(chest()))
    case = hand_in(client, tmp_path / "chest.nii.gz")
    review(client, case, verdicts={"1": "accepted"})
    assert "its input was not a DICOM series" in refusal_detail(client, case, 409)


def test_it_is_verified_only_on_request_for_a_complete_review_of_a_named_reader(client: TestClient, case: Case) -> None:
    options = {"verified": "yes", "organization": "Klinikum Süd"}
    review(client, case, missed=[MISSED])
    assert "names no reviewer" in refusal_detail(client, case, 409, **options)
    review(client, case, reviewer="Doe^John", missed=[MISSED])
    assert "leaves findings that reach the operating score undecided (1)" in refusal_detail(
        client, case, 409, **options
    )
    assert report(client, case).CompletionFlag == "PARTIAL"
    review(client, case, reviewer="Doe^John", verdicts={"1": "accepted"})
    for part in ({"verified": "yes"}, {"organization": "Klinikum Süd"}):
        assert "verified=yes and organization go together" in refusal_detail(client, case, 422, **part)
    for organization in ("", "  ", "a\\b", "a\nb", "o" * 65):
        assert "organization" in refusal_detail(client, case, 422, verified="yes", organization=organization)
    dataset = report(client, case, **options)
    assert (dataset.VerificationFlag, dataset.CompletionFlag, dataset.PreliminaryFlag) == (
        "VERIFIED",
        "COMPLETE",
        "FINAL",
    )
    (observer,) = dataset.VerifyingObserverSequence
    assert (observer.VerifyingObserverName, observer.VerifyingOrganization) == ("Doe^John", "Klinikum Süd")
    assert observer.VerificationDateTime == dataset.ContentDate + dataset.ContentTime
    unverified = report(client, case)
    assert (unverified.VerificationFlag, unverified.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert unverified.SOPInstanceUID != dataset.SOPInstanceUID


def test_if_keys_are_required_only_the_reviewer_can_verify(tmp_path: Path) -> None:
    settings = Settings(
        store=tmp_path / "store", device="cpu", workers=0, warm=False, hosts="testserver", require_key=True
    )
    with TestClient(create_app(settings, {"medical": medical_app(tmp_path)})) as client:
        keys = Keys(client.app.state.store.engine)  # type: ignore[attr-defined]
        ada, grace = ({"Authorization": f"Bearer {keys.add(name, 'user')}"} for name in ("ada", "grace"))
        client.headers.update(ada)
        case = hand_in(client, pack(tmp_path, series(chest(), **WHO)))
        review(client, case, verdicts={"1": "accepted"})
        client.headers.update(grace)
        review(client, case, verdicts={"1": "accepted"}, missed=[MISSED])
        options = {"verified": "yes", "organization": "Klinikum"}
        assert "only the reviewer's own key" in refusal_detail(client, case, 403, reviewer="ada", **options)
        assert report(client, case, reviewer="ada").VerificationFlag == "UNVERIFIED"
        client.headers.update(ada)  # whose review is no longer the newest
        assert report(client, case, **options).VerifyingObserverSequence[0].VerifyingObserverName == "ada^"


def test_a_case_with_unlisted_findings_cannot_be_verified(tmp_path: Path) -> None:
    volume = read_volume([pack(tmp_path, series(chest()))])
    findings = replace(found(nodule(volume, 7, 0.9)), unlisted=3)
    report, result_json = report_source(volume, findings, {}), json.dumps(result(volume, findings)).encode()
    assert report is not None
    review_of_ada = Review(reviewer="Ada", reviewed_ns=0, verdicts={1: "accepted"})
    source = reviewed_source(report, result_json, review_json(review_of_ada, None))
    assert dcmread(BytesIO(reviewed_report(source))).CompletionFlag == "PARTIAL"
    with pytest.raises(InvalidInputError, match="more findings reach the operating score than are listed"):
        reviewed_source(report, result_json, review_json(review_of_ada, "Klinikum"))


def test_an_added_nodule_is_a_circle_or_an_ellipse_if_pixels_are_not_square(client: TestClient, tmp_path: Path) -> None:
    oblong = replace(chest(), spacing_mm=(3.0, 2.0, 5.0))
    regions = []
    for volume in (chest(), oblong):
        case = hand_in(client, pack(tmp_path, series(volume)))
        place = volume.to_lps_mm([98.5, 20, 4]).tolist()
        review(client, case, missed=[{"centre_lps_mm": place, "diameter_mm": 12.0}])
        regions += [group.roi for group in groups(report(client, case))]
    circle, ellipse = regions
    assert circle.graphic_type == GraphicTypeValues.CIRCLE
    assert circle.value == pytest.approx(np.array([[99, 20.5], [97, 20.5]]), abs=0.01)
    assert ellipse.graphic_type == GraphicTypeValues.ELLIPSE
    # The ends of the axis that is longer in pixels come first (PS3.3 C.18.6.1.2).
    assert ellipse.value - [99, 20.5] == pytest.approx(np.array([[0, -3], [0, 3], [-2, 0], [2, 0]]), abs=0.01)


def test_the_fhir_bundle_is_valid_and_names_the_reviewer(client: TestClient, case: Case) -> None:
    review(
        client, case, reviewer="Doe^John", verdicts={"1": "accepted"}, missed=[MISSED], note="first\nline\x07 Knötchen"
    )
    response = client.get(f"{case}/review/{FHIR}")
    assert response.status_code == 200 and response.headers["content-type"] == "application/fhir+json"
    assert_valid(response.content)
    assert response.json() == client.get(f"{case}/review/{FHIR}").json()
    structured = report(client, case)
    (whole,) = resources(response.content, "DiagnosticReport")
    assert whole["identifier"][0]["value"] == f"urn:oid:{structured.SOPInstanceUID}" and len(whole["result"]) == 2
    reader = [{"type": "Practitioner", "display": "Doe John"}]
    assert whole["status"] == "preliminary" and whole["resultsInterpreter"] == reader and "performer" not in whole
    assert "1 nodule added by the reader" in whole["conclusion"] and "first line Knötchen" in whole["conclusion"]
    found, added = resources(response.content, "Observation")
    assert found["performer"] == added["performer"] == reader
    assert "device" in found and found["meta"] == whole["meta"] and not {"device", "meta"} & added.keys()
    assert components(added)["81827009"] == (7.5, "mm") and "111012" not in components(added)
    assert components(added)["121112"] == "urn:oid:1.2.3.13"
    assert [resource["identifier"][1]["value"] for resource in (found, added)] == [
        f"urn:oid:{uid}" for _, uid in tracked(structured)
    ]
    options = {"verified": "yes", "organization": "Klinikum Süd"}
    verified = client.get(f"{case}/review/{FHIR}", params=options).content
    assert_valid(verified)
    (whole,) = resources(verified, "DiagnosticReport")
    assert whole["status"] == "final" and whole["performer"] == [{"type": "Organization", "display": "Klinikum Süd"}]


def test_a_bundle_of_added_nodules_names_no_software(client: TestClient, case: Case) -> None:
    review(client, case, verdicts={"1": "rejected"}, missed=[MISSED])
    bundle = client.get(f"{case}/review/{FHIR}").content
    assert_valid(bundle)
    assert not resources(bundle, "Device") and b"AIAST" not in bundle and b"Practitioner" not in bundle


def test_its_file_name_differs_from_that_of_the_original_report(client: TestClient, case: Case) -> None:
    review(client, case, verdicts={"1": "accepted"})
    for name, saved in ((REPORT, "findings.reviewed.sr.dcm"), (FHIR, "findings.reviewed.fhir.json")):
        for response in (client.head(f"{case}/review/{name}"), client.get(f"{case}/review/{name}")):
            assert response.status_code == 200
            assert response.headers["content-disposition"] == f'attachment; filename="{saved}"'


def test_head_checks_the_report_without_making_it(
    client: TestClient, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: object) -> bytes:
        raise AssertionError("nothing is to be made")

    monkeypatch.setattr("apps.medical.service.MedicalCodec.make", make)
    assert client.head(f"{case}/review/{REPORT}").status_code == 404
    review(client, case, reviewer="Ada", verdicts={"1": "rejected"})
    assert client.head(f"{case}/review/{REPORT}").status_code == 409
    review(client, case, reviewer="Ada", verdicts={"1": "accepted"})
    response = client.head(f"{case}/review/{REPORT}")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/dicom")
    assert "content-length" not in response.headers


def test_the_openapi_document_has_its_media_types_and_problems(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for name, kind in ((REPORT, "application/dicom"), (FHIR, "application/fhir+json")):
        answers = paths[f"/api/medical/cases/{{case_id}}/review/{name}"]["get"]["responses"]
        assert list(answers["200"]["content"]) == [kind]
        for status in ("404", "409", "422", "503", "504"):
            assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("options", [{}, {"verified": "yes", "organization": "Klinikum Süd"}])
def test_dicom3tools_finds_no_errors(client: TestClient, case: Case, tmp_path: Path, options: dict[str, str]) -> None:
    review(client, case, reviewer="Müller^Jürgen", verdicts={"1": "accepted"}, missed=[MISSED], note="one\nnote")
    (tmp_path / REPORT).write_bytes(client.get(f"{case}/review/{REPORT}", params=options).content)
    completed = subprocess.run(["dciodvfy", str(tmp_path / REPORT)], capture_output=True, text=True, timeout=60)
    assert "Comprehensive3DSR" in completed.stdout + completed.stderr
    assert "Error" not in completed.stdout + completed.stderr
