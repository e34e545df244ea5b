"""The findings of a DICOM report as a FHIR R4 bundle, for systems that store FHIR resources rather than DICOM.

The bundle is a transaction with a Device, an Observation for each finding and a DiagnosticReport. Codes follow HL7's
mapping of TID 1500 (hl7.org/fhir/uv/dicom-sr) where it defines them; resources with AI findings are labelled as in
HL7's AI Transparency guide.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from apps.medical.outputs.report import ALGORITHM, tracking, unique_identifier, versions
from apps.medical.types import NODULE

FHIR = "findings.fhir.json"
_DCM, _SCT, _UCUM = (
    "http://dicom.nema.org/resources/ontology/DCM",
    "http://snomed.info/sct",
    "http://unitsofmeasure.org",
)
_RADLEX, _LOINC, _HL7 = "http://radlex.org", "http://loinc.org", "http://terminology.hl7.org/CodeSystem"
_STATUS = "preliminary"
_CENTRE_AXES = (("x", "to the patient's left"), ("y", "to the back"), ("z", "to the head"))


def fhir_bundle(source: bytes) -> bytes:
    """The bundle as JSON, from the source of a report or of a reviewed report.

    Study, images and patient are referenced by their identifiers. The bundle can be POSTed to the base URL of a FHIR
    server; sending it again creates no duplicates, because a resource is created only if none has its identifier.
    """
    content = json.loads(source)
    device = _device(content)
    observations = [_observation(number, content, source, device) for number in range(len(content["findings"]))]
    report = {
        "resourceType": "DiagnosticReport",
        **_ai_label(*content["findings"]),
        "identifier": [_dicom_uid(unique_identifier(source))],
        **_study_elements(content, "imagingStudy"),
        "status": _status(content),
        "category": [_coded((f"{_HL7}/v2-0074", "RAD", "Radiology"), (_LOINC, "LP29684-5", "Radiology"))],
        "code": _coded((_LOINC, "24627-2", "CT Chest")),
        "issued": content["made"],
        **_organization(content),
        **_reader(content, "resultsInterpreter"),
        "result": [_reference(observation) for observation in observations],
        "conclusion": _conclusion(content),
    }
    entries = [
        {
            "fullUrl": _full_url(resource),
            "resource": resource,
            "request": {
                "method": "POST",
                "url": resource["resourceType"],
                "ifNoneExist": "identifier={system}|{value}".format(**resource["identifier"][0]),
            },
        }
        for resource in (*([device] if "meta" in report else []), *observations, report)
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "timestamp": content["made"], "entry": entries}
    return (json.dumps(bundle, indent=1, ensure_ascii=False) + "\n").encode()


def _observation(number: int, content: Mapping[str, Any], source: bytes, device: Mapping[str, Any]) -> dict[str, Any]:
    """The Observation of the finding ``number`` (from 0), with sizes, position and score as components."""
    finding = content["findings"][number]
    is_added = "added" in finding
    _, image, frame = content["images"][finding["image"]]
    identifier, uid = tracking(source, number)
    long, short = finding["axes_mm"] or (None, None)
    diameter_text = None if is_added else "Mean diameter"
    quantities = [
        _quantity(_coded((_SCT, "81827009", "Diameter"), text=diameter_text), finding["mean_diameter_mm"], "mm"),
        _quantity(_coded((_SCT, "103339001", "Long axis")), long, "mm"),
        _quantity(_coded((_SCT, "103340004", "Short axis")), short, "mm"),
        _quantity(_coded((_SCT, "118565006", "Volume")), finding["volume_mm3"], "mm3"),
        _quantity(_coded((_DCM, "111012", "Certainty of Finding")), finding["percent"], "%"),
        *(
            _quantity({"text": f"Centre, {axis} in the DICOM patient frame ({direction})"}, value, "mm")
            for (axis, direction), value in zip(_CENTRE_AXES, finding["centre_lps_mm"], strict=True)
        ),
    ]
    image_reference = f"urn:oid:{image}" if frame is None else f"urn:oid:{image}, frame {frame + 1}"
    source_image = {"code": _coded((_DCM, "121112", "Source of Measurement")), "valueString": image_reference}
    label = finding["label"]
    nodule = _coded((_SCT, "786838002", "Nodule of lung"), (_RADLEX, "RID50149", "pulmonary nodule"))
    return {
        "resourceType": "Observation",
        **_ai_label(finding),
        "identifier": [
            _dicom_uid(unique_identifier(source + f"observation {number}".encode())),
            {"type": _coded((_DCM, "112040", "Tracking Unique Identifier"), text=identifier), **_dicom_uid(uid)},
        ],
        **_study_elements(content, "partOf", "derivedFrom"),
        "status": _status(content),
        "category": [
            _coded((f"{_HL7}/observation-category", "imaging", "Imaging")),
            _coded((_DCM, "125007", "Measurement Group")),
        ],
        "code": nodule if label == NODULE else {"text": _text(label) or "unnamed"},
        "issued": content["made"],
        **_reader(content, "performer"),
        "bodySite": _coded((_SCT, "39607008", "Lung"), (_RADLEX, "RID1301", "lung")),
        **({} if is_added else {"device": _reference(device)}),
        "component": [
            *(quantity for quantity in quantities if quantity["valueQuantity"]["value"] is not None),
            source_image,
        ],
    }


def _device(content: Mapping[str, Any]) -> dict[str, Any]:
    """The software and its models as a Device; another version of any of them is another Device."""
    models: Mapping[str, Any] = content["models"]
    identity = json.dumps([content["software"], models, content["digests"]], sort_keys=True).encode()
    digests = [
        {"type": {"text": f"SHA-256 of the weights of {name}"}, "valueCode": [{"text": digest}]}
        for name, digest in content["digests"].items()
        if digest
    ]
    return {
        "resourceType": "Device",
        "identifier": [_dicom_uid(unique_identifier(identity))],
        "manufacturer": "Trivium",
        "deviceName": [{"name": ALGORITHM, "type": "model-name"}],
        "type": {"text": "Artificial intelligence, for research, not for diagnosis"},
        "version": [
            {"type": {"text": "software"}, "value": content["software"]},
            *({"type": {"text": f"model {name}"}, "value": str(version)} for name, version in models.items()),
        ],
        **({"property": digests} if digests else {}),
    }


def _conclusion(content: Mapping[str, Any]) -> str:
    if "review" in content:
        review = content["review"]
        verified = "" if review["organization"] is None else f" Verified for {review['organization']}."
        heading = f"{review['summary']}{verified} For research, not for diagnosis."
        note = _text(" ".join(review["note"].split()))
        return "\n".join([_text(heading), *([note] if note else []), *content["remarks"]])
    count = len(content["findings"])
    findings = f"{count} software {'finding' if count == 1 else 'findings'} ({versions(content)})"
    summary = f"{findings} at or above the operating score of {content['operating_score']:.3f}. For research, not for "
    return " ".join([f"{summary}diagnosis; not verified.", *content["remarks"]])


def _status(content: Mapping[str, Any]) -> str:
    """``final`` if the report is verified, else ``preliminary`` (R4, observation-status)."""
    return _STATUS if content.get("review", {}).get("organization") is None else "final"


def _ai_label(*findings: Mapping[str, Any]) -> dict[str, Any]:
    """The element that labels content as asserted by AI; empty if a reader added all the findings."""
    return {} if all("added" in finding for finding in findings) else {"meta": _AI_META}


def _reader(content: Mapping[str, Any], element: str) -> dict[str, Any]:
    """The reviewer as ``element``; empty if the findings were not reviewed or the reviewer has no name."""
    name = _person(content.get("review", {}).get("reviewer") or "")
    return {element: [{"type": "Practitioner", "display": name}]} if name else {}


def _organization(content: Mapping[str, Any]) -> dict[str, Any]:
    """The organization that is responsible for a verified report; empty for other reports."""
    name = content.get("review", {}).get("organization")
    return {} if name is None else {"performer": [{"type": "Organization", "display": _text(name)}]}


def _study_elements(content: Mapping[str, Any], *elements: str) -> dict[str, Any]:
    """The study by its UID in each of ``elements``; also patient, order and date if the source has them."""
    uid_type = {"type": _coded((_DCM, "110180", "Study Instance UID"))}
    uid = {**uid_type, **_dicom_uid(content["identifiers"]["StudyInstanceUID"])}
    study = {"type": "ImagingStudy", "identifier": uid}
    patient = {keyword: _text(value) for keyword, value in content["patient"].items()}
    result: dict[str, Any] = {element: [study] for element in elements}
    subject: dict[str, Any] = {}
    if number := patient.get("PatientID"):
        subject["identifier"] = {"type": _coded((f"{_HL7}/v2-0203", "MR", "Medical record number")), "value": number}
    if name := _person(patient.get("PatientName", "")):
        subject["display"] = name
    if subject:
        result["subject"] = {"type": "Patient", **subject}
    if accession := patient.get("AccessionNumber"):
        order = {"type": _coded((f"{_HL7}/v2-0203", "ACSN", "Accession ID")), "value": accession}
        result["basedOn"] = [{"type": "ServiceRequest", "identifier": order}]
    if date := re.fullmatch(r"(\d{4})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", patient.get("StudyDate", "")):
        result["effectiveDateTime"] = "-".join(date.groups())
    return result


def _person(name: str) -> str:
    """A DICOM person name as plain text."""
    return " ".join(_text(name).split("=")[0].replace("^", " ").split())


def _text(value: str) -> str:
    """The text without control characters, which FHIR forbids (R4, datatypes, string) and servers refuse.

    A name with the wrong character set may contain some, as the remains of ISO 2022 escape sequences.
    """
    return re.sub(r"[\x00-\x1f\x7f]", "", value).strip()


def _quantity(code: dict[str, Any], value: float | None, unit: str) -> dict[str, Any]:
    return {"code": code, "valueQuantity": {"value": value, "unit": unit, "system": _UCUM, "code": unit}}


def _coded(*codings: tuple[str, str, str], text: str | None = None) -> dict[str, Any]:
    coding = [{"system": system, "code": code, "display": display} for system, code, display in codings]
    return {"coding": coding} if text is None else {"coding": coding, "text": text}


def _dicom_uid(uid: str) -> dict[str, str]:
    """A DICOM UID as a FHIR Identifier (R4, ImagingStudy 10.5.5)."""
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}


def _full_url(resource: Mapping[str, Any]) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, resource["identifier"][0]["value"]).urn


def _reference(resource: Mapping[str, Any]) -> dict[str, str]:
    return {"reference": _full_url(resource), "type": resource["resourceType"]}


_AI_META = {
    "security": [
        {"system": f"{_HL7}/v3-ObservationValue", "code": "AIAST", "display": "Artificial Intelligence asserted"}
    ]
}
