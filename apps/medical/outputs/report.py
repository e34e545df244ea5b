"""The findings as a DICOM structured report that a PACS files with the CT: a Comprehensive 3D SR by template TID 1500.

Each finding that reaches the operating score is a planar ROI on the image of its centre (TID 1410): the in-plane box,
the long and the short axis, their mean, and the score as CAD reports state it (111012, Certainty of Finding, in
percent). The report is written by highdicom, and is UNVERIFIED because no person has attested to it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.outputs.result import remarks, slice_number, volume_mm3
from apps.medical.types import NODULE, PATIENT_KEYWORDS, CTVolume, Findings, Nodule

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

REPORT, REPORT_SOURCE = "findings.sr.dcm", "report.json"
_SERIES_NUMBER = 9900
_IMAGES = "1.2.840.10008.5.1.4.1.1."
"""The UID prefix of standard image storage classes (PS3.4 B.5); highdicom supports no others."""
_MAX_CODE_LENGTH = 16
"""The maximum length of a code value (SH, PS3.5 6.2)."""
SERIES = "Trivium lung nodules (for research, not for diagnosis)"
ALGORITHM = "Trivium lung nodules"

logging.getLogger("highdicom").setLevel(logging.WARNING)  # at lower levels it logs the identifiers of images


def report_source(
    volume: CTVolume, findings: Findings, models: Mapping[str, Any], digests: Mapping[str, str] | None = None
) -> bytes | None:
    """The source of ``structured_report``, ``fhir_bundle`` and ``reviewed_source``, as JSON.

    ``models`` maps model names to versions, ``digests`` to the SHA-256 of their weights. Findings below the operating
    score are listed separately, as ``weaker``, because they are reported only if a reader accepts them. Returns None
    unless the CT is DICOM whose images have unique identifiers and a standard SOP class.
    """
    has_identifiers = {"StudyInstanceUID", "SeriesInstanceUID"} <= volume.identifiers.keys()
    images = volume.images
    unique = {(image.sop_instance_uid, image.frame) for image in images if image.sop_class_uid.startswith(_IMAGES)}
    if not (has_identifiers and images and len(unique) == len(images) and all(uid for uid, _ in unique)):
        return None
    above = [nodule for nodule in findings.nodules if nodule.score >= findings.operating_score]
    weaker = [nodule for nodule in findings.nodules if nodule.score < findings.operating_score]
    content = {
        "identifiers": volume.identifiers,
        "patient": volume.patient,
        "software": _software(),
        "models": dict(models),
        "digests": dict(digests or {}),
        "operating_score": findings.operating_score,
        "lossy": volume.lossy,
        "remarks": remarks(volume, findings),
        "images": [[image.sop_class_uid, image.sop_instance_uid, image.frame] for image in images],
        "findings": [_finding(volume, nodule) for nodule in above],
        "weaker": [_finding(volume, nodule) for nodule in weaker],
        "complete": not findings.unlisted,
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    return json.dumps(content, sort_keys=True).encode()


def structured_report(source: bytes) -> bytes:
    """The report of the findings as a DICOM file. It depends on the source alone, which includes the report's time.

    The source must have findings, because a negative result of a program is not filed. The SOP Instance UID is derived
    from the source, the Series Instance UID from the findings without the time.
    """
    import highdicom as hd

    content = json.loads(source)
    return report_file(
        content,
        context=hd.sr.ObservationContext(observer_device_context=device_observer()),
        groups=[measurement_group(number, content, source) for number in range(len(content["findings"]))],
        comments=content["remarks"],
        series_instance_uid=series_uid(source),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=unique_identifier(source),
        is_complete=content["complete"],
        series_description=SERIES,
    )


def series_uid(source: bytes) -> str:
    """The SeriesInstanceUID of the report with this ``source``."""
    return unique_identifier(without_time(source) + b"series")


def device_observer() -> Any:
    """Trivium as the observing device (TID 1004)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=unique_identifier(b"trivium"), name="Trivium", manufacturer_name="Trivium"
    )
    return hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)


def report_file(
    content: Mapping[str, Any], *, context: Any, groups: Sequence[Any], comments: Iterable[str], **attributes: Any
) -> bytes:
    """A measurement report (TID 1500) with one or more measurement ``groups`` as a DICOM file.

    ``content`` is the decoded source of a report, ``context`` the observation context, and ``attributes`` are passed to
    highdicom's ``Comprehensive3DSR``.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    report = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=hd.sr.CodedConcept("24627-2", "LN", "CT Chest"),
        imaging_measurements=groups,
    )
    report[0].ContentSequence.extend(
        hd.sr.TextContentItem(codes.DCM.Comment, comment, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS)
        for comment in comments
    )
    dataset = hd.sr.Comprehensive3DSR(
        evidence=_evidence(content),
        content=report[0],
        instance_number=1,
        manufacturer="Trivium",
        specific_character_set="ISO_IR 192",
        **attributes,
    )
    return dicom_file(dataset, content)


def dicom_file(dataset: Dataset, content: Mapping[str, Any]) -> bytes:
    """The dataset as a DICOM file, with the time of its report's source, and the patient if the source names one."""
    from pydicom.config import disable_value_validation

    date, time = content["made"][:10].replace("-", ""), content["made"][11:19].replace(":", "")
    dataset.InstanceCreationDate = dataset.ContentDate = date
    dataset.InstanceCreationTime = dataset.ContentTime = time
    for equipment in dataset.get("ContributingEquipmentSequence") or ():
        equipment.ContributionDateTime = date + time
    for observer in dataset.get("VerifyingObserverSequence") or ():
        observer.VerificationDateTime = date + time
    output = io.BytesIO()
    with disable_value_validation():  # patient attributes are copied from the CT even if they are not valid DICOM
        for keyword in PATIENT_KEYWORDS:
            setattr(dataset, keyword, content["patient"].get(keyword, ""))
        dataset.save_as(output, enforce_file_format=True)
    return output.getvalue()


