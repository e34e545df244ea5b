"""The report of a reviewed case: the findings that the reader accepted, and the nodules that the reader added.

A DICOM structured report by TID 1500, like that of ``report``, in a separate series. Each measurement group states its
observer: the program, or for added nodules the reader (TID 1003). Findings that were rejected or left undecided are not
included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.outputs.fhir import FHIR
from apps.medical.outputs.report import (
    REPORT,
    device_observer,
    measurement_group,
    report_file,
    series_uid,
    tracking,
    unique_identifier,
    without_time,
)
from apps.medical.types import NODULE
from shared.errors import InvalidInputError
from shared.review import Review

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

REVIEW = "review"
REVIEWED_REPORT, REVIEWED_FHIR = f"{REVIEW}/{REPORT}", f"{REVIEW}/{FHIR}"
_SERIES_NUMBER = 9902
_SERIES = "Trivium lung nodules, reviewed (research, not diagnosis)"
_UNNAMED = "Unnamed reader"
_MAX_COMPONENTS, _MAX_GROUPS = 5, 3
"""The maximum numbers of components in a person name and of component groups (PS3.5 6.2.1)."""
_MAX_NAME_LENGTH = 64
"""The maximum length of a component group of a person name (PN, PS3.5 6.2)."""
_SQUARE_TOLERANCE = 1e-3
"""The maximum relative difference between the sides of a pixel that counts as square."""
_TRACKING_ITEMS = 2
"""A measurement group begins with its tracking identifier and tracking UID; its observer follows."""
_VERDICTS = {"accepted": "accepted", "rejected": "rejected", "undecided": None}


def review_json(review: Review, organization: str | None) -> bytes:
    """A review as JSON for ``reviewed_source``. It is verified if ``organization``, which is responsible, is given."""
    content = {
        "reviewer": review.reviewer,
        "made": datetime.fromtimestamp(review.reviewed_ns // 10**9).astimezone().isoformat(),
        "reviewed": review.reviewed,
        "verdicts": {str(number): verdict for number, verdict in review.verdicts.items()},
        "missed": [dict(nodule) for nodule in review.missed],
        "note": review.note,
        "organization": organization,
    }
    return json.dumps(content, sort_keys=True).encode()


def reviewed_source(report: bytes, result: bytes, review: bytes) -> bytes:
    """The source of the reviewed report, as JSON: a report's source whose findings are those after the review.

    ``report`` is the source of the original report, ``result`` the content of ``result.json``, and ``review`` a
    ``review_json``. Raises ``InvalidInputError`` (409) if the review leaves no finding, because a measurement report
    needs at least one, or if a verified review is incomplete.
    """
    content, reviewed, volume = json.loads(report), json.loads(review), json.loads(result)["volume"]
    detected = [*content["findings"], *content["weaker"]]
    verdicts = [reviewed["verdicts"].get(str(rank)) for rank in range(1, len(detected) + 1)]
    accepted = [number for number, verdict in enumerate(verdicts) if verdict == "accepted"]
    findings = [{**detected[number], "tracking": tracking(report, number)} for number in accepted]
    for number, nodule in enumerate(reviewed["missed"], start=1):
        uid = unique_identifier(without_time(report) + json.dumps(nodule, sort_keys=True).encode())
        findings.append({**_added_finding(volume, nodule), "tracking": [f"Added {number}", uid]})
    if not findings:
        raise InvalidInputError(
            "the review neither accepts nor adds a finding, but a DICOM measurement report (TID 1500) needs at least "
            "one; accept or add the findings to report",
            status=409,
        )
    reported_count = len(content["findings"])
    undecided = [rank for rank, verdict in enumerate(verdicts[:reported_count], start=1) if verdict is None]
    if reviewed["organization"] is not None:
        _check_complete(undecided, content["complete"])
    keeps_reported = any(number < reported_count for number in accepted)
    return json.dumps(
        {
            **content,
            "findings": findings,
            "weaker": [],
            "complete": content["complete"] and not undecided,
            "made": reviewed["made"],
            "series": unique_identifier(without_time(report) + b"reviewed series"),
            "predecessor": [series_uid(report), unique_identifier(report)] if keeps_reported else None,
            REVIEW: {
                **{name: reviewed[name] for name in ("reviewer", "note", "organization")},
                "summary": _summary(reviewed, {word: verdicts.count(verdict) for word, verdict in _VERDICTS.items()}),
            },
        },
        sort_keys=True,
    ).encode()


def _check_complete(undecided: list[int], is_all_listed: bool) -> None:
    """Raises ``InvalidInputError`` (409) if the review does not cover all findings, so that it cannot be verified."""
    if undecided:
        numbers = ", ".join(map(str, undecided))
        raise InvalidInputError(
            f"the review cannot be verified: it leaves findings that reach the operating score undecided ({numbers}); "
            "accept or reject them",
            status=409,
        )
    if not is_all_listed:
        raise InvalidInputError(
            "the review cannot be verified: more findings reach the operating score than are listed; analyse the CT "
            "with a larger option most, and review that case",
            status=409,
        )


def _summary(reviewed: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """A sentence with the reviewer, the time, and the numbers of findings by verdict."""
    reviewer = reviewed["reviewer"] or f"an {_UNNAMED.lower()}"
    accepted, added = counts["accepted"], len(reviewed["missed"])
    parts = [f"{accepted} software {'finding' if accepted == 1 else 'findings'} accepted"]
    parts += [f"{counts[word]} {word}" for word in ("rejected", "undecided") if counts[word]]
    if added:
        parts.append(f"{added} {'nodule' if added == 1 else 'nodules'} added by the reader")
    time = f"on {reviewed['reviewed'][:10]} at {reviewed['reviewed'][11:16]} UTC"
    return f"Reviewed by {reviewer} {time}: {', '.join(parts)}. Rejected and undecided findings are not included."


def _added_finding(volume: Mapping[str, Any], nodule: Mapping[str, Any]) -> dict[str, Any]:
    """A nodule that the reader added, as a finding of a report's source.

    Its region is a circle of its diameter on the image of its centre, as x, y in pixels from the outer corner of the
    first pixel; an ellipse, with the axis that is longer in pixels first, if pixels are not square.
    """
    spacing = np.array(volume["spacing_mm"])
    offset = np.array(nodule["centre_lps_mm"]) - volume["origin_lps_mm"]
    index_ijk = np.array(volume["direction"]).T @ offset / spacing
    columns, _, slices = volume["size_ijk"]
    centre = index_ijk[:2] + 0.5
    radii = nodule["diameter_mm"] / 2 / spacing[:2]
    if abs(radii[1] / radii[0] - 1) < _SQUARE_TOLERANCE:
        signed_radius = radii[0] if centre[0] + radii[0] <= columns else -radii[0]
        shape, points = "CIRCLE", [centre, centre + [signed_radius, 0]]
    else:
        half_axes = np.diag(radii)[np.argsort(-radii)]
        shape, points = "ELLIPSE", [point for half in half_axes for point in (centre - half, centre + half)]
    return {
        "image": min(max(round(float(index_ijk[2])), 0), slices - 1),
        "centre_lps_mm": nodule["centre_lps_mm"],
        "shape": shape,
        "region": np.round(points, 2).tolist(),
        "axes_mm": None,
        "mean_diameter_mm": round(nodule["diameter_mm"], 2),
        "volume_mm3": None,
        "percent": None,
        "label": NODULE,
        "added": True,
    }


def reviewed_report(source: bytes) -> bytes:
    """The report of a ``reviewed_source`` as a DICOM file; it depends on the source alone.

    If the source names an organization, the report is VERIFIED by the reviewer, at the time of the review, and FINAL;
    otherwise it is UNVERIFIED and PRELIMINARY.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    content = json.loads(source)
    review = content[REVIEW]
    name, organization = person_name(review["reviewer"]), review["organization"]
    person = hd.sr.PersonObserverIdentifyingAttributes(name=name, organization_name=organization)
    reader = hd.sr.ObserverContext(observer_type=codes.DCM.Person, observer_identifying_attributes=person)
    groups = []
    for number, finding in enumerate(content["findings"]):
        group = measurement_group(number, content, source)
        observer = reader if "added" in finding else device_observer()
        for index, item in enumerate(observer, start=_TRACKING_ITEMS):
            group[0].ContentSequence.insert(index, item)
        groups.append(group)
    attributes: dict[str, Any] = {}
    if organization is not None:
        attributes = {
            "is_verified": True,
            "is_final": True,  # otherwise it would not be the prevailing final version (PS3.3 C.17.2)
            "verifying_observer_name": name,
            "verifying_organization": organization,
        }
    if content["predecessor"] is not None:
        attributes["previous_versions"] = [_predecessor(content)]
    return report_file(
        content,
        context=hd.sr.ObservationContext(observer_person_context=reader, observer_device_context=device_observer()),
        groups=groups,
        comments=[review["summary"], *_note_text(review["note"]), *content["remarks"]],
        series_instance_uid=content["series"],
        series_number=_SERIES_NUMBER,
        sop_instance_uid=unique_identifier(source),
        is_complete=content["complete"],
        series_description=_SERIES,
        **attributes,
    )


