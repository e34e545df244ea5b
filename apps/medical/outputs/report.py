"""The findings as a DICOM structured report, which a PACS files with the CT: Comprehensive 3D SR by template TID 1500.

Each finding that reaches the operating score is a planar region on the image where its centre lies (TID 1410): the
sides of its box, with long and short axis, their mean, and the score as CAD reports have it (111012, certainty of
finding, in percent). Written by highdicom. Not verified by anybody, as a program's findings are.
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
"""How the classes of images begin that the standard names: highdicom knows no other (PS3.4 B.5)."""
_CODE = 16
"""The most characters of a code (PS3.5, SH)."""
SERIES = "Trivium lung nodules (for research, not for diagnosis)"
ALGORITHM = "Trivium lung nodules"

logging.getLogger("highdicom").setLevel(logging.WARNING)  # below, it cites the identifiers of images


def report_source(
    volume: CTVolume, findings: Findings, models: Mapping[str, Any], digests: Mapping[str, str] | None = None
) -> bytes | None:
    """What ``structured_report``, ``fhir_bundle`` and ``reviewed_source`` are made from, as JSON.

    ``models`` are versions by name, ``digests`` the SHA-256 of their weights. Findings below the operating score are
    apart, as ``weaker``: only where a reader accepts them are they filed. None where the CT is no DICOM whose images
    have unique identifiers of their own and a class of the standard's.
    """
    known = {"StudyInstanceUID", "SeriesInstanceUID"} <= volume.identifiers.keys()
    images = volume.images
    named = {(image.sop_instance_uid, image.frame) for image in images if image.sop_class_uid.startswith(_IMAGES)}
    if not (known and images and len(named) == len(images) and all(uid for uid, _ in named)):
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
    """The report of the findings as a DICOM file, the same from the same source, which holds its time.

    There must be findings in it: that a program found nothing is nothing to be filed. Its identifiers follow from its
    content; that of its series from the findings alone.
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
    """The series of the report of a ``source``."""
    return unique_identifier(untimed(source) + b"series")


def device_observer() -> Any:
    """Trivium as who observed (TID 1004)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=unique_identifier(b"trivium"), name="Trivium", manufacturer_name="Trivium"
    )
    return hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)


def report_file(
    content: Mapping[str, Any], *, context: Any, groups: Sequence[Any], comments: Iterable[str], **stated: Any
) -> bytes:
    """A measurement report (TID 1500) of one or more ``groups`` as a DICOM file.

    ``content`` is that of a report's source, ``context`` says who observed, ``stated`` is what else highdicom is told.
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
    made = hd.sr.Comprehensive3DSR(
        evidence=_evidence(content),
        content=report[0],
        instance_number=1,
        manufacturer="Trivium",
        specific_character_set="ISO_IR 192",
        **stated,
    )
    return dicom_file(made, content)


def dicom_file(made: Dataset, content: Mapping[str, Any]) -> bytes:
    """What was made from a report's source, as a file of its time, and of its patient where it names one."""
    from pydicom.config import disable_value_validation

    date, time = content["made"][:10].replace("-", ""), content["made"][11:19].replace(":", "")
    made.InstanceCreationDate = made.ContentDate = date
    made.InstanceCreationTime = made.ContentTime = time
    for equipment in made.get("ContributingEquipmentSequence") or ():
        equipment.ContributionDateTime = date + time
    for observer in made.get("VerifyingObserverSequence") or ():
        observer.VerificationDateTime = date + time
    written = io.BytesIO()
    with disable_value_validation():  # whose the scan is stands there as in the CT, be it as DICOM wants it or not
        for keyword in PATIENT_KEYWORDS:
            setattr(made, keyword, content["patient"].get(keyword, ""))
        made.save_as(written, enforce_file_format=True)
    return written.getvalue()


def _finding(volume: CTVolume, nodule: Nodule) -> dict[str, Any]:
    """A finding's image, from 0, and its box there as x, y in pixels from the outer corner of the first (C.18.6)."""
    low_mm, high_mm = np.array(nodule.box_lps_mm).reshape(2, 3)
    nearest = np.abs(volume.direction).argmax(axis=0)  # which axis of LPS each of the image's is nearest to
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
    """One finding as a measurement group; of one that a reader added no algorithm is stated, and no certainty."""
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
        finding_type=kind(finding["label"]),
        finding_sites=[hd.sr.FindingSite(anatomic_location=codes.SCT.Lung)],
        algorithm_id=None if is_added else algorithm,
        measurements=measurements,
    )


def _evidence(content: Mapping[str, Any]) -> list[Any]:
    """The images as datasets with what a report takes from them; a multi-frame image once."""
    from pydicom.dataset import Dataset

    found: dict[str, Dataset] = {}
    for sop_class, sop_instance, _ in content["images"]:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = sop_class, sop_instance
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            setattr(image, keyword, content["identifiers"][keyword])
        for keyword in PATIENT_KEYWORDS:
            setattr(image, keyword, "")
        found.setdefault(sop_instance, image)
    return list(found.values())


def tracking(source: bytes, number: int) -> tuple[str, str]:
    """By what the finding ``number`` (from 0) of the report's ``source`` is found again: identifier and unique one.

    In the order of their ranks: after those that the report has come the weaker ones.
    """
    if "tracking" in (finding := (json.loads(source)["findings"][number:] or [{}])[0]):
        identifier, uid = finding["tracking"]
        return identifier, uid
    return f"Finding {number + 1}", unique_identifier(untimed(source) + str(number).encode())


def untimed(source: bytes) -> bytes:
    """A report's source without its time and what it leaves out: the same whenever the same is found."""
    content = {name: value for name, value in json.loads(source).items() if name != "weaker"}
    return json.dumps({**content, "made": None}, sort_keys=True).encode()


def kind(label: str) -> Any:
    """What a finding of a class is, as a code."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if label == NODULE:
        return codes.SCT.Nodule
    label = label.replace("\\", "/")
    code = label if 0 < len(label) <= _CODE else hashlib.sha256(label.encode()).hexdigest()[:_CODE]
    return hd.sr.CodedConcept(code, "99TRIVIUM", label[:64] or "unnamed")


def versions(content: Mapping[str, Any]) -> str:
    """Which models found what is in the report's source."""
    return ", ".join(f"{name} {number}" for name, number in content["models"].items()) or "unknown"


def _software() -> str:
    try:
        return version("trivium")
    except PackageNotFoundError:
        return "unknown"


def unique_identifier(content: bytes) -> str:
    """A unique identifier that follows from the content (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(content).digest()[:16], 'big')}"
