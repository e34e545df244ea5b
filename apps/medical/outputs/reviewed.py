"""The report of a case as its reader left it: what the reader accepted of the findings, and the nodules added to them.

A DICOM structured report by TID 1500 as ``report`` writes it of the findings alone, in a series of its own. A group
says who observed it: the program, or the reader (TID 1003) what the reader added. Nothing that was rejected or not
decided on is in it.
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
    untimed,
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
_COMPONENTS, _GROUPS = 5, 3
"""The most parts of a name, and ways to write it (PS3.5 6.2.1)."""
_NAME = 64
"""The most characters of a name that is written in one way (PS3.5, PN)."""
_SQUARE = 1e-3
"""By how much the sides of a pixel may differ where a circle is one."""
_TRACKING = 2
"""A group begins with its tracking identifier and the unique one; who observed comes next."""
_VERDICTS = {"accepted": "accepted", "rejected": "rejected", "undecided": None}


def stated_review(review: Review, organization: str | None) -> bytes:
    """A review as JSON for ``reviewed_source``; verified where the ``organization`` is named that answers for it."""
    said = {
        "reviewer": review.reviewer,
        "made": datetime.fromtimestamp(review.reviewed_ns // 10**9).astimezone().isoformat(),
        "reviewed": review.reviewed,
        "verdicts": {str(number): verdict for number, verdict in review.verdicts.items()},
        "missed": [dict(one) for one in review.missed],
        "note": review.note,
        "organization": organization,
    }
    return json.dumps(said, sort_keys=True).encode()


def reviewed_source(report: bytes, result: bytes, review: bytes) -> bytes:
    """What the reviewed report is made from, as JSON: a report's source whose findings are those that the reader left.

    From the ``report``'s own source, ``result.json`` and a ``stated_review``. Refuses (409) a review that leaves no
    finding, for there is no measurement report without one, and a verified one that is not complete.
    """
    content, said, volume = json.loads(report), json.loads(review), json.loads(result)["volume"]
    found = [*content["findings"], *content["weaker"]]
    verdicts = [said["verdicts"].get(str(rank)) for rank in range(1, len(found) + 1)]
    accepted = [number for number, verdict in enumerate(verdicts) if verdict == "accepted"]
    findings = [{**found[number], "tracking": tracking(report, number)} for number in accepted]
    for number, one in enumerate(said["missed"], start=1):
        uid = unique_identifier(untimed(report) + json.dumps(one, sort_keys=True).encode())
        findings.append({**_missed(volume, one), "tracking": [f"Added {number}", uid]})
    if not findings:
        raise InvalidInputError(
            "the review neither accepts a finding nor adds one, and a DICOM measurement report (TID 1500) holds at "
            "least one; accept or add what is to be reported",
            status=409,
        )
    above = len(content["findings"])
    undecided = [rank for rank, verdict in enumerate(verdicts[:above], start=1) if verdict is None]
    if said["organization"] is not None:
        _check_complete(undecided, content["complete"])
    filed = any(number < above for number in accepted)
    return json.dumps(
        {
            **content,
            "findings": findings,
            "weaker": [],
            "complete": content["complete"] and not undecided,
            "made": said["made"],
            "series": unique_identifier(untimed(report) + b"reviewed series"),
            "predecessor": [series_uid(report), unique_identifier(report)] if filed else None,
            REVIEW: {
                **{name: said[name] for name in ("reviewer", "note", "organization")},
                "summary": _summary(said, {word: verdicts.count(verdict) for word, verdict in _VERDICTS.items()}),
            },
        },
        sort_keys=True,
    ).encode()


def _check_complete(undecided: list[int], is_all_listed: bool) -> None:
    """Refuses what nobody can attest to as a whole."""
    if undecided:
        numbers = ", ".join(map(str, undecided))
        raise InvalidInputError(
            f"the review cannot be verified: it says nothing of findings that reach the operating score ({numbers}); "
            "accept or reject them",
            status=409,
        )
    if not is_all_listed:
        raise InvalidInputError(
            "the review cannot be verified: more findings reach the operating score than are listed; analyse the CT "
            "with a larger option most, and review that case",
            status=409,
        )


def _summary(said: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """Who reviewed the case, when, and what became of the findings."""
    who = said["reviewer"] or f"an {_UNNAMED.lower()}"
    accepted, added = counts["accepted"], len(said["missed"])
    told = [f"{accepted} {'finding' if accepted == 1 else 'findings'} of software accepted"]
    told += [f"{counts[word]} {word}" for word in ("rejected", "undecided") if counts[word]]
    if added:
        told.append(f"{added} {'nodule' if added == 1 else 'nodules'} added by the reader")
    at = f"on {said['reviewed'][:10]} at {said['reviewed'][11:16]} UTC"
    return f"Reviewed by {who} {at}: {', '.join(told)}. What was rejected or not decided on is left out."


def _missed(volume: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """A nodule that was added: a circle of its diameter on the image where its centre lies, as x, y in pixels from the
    outer corner of the first; where pixels are not square, an ellipse (its longer axis in pixels first).
    """
    spacing = np.array(volume["spacing_mm"])
    index_ijk = np.array(volume["direction"]).T @ (np.array(one["centre_lps_mm"]) - volume["origin_lps_mm"]) / spacing
    columns, _, slices = volume["size_ijk"]
    centre = index_ijk[:2] + 0.5
    radii = one["diameter_mm"] / 2 / spacing[:2]
    if abs(radii[1] / radii[0] - 1) < _SQUARE:
        aside = radii[0] if centre[0] + radii[0] <= columns else -radii[0]
        shape, points = "CIRCLE", [centre, centre + [aside, 0]]
    else:
        steps = np.diag(radii)[np.argsort(-radii)]
        shape, points = "ELLIPSE", [point for step in steps for point in (centre - step, centre + step)]
    return {
        "image": min(max(round(float(index_ijk[2])), 0), slices - 1),
        "centre_lps_mm": one["centre_lps_mm"],
        "shape": shape,
        "region": np.round(points, 2).tolist(),
        "axes_mm": None,
        "mean_diameter_mm": round(one["diameter_mm"], 2),
        "volume_mm3": None,
        "percent": None,
        "label": NODULE,
        "added": True,
    }


def reviewed_report(source: bytes) -> bytes:
    """The report of a ``reviewed_source`` as a DICOM file, the same from the same source.

    VERIFIED and FINAL where the source names an organization, by the reviewer at the time of the review; else
    UNVERIFIED and PRELIMINARY.
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
        for place, item in enumerate(reader if "added" in finding else device_observer(), start=_TRACKING):
            group[0].ContentSequence.insert(place, item)
        groups.append(group)
    stated: dict[str, Any] = {}
    if organization is not None:
        stated = {
            "is_verified": True,
            "is_final": True,  # or it would not count as the prevailing final version (PS3.3 C.17.2)
            "verifying_observer_name": name,
            "verifying_organization": organization,
        }
    if content["predecessor"] is not None:
        stated["previous_versions"] = [_predecessor(content)]
    return report_file(
        content,
        context=hd.sr.ObservationContext(observer_person_context=reader, observer_device_context=device_observer()),
        groups=groups,
        comments=[review["summary"], *_lines(review["note"]), *content["remarks"]],
        series_instance_uid=content["series"],
        series_number=_SERIES_NUMBER,
        sop_instance_uid=unique_identifier(source),
        is_complete=content["complete"],
        series_description=_SERIES,
        **stated,
    )


