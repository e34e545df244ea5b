"""The findings as a FHIR bundle: it is valid by HL7's schema, names study and patient, and agrees with the report."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from pydantic import BaseModel
from pydicom import dcmread

from apps.medical.adapters.source import read_volume
from apps.medical.app import app
from apps.medical.outputs.fhir import FHIR, fhir_bundle
from apps.medical.outputs.report import REPORT, report_source, structured_report
from apps.medical.service import MedicalCodec
from apps.medical.types import CTVolume, Findings
from shared.deploy.predictor import Request
from shared.deploy.registry import shipped
from tests.apps.medical.chests import chest, found, pack, series
from tests.apps.medical.test_report import groups, nodule
from tests.apps.medical.test_segmentation import nodule as measured_nodule

DIGEST = "ab" * 32


def source(volume: CTVolume, findings: Findings) -> bytes:
    report_json = report_source(volume, findings, {"lung_nodules": 6}, {"lung_nodules": DIGEST})
    assert report_json is not None
    return report_json


def resources(content: bytes, kind: str) -> list[dict[str, Any]]:
    entries = json.loads(content)["entry"]
    return [entry["resource"] for entry in entries if entry["resource"]["resourceType"] == kind]


def components(observation: dict[str, Any]) -> dict[str, Any]:
    """The value and unit of each component, by its code, or by its text if it has none."""
    found = {}
    for component in observation["component"]:
        code = component["code"]["coding"][0]["code"] if "coding" in component["code"] else component["code"]["text"]
        value = component.get("valueQuantity")
        found[code] = component.get("valueString") if value is None else (value["value"], value["code"])
    return found


def assert_valid(content: bytes) -> None:
    """Validates with the published definitions of R4B, including required codes, and resolves all references."""
    bundle = Bundle.model_validate_json(content)
    assert b"[]" not in content and b"{}" not in content  # FHIR forbids empty arrays and objects
    pending: list[BaseModel] = [bundle]
    while pending:
        resource = pending.pop()
        for name, field in type(resource).model_fields.items():
            value = getattr(resource, name)
            pending.extend(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, BaseModel))
            fixed = (field.json_schema_extra or {}).get("enum_values")
            assert value is None or not fixed or {*([value] if isinstance(value, str) else value)} <= {*fixed}, name
    entries = json.loads(content)["entry"]
    urls = {entry["fullUrl"] for entry in entries}
    for entry in entries:
        linked = [*entry["resource"].get("result", []), entry["resource"].get("device")]
        assert {reference["reference"] for reference in linked if reference} <= urls
    assert len(urls) == len({entry["request"]["ifNoneExist"] for entry in entries}) == len(entries)


def test_control_characters_in_names_are_removed(tmp_path):
    # An invalid ISO 2022 escape sequence, and control characters as a broken interface leaves them in numbers.
    who = {"PatientName": "Doe^Ja\x1b$Zne", "PatientID": "12\x00\x1b3", "AccessionNumber": "A\x01"}
    scan = pack(tmp_path, series(chest(), SpecificCharacterSet="ISO_IR 192", **who))
    volume = read_volume([scan], patient=True)
    content = fhir_bundle(source(volume, found(nodule(volume, 7, 0.9, label="ground\x07 glass"))))
    assert_valid(content)
    (observation,) = resources(content, "Observation")
    assert observation["subject"]["identifier"]["value"] == "123" and observation["code"]["text"] == "ground glass"
    assert (observation["subject"]["display"], observation["basedOn"][0]["identifier"]["value"]) == ("Doe Ja$Zne", "A")
    assert not any(ord(letter) < 0x20 for letter in json.dumps(json.loads(content), ensure_ascii=False))


@pytest.mark.parametrize("patient", [False, True])
def test_it_is_valid_by_the_published_schema(scan, patient):
    volume = read_volume([scan], patient=patient)
    second = nodule(volume, 3, 0.8, label="ground glass", axes=None)
    for findings in (found(nodule(volume, 7, 0.9)), found(nodule(volume, 7, 0.9), second, measured_nodule(volume))):
        assert_valid(fhir_bundle(source(volume, findings)))


def test_the_validation_detects_invalid_bundles(scan):
    content = json.loads(fhir_bundle(source(volume := read_volume([scan]), found(nodule(volume, 7, 0.9)))))
    content["entry"][1]["resource"]["status"] = "guessed"
    with pytest.raises(AssertionError, match="status"):
        assert_valid(json.dumps(content).encode())


def test_a_finding_is_an_observation_with_codes_sizes_position_and_score(scan):
    volume = read_volume([scan])
    findings = found(nodule(volume, 7, 0.875), nodule(volume, 3, 0.2))
    (observation,) = resources(fhir_bundle(source(volume, findings)), "Observation")
    assert {(code["system"], code["code"]) for code in observation["code"]["coding"]} == {
        ("http://snomed.info/sct", "786838002"),
        ("http://radlex.org", "RID50149"),
    }
    assert observation["bodySite"]["coding"][0]["code"] == "39607008" and observation["status"] == "preliminary"
    x, y, z = volume.to_lps_mm([20, 12, 7])
    frame = "in the DICOM patient frame"
    assert components(observation) == {
        "81827009": (10.0, "mm"),
        "103339001": (12.0, "mm"),
        "103340004": (8.0, "mm"),
        "111012": (87.5, "%"),
        f"Centre, x {frame} (to the patient's left)": (pytest.approx(x, abs=0.01), "mm"),
        f"Centre, y {frame} (to the back)": (pytest.approx(y, abs=0.01), "mm"),
        f"Centre, z {frame} (to the head)": (pytest.approx(z, abs=0.01), "mm"),
        "121112": "urn:oid:1.2.3.8",
    }


def test_the_volume_is_stated_if_it_was_measured(scan):
    volume = read_volume([scan])
    measured = measured_nodule(volume)
    (observation,) = resources(fhir_bundle(source(volume, found(measured))), "Observation")
    assert components(observation)["118565006"] == (pytest.approx(measured.piece.voxels * 45.0), "mm3")


def test_the_report_names_the_study_and_says_that_it_is_preliminary(scan):
    volume = read_volume([scan])
    findings = replace(found(nodule(volume, 7, 0.9)), unlisted=3)
    (report,) = resources(fhir_bundle(source(volume, findings)), "DiagnosticReport")
    (study,) = report["imagingStudy"]
    assert study["identifier"]["value"] == f"urn:oid:{volume.identifiers['StudyInstanceUID']}"
    assert report["status"] == "preliminary" and report["code"]["coding"][0]["code"] == "24627-2"
    assert "1 software finding (lung_nodules 6)" in report["conclusion"]
    assert "not for diagnosis" in report["conclusion"] and "3 more findings reach" in report["conclusion"]
    assert report["meta"]["security"][0]["code"] == "AIAST"


def test_the_device_is_the_software_with_its_models_and_their_digests(scan):
    volume = read_volume([scan])
    report_json = source(volume, found(nodule(volume, 7, 0.9)))
    (device,) = resources(fhir_bundle(report_json), "Device")
    assert {(version["type"]["text"], version["value"]) for version in device["version"]} >= {
        ("model lung_nodules", "6")
    }
    (digest,) = device["property"]
    assert (digest["type"]["text"], digest["valueCode"][0]["text"]) == (
        "SHA-256 of the weights of lung_nodules",
        DIGEST,
    )
    retrained = json.dumps({**json.loads(report_json), "digests": {"lung_nodules": "cd" * 32}}).encode()
    assert resources(fhir_bundle(retrained), "Device")[0]["identifier"] != device["identifier"]


def test_the_shipped_models_state_their_digests():
    artifacts = shipped(app)
    digests = {
        artifact.manifest.name: artifact.manifest.files["weights.safetensors"]["sha256"] for artifact in artifacts
    }
    loaded = app.predictor(artifacts, "cpu")
    assert loaded.digests.keys() == {"lung_nodules", "lung_nodule_candidates"}
    assert loaded.digests.items() <= digests.items()


def test_the_patient_is_named_only_on_request(scan):
    for is_named in (False, True):
        volume = read_volume([scan], patient=is_named)
        content = fhir_bundle(source(volume, found(nodule(volume, 7, 0.9))))
        assert [part in content.decode() for part in ("4711", "Müller Jürgen", "A1", "2025-03-01")] == [is_named] * 4
    for resource in (*resources(content, "Observation"), *resources(content, "DiagnosticReport")):
        assert (
            resource["subject"]["identifier"]["value"] == "4711" and resource["subject"]["display"] == "Müller Jürgen"
        )
        assert resource["basedOn"][0]["identifier"]["value"] == "A1" and resource["effectiveDateTime"] == "2025-03-01"


@pytest.mark.parametrize(
    "odd",
    [{"PatientID": " ", "PatientName": "^", "StudyDate": "20251332", "AccessionNumber": ""}, {"PatientID": "1"}],
)
def test_missing_ct_attributes_are_left_out(scan, odd):
    volume = replace(read_volume([scan]), patient=odd)
    content = fhir_bundle(source(volume, found(nodule(volume, 7, 0.9))))
    assert_valid(content)
    (report,) = resources(content, "DiagnosticReport")
    assert ("subject" in report) is (odd["PatientID"] == "1") and "effectiveDateTime" not in report


def test_it_agrees_with_the_dicom_report_and_is_reproducible(scan):
    volume = read_volume([scan])
    report_json = source(volume, found(nodule(volume, 7, 0.9), nodule(volume, 4, 0.8)))
    assert fhir_bundle(report_json) == fhir_bundle(report_json)
    structured = dcmread(BytesIO(structured_report(report_json)))
    (report,) = resources(fhir_bundle(report_json), "DiagnosticReport")
    assert report["identifier"][0]["value"] == f"urn:oid:{structured.SOPInstanceUID}"
    assert report["issued"][:10].replace("-", "") == structured.ContentDate
    tracked = [resource["identifier"][1]["value"] for resource in resources(fhir_bundle(report_json), "Observation")]
    assert tracked == [f"urn:oid:{group.tracking_uid}" for group in groups(structured)]


def test_the_codec_offers_it_beside_the_report(scan):
    codec = MedicalCodec()
    decoded = codec.decode(Request(files=[scan], options={}))
    finding = nodule(decoded.inputs[0], 7, 0.9)
    response = codec.encode(decoded, [found(finding)])
    assert response.later.files[FHIR] == response.later.files[REPORT]
    assert_valid(codec.make(FHIR, response.later.sources))
    assert FHIR not in codec.encode(decoded, [found()]).later.files