def _finding(volume: CTVolume, nodule: Nodule) -> dict[str, Any]:
    """A finding for the report's source.

    ``image`` is the index of its image, from 0, and ``region`` its box there as a closed polyline of x, y in pixels,
    from the outer corner of the first pixel (PS3.3 C.18.6).
    """
    low_mm, high_mm = np.array(nodule.box_lps_mm).reshape(2, 3)
    nearest = np.abs(volume.direction).argmax(axis=0)  # the LPS axis nearest to each axis of the image
    half = ((high_mm - low_mm) / 2)[nearest] / volume.spacing_mm
    middle = volume.to_index_ijk((low_mm + high_mm) / 2) + 0.5
    columns, rows, _ = volume.size_ijk
    low, high = np.clip([middle - half, middle + half], 0, (columns, rows, np.inf))[:, :2].round(2).tolist()
    return {
        "image": slice_number(volume, nodule) - 1,
        "centre_lps_mm": [round(value, 2) for value in nodule.centre_lps_mm],
        "region": [low, [high[0], low[1]], high, [low[0], high[1]], low],
        "axes_mm": None if nodule.axes_mm is None else [round(value, 1) for value in nodule.axes_mm],
        "mean_diameter_mm": round(nodule.mean_diameter_mm, 1),
        "volume_mm3": volume_mm3(volume, nodule),
        "percent": round(100 * nodule.score, 1),
        "label": nodule.label,
    }


def measurement_group(number: int, content: Mapping[str, Any], source: bytes) -> Any:
    """The finding ``number`` (from 0) as a measurement group. One that a reader added has no algorithm or certainty."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    finding = content["findings"][number]
    is_added = "added" in finding
    sop_class, sop_instance, frame = content["images"][finding["image"]]
    identifier, uid = tracking(source, number)
    lengths = [(codes.SCT.Diameter, finding["mean_diameter_mm"], None if is_added else codes.SCT.Mean)]
    if finding["axes_mm"] is not None:
        long, short = finding["axes_mm"]
        lengths += [(codes.SCT.LongAxis, long, None), (codes.SCT.ShortAxis, short, None)]
    measurements = [
        hd.sr.Measurement(name=name, value=value, unit=codes.UCUM.Millimeter, derivation=derivation)
        for name, value, derivation in lengths
    ]
    if not is_added:
        name, percent = codes.DCM.CertaintyOfFinding, finding["percent"]
        measurements.append(hd.sr.Measurement(name=name, value=percent, unit=codes.UCUM.Percent))
    algorithm = hd.sr.AlgorithmIdentification(name=ALGORITHM, version=versions(content))
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier=identifier),
        referenced_region=hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues(finding.get("shape", "POLYLINE")),
            graphic_data=np.array(finding["region"], np.float64),
            source_image=hd.sr.SourceImageForRegion(sop_class, sop_instance, None if frame is None else [frame + 1]),
        ),
        finding_type=finding_type(finding["label"]),
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.SCT.Lung)],
        algorithm_id=None if is_added else algorithm,
        measurements=measurements,
    )


def _evidence(content: Mapping[str, Any]) -> list[Any]:
    """The images as datasets with the attributes that highdicom reads for a report; a multi-frame image once."""
    from pydicom.dataset import Dataset

    by_uid: dict[str, Dataset] = {}
    for sop_class, sop_instance, _ in content["images"]:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = sop_class, sop_instance
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            setattr(image, keyword, content["identifiers"][keyword])
        for keyword in PATIENT_KEYWORDS:
            setattr(image, keyword, "")
        by_uid.setdefault(sop_instance, image)
    return list(by_uid.values())


def tracking(source: bytes, number: int) -> tuple[str, str]:
    """The tracking identifier and tracking UID of the finding ``number`` (from 0) of a report's ``source``.

    Findings are numbered by rank, first those in the report, then the weaker ones.
    """
    if "tracking" in (finding := (json.loads(source)["findings"][number:] or [{}])[0]):
        identifier, uid = finding["tracking"]
        return identifier, uid
    return f"Finding {number + 1}", unique_identifier(without_time(source) + str(number).encode())


def without_time(source: bytes) -> bytes:
    """A report's source without its time and the weaker findings, so that equal findings give equal bytes."""
    content = {name: value for name, value in json.loads(source).items() if name != "weaker"}
    return json.dumps({**content, "made": None}, sort_keys=True).encode()


def finding_type(label: str) -> Any:
    """The finding type of a class, as a coded concept."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if label == NODULE:
        return codes.SCT.Nodule
    label = label.replace("\\", "/")
    code = (
        label if 0 < len(label) <= _MAX_CODE_LENGTH else hashlib.sha256(label.encode()).hexdigest()[:_MAX_CODE_LENGTH]
    )
    return hd.sr.CodedConcept(code, "99TRIVIUM", label[:64] or "unnamed")


def versions(content: Mapping[str, Any]) -> str:
    """The models and their versions, from a report's decoded source, as text."""
    return ", ".join(f"{name} {number}" for name, number in content["models"].items()) or "unknown"


def _software() -> str:
    try:
        return version("trivium")
    except PackageNotFoundError:
        return "unknown"


def unique_identifier(content: bytes) -> str:
    """A DICOM UID that is derived from a hash of the content (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(content).digest()[:16], 'big')}"
