"""The findings of a DICOM report as a FHIR R4 bundle, for systems that file results rather than DICOM.

A transaction of a Device, an Observation for each finding and a DiagnosticReport. Codes are those of HL7's mapping of
TID 1500 (hl7.org/fhir/uv/dicom-sr) where that has some; AI's part is labelled as HL7's AI Transparency guide has it.
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
_CENTRE = (("x", "to the patient's left"), ("y", "to the back"), ("z", "to the head"))


def fhir_bundle(source: bytes) -> bytes:
    """The bundle as JSON, from the source of the report or of the reviewed one, which says who reviewed it.

    Study, images and patient are referred to by their identifiers.

    A FHIR server takes it as it is (POST to its base), once however often it is sent: each resource is created unless
    there is one with its identifier.
    """
    content = json.loads(source)
    device = _device(content)
    observations = [_observation(number, content, source, device) for number in range(len(content["findings"]))]
    report = {
        "resourceType": "DiagnosticReport",
        **_asserted(*content["findings"]),
        "identifier": [_dicom_uid(unique_identifier(source))],
        **_of_study(content, "imagingStudy"),
        "status": _status(content),
        "category": [_coded((f"{_HL7}/v2-0074", "RAD", "Radiology"), (_LOINC, "LP29684-5", "Radiology"))],
        "code": _coded((_LOINC, "24627-2", "CT Chest")),
        "issued": content["made"],
        **_organization(content),
        **_reader(content, "resultsInterpreter"),
        "result": [_reference(one) for one in observations],
        "conclusion": _conclusion(content),
    }
    entries = [
        {
            "fullUrl": _full_url(one),
            "resource": one,
            "request": {
                "method": "POST",
                "url": one["resourceType"],
                "ifNoneExist": "identifier={system}|{value}".format(**one["identifier"][0]),
            },
        }
        for one in (*([device] if "meta" in report else []), *observations, report)
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "timestamp": content["made"], "entry": entries}
    return (json.dumps(bundle, indent=1, ensure_ascii=False) + "\n").encode()


def _observation(number: int, content: Mapping[str, Any], source: bytes, device: Mapping[str, Any]) -> dict[str, Any]:
    """One finding: sizes, place and score as components."""
    finding = content["findings"][number]
    is_added = "added" in finding
    _, image, frame = content["images"][finding["image"]]
    identifier, uid = tracking(source, number)
    long, short = finding["axes_mm"] or (None, None)
    mean = None if is_added else "Mean diameter"
    measured = [
        _quantity(_coded((_SCT, "81827009", "Diameter"), text=mean), finding["mean_diameter_mm"], "mm"),
        _quantity(_coded((_SCT, "103339001", "Long axis")), long, "mm"),
        _quantity(_coded((_SCT, "103340004", "Short axis")), short, "mm"),
        _quantity(_coded((_SCT, "118565006", "Volume")), finding["volume_mm3"], "mm3"),
        _quantity(_coded((_DCM, "111012", "Certainty of Finding")), finding["percent"], "%"),
        *(
            _quantity({"text": f"Centre, {axis} in the DICOM patient frame ({where})"}, value, "mm")
            for (axis, where), value in zip(_CENTRE, finding["centre_lps_mm"], strict=True)
        ),
    ]
    place = f"urn:oid:{image}" if frame is None else f"urn:oid:{image}, frame {frame + 1}"
    where = {"code": _coded((_DCM, "121112", "Source of Measurement")), "valueString": place}
    label = finding["label"]
    nodule = _coded((_SCT, "786838002", "Nodule of lung"), (_RADLEX, "RID50149", "pulmonary nodule"))
    return {
        "resourceType": "Observation",
        **_asserted(finding),
        "identifier": [
            _dicom_uid(unique_identifier(source + f"observation {number}".encode())),
            {"type": _coded((_DCM, "112040", "Tracking Unique Identifier"), text=identifier), **_dicom_uid(uid)},
        ],
        **_of_study(content, "partOf", "derivedFrom"),
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
        "component": [*(one for one in measured if one["valueQuantity"]["value"] is not None), where],
    }


def _device(content: Mapping[str, Any]) -> dict[str, Any]:
    """The software, with the models that took part; another version of any is another device."""
    models: Mapping[str, Any] = content["models"]
    said = json.dumps([content["software"], models, content["digests"]], sort_keys=True).encode()
    digests = [
        {"type": {"text": f"SHA-256 of the weights of {name}"}, "valueCode": [{"text": digest}]}
        for name, digest in content["digests"].items()
        if digest
    ]
    return {
        "resourceType": "Device",
        "identifier": [_dicom_uid(unique_identifier(said))],
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
    marked = f"{count} {'finding' if count == 1 else 'findings'} of software ({versions(content)})"
    said = f"{marked} at its operating score of {content['operating_score']:.3f} or above. For research, not for "
    return " ".join([f"{said}diagnosis; verified by nobody.", *content["remarks"]])


def _status(content: Mapping[str, Any]) -> str:
    """Final where somebody verified the report (R4, observation-status)."""
    return _STATUS if content.get("review", {}).get("organization") is None else "final"


def _asserted(*findings: Mapping[str, Any]) -> dict[str, Any]:
    """The label of what artificial intelligence asserts, where one of the findings is not a reader's."""
    return {} if all("added" in finding for finding in findings) else {"meta": _AI}