def _note_text(note: str) -> list[str]:
    """A note as DICOM text, with CR LF line ends and no other control characters (PS3.5 6.1.3); none if it is blank."""
    text = "\r\n".join(re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", "", line) for line in note.splitlines())
    return [text] if text.strip() else []


def _predecessor(content: Mapping[str, Any]) -> Dataset:
    """A reference to the original report, whose content is partly included in this one (PS3.3 C.17.2)."""
    from pydicom.dataset import Dataset
    from pydicom.uid import Comprehensive3DSRStorage

    report = Dataset()
    report.StudyInstanceUID = content["identifiers"]["StudyInstanceUID"]
    report.SeriesInstanceUID, report.SOPInstanceUID = content["predecessor"]
    report.SOPClassUID = Comprehensive3DSRStorage
    return report


def person_name(reviewer: str | None) -> str:
    """A reviewer's name as a DICOM person name (PN) of at most 64 characters.

    A name that is not in the form of a PN becomes a family name. A family name without other components is cut to 63
    characters and ends with ^, which marks it as a single component.
    """
    name = (reviewer or _UNNAMED).replace("\\", "/")
    groups = name.split("=")
    if len(groups) > _MAX_GROUPS or any(len(group.split("^")) > _MAX_COMPONENTS for group in groups):
        name = name.replace("=", " ").replace("^", " ")
    return name if "^" in name else f"{name[: _MAX_NAME_LENGTH - 1]}^"