def _lines(note: str) -> list[str]:
    """A note as a DICOM text, its lines ended as there and without other control characters (PS3.5 6.1.3); or none."""
    text = "\r\n".join(re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", "", line) for line in note.splitlines())
    return [text] if text.strip() else []


def _predecessor(content: Mapping[str, Any]) -> Dataset:
    """The report of the findings alone, of which content is taken over (PS3.3 C.17.2)."""
    from pydicom.dataset import Dataset
    from pydicom.uid import Comprehensive3DSRStorage

    report = Dataset()
    report.StudyInstanceUID = content["identifiers"]["StudyInstanceUID"]
    report.SeriesInstanceUID, report.SOPInstanceUID = content["predecessor"]
    report.SOPClassUID = Comprehensive3DSRStorage
    return report


def person_name(reviewer: str | None) -> str:
    """A reviewer's name as DICOM has names, of 64 characters at most; one that is none of these as a family name alone.

    One without parts ends in ^, by which a reader knows that this is meant.
    """
    name = (reviewer or _UNNAMED).replace("\\", "/")
    written = name.split("=")
    if len(written) > _GROUPS or any(len(one.split("^")) > _COMPONENTS for one in written):
        name = name.replace("=", " ").replace("^", " ")
    return name if "^" in name else f"{name[: _NAME - 1]}^"