def _reader(content: Mapping[str, Any], element: str) -> dict[str, Any]:
    """The reviewer in an element, where the findings were reviewed and the reviewer is named."""
    name = _person(content.get("review", {}).get("reviewer") or "")
    return {element: [{"type": "Practitioner", "display": name}]} if name else {}


def _organization(content: Mapping[str, Any]) -> dict[str, Any]:
    """Who answers for a verified report."""
    name = content.get("review", {}).get("organization")
    return {} if name is None else {"performer": [{"type": "Organization", "display": _text(name)}]}


def _of_study(content: Mapping[str, Any], *elements: str) -> dict[str, Any]:
    """The study by its unique identifier, in these elements; and whose it is, where the source says that."""
    kind = {"type": _coded((_DCM, "110180", "Study Instance UID"))}
    study = {"type": "ImagingStudy", "identifier": {**kind, **_dicom_uid(content["identifiers"]["StudyInstanceUID"])}}
    patient = {keyword: _text(value) for keyword, value in content["patient"].items()}
    said: dict[str, Any] = {element: [study] for element in elements}
    who: dict[str, Any] = {}
    if number := patient.get("PatientID"):
        who["identifier"] = {"type": _coded((f"{_HL7}/v2-0203", "MR", "Medical record number")), "value": number}
    if name := _person(patient.get("PatientName", "")):
        who["display"] = name
    if who:
        said["subject"] = {"type": "Patient", **who}
    if accession := patient.get("AccessionNumber"):
        order = {"type": _coded((f"{_HL7}/v2-0203", "ACSN", "Accession ID")), "value": accession}
        said["basedOn"] = [{"type": "ServiceRequest", "identifier": order}]
    if taken := re.fullmatch(r"(\d{4})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", patient.get("StudyDate", "")):
        said["effectiveDateTime"] = "-".join(taken.groups())
    return said


def _person(name: str) -> str:
    """A name of DICOM's, as text."""
    return " ".join(_text(name).split("=")[0].replace("^", " ").split())


def _text(value: str) -> str:
    """A text without control characters, which FHIR has none of (R4, datatypes, string) and servers refuse.

    A name whose character set is not the one that it states has some: what is left of ISO 2022's escapes.
    """
    return re.sub(r"[\x00-\x1f\x7f]", "", value).strip()


def _quantity(code: dict[str, Any], value: float | None, unit: str) -> dict[str, Any]:
    return {"code": code, "valueQuantity": {"value": value, "unit": unit, "system": _UCUM, "code": unit}}


def _coded(*codings: tuple[str, str, str], text: str | None = None) -> dict[str, Any]:
    named = [{"system": system, "code": code, "display": display} for system, code, display in codings]
    return {"coding": named} if text is None else {"coding": named, "text": text}


def _dicom_uid(uid: str) -> dict[str, str]:
    """An identifier as FHIR has DICOM's (R4, ImagingStudy 10.5.5)."""
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}


def _full_url(resource: Mapping[str, Any]) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, resource["identifier"][0]["value"]).urn


def _reference(resource: Mapping[str, Any]) -> dict[str, str]:
    return {"reference": _full_url(resource), "type": resource["resourceType"]}


_AI = {
    "security": [
        {"system": f"{_HL7}/v3-ObservationValue", "code": "AIAST", "display": "Artificial Intelligence asserted"}
    ]
}
