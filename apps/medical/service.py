"""The HTTP side: files and options to volumes, findings to a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apps.medical.adapters.source import read_volume
from apps.medical.inference.options import read_options
from apps.medical.outputs.fhir import FHIR, fhir_bundle
from apps.medical.outputs.files import output_files
from apps.medical.outputs.labels import LABELS, PIECES, label_map, pieces_source
from apps.medical.outputs.picture import png, sheet_source
from apps.medical.outputs.report import REPORT, REPORT_SOURCE, report_source, structured_report
from apps.medical.outputs.result import result
from apps.medical.outputs.reviewed import (
    REVIEW,
    REVIEWED_FHIR,
    REVIEWED_REPORT,
    reviewed_report,
    reviewed_source,
    stated_review,
)
from apps.medical.outputs.segmentation import SEGMENTATION, can_be_segmented, segmentation
from apps.medical.outputs.slab import SLAB, slab_file, slab_source
from apps.medical.outputs.whole_scan import SCAN, whole_scan
from apps.medical.types import CTVolume, Findings
from shared.deploy.predictor import PICTURE, Decoded, Later, Request, Response, programs_of
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from shared.review import Review
    from shared.serve.service import Service

INCOMPLETE = (
    "The series may be incomplete: its sender did not end it as DICOM has it, and nothing more of it came. Compare the "
    "number of images, and send the series again where some are missing."
)

COMPARISON = "comparison.json"
_ORGANIZATION = r"^[^\\\x00-\x1f\x7f]*[^\s\\\x00-\x1f\x7f][^\\\x00-\x1f\x7f]*$"
"""A long string of DICOM's that is not blank (PS3.5 6.2)."""
NO_REPORT = (
    "there is no DICOM report of the case: it is of no DICOM series, or of one whose study, series or images lack "
    "unique identifiers or a class that the standard names, or an earlier version kept it: then analyse the CT again"
)


class MedicalCodec:
    """One CT a request.

    Options: ``score`` (0 to 1), ``most`` (1 to 100), ``series`` (SeriesNumber or UID), ``patient`` (yes or no: whether
    the DICOM files and the FHIR bundle say whose the scan is), ``incomplete`` (yes or no: whether images may be
    missing, which a remark then says).
    """

    def __init__(self, predictor: object = None) -> None:
        self._predictor = predictor

    def decode(self, request: Request) -> Decoded[CTVolume]:
        """The one CT in the request's files. Raises ``InvalidInputError``."""
        given = request.options
        options = read_options(given)
        volume = read_volume(request.files, series=given.get("series") or None, patient=given.get("patient") == "yes")
        if given.get("incomplete") == "yes":
            volume = replace(volume, remarks=(*volume.remarks, INCOMPLETE))
        return Decoded(inputs=(volume,), options=options)

    def encode(self, decoded: Decoded[CTVolume], outputs: Sequence[Findings]) -> Response:
        """The findings as ``result.json`` and files in the field's formats; later all that is costly."""
        (volume,), (findings,) = decoded.inputs, outputs
        made: dict[str, tuple[str, ...]] = {PICTURE: ("sheet",), SLAB: ("voxels.npz",)}
        sources = {"sheet": sheet_source(volume, findings), "voxels.npz": slab_source(volume, findings)}
        versions = {name: program.version for name, program in programs_of(self._predictor).items()}
        digests = getattr(self._predictor, "digests", None)
        if (report := report_source(volume, findings, versions, digests)) is not None:
            sources[REPORT_SOURCE] = report
        if report is not None and any(one.score >= findings.operating_score for one in findings.nodules):
            made[REPORT] = made[FHIR] = (REPORT_SOURCE,)
            if can_be_segmented(volume, findings):
                made[SEGMENTATION] = (REPORT_SOURCE, PIECES)
        if (pieces := pieces_source(volume, findings)) is not None:
            made[LABELS], sources[PIECES] = (PIECES,), pieces
        return Response(
            result=result(volume, findings),
            files=output_files(volume, findings),
            later=Later(
                files=made,
                sources=sources,
                lasting=() if report is None else (REPORT_SOURCE,),
                inputs={SCAN: lambda: whole_scan(volume)},
            ),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """The picture, the slab, the report, its FHIR bundle, the segmentation, the labels, or what a route gives."""
        if name == REPORT:
            return structured_report(sources[REPORT_SOURCE])
        if name == FHIR:
            return fhir_bundle(sources[REPORT_SOURCE])
        if name == SEGMENTATION:
            return segmentation(sources[REPORT_SOURCE], sources[PIECES])
        if name == LABELS:
            return label_map(sources[PIECES])
        if name in (REVIEWED_REPORT, REVIEWED_FHIR):
            reviewed = reviewed_source(sources[REPORT_SOURCE], sources["result.json"], sources[REVIEW])
            return reviewed_report(reviewed) if name == REVIEWED_REPORT else fhir_bundle(reviewed)
        if name == COMPARISON:
            # With it comes SimpleITK.
            from apps.medical.outputs.comparison import comparison_file

            return comparison_file(sources)
        return png(sources["sheet"]) if name == PICTURE else slab_file(sources["voxels.npz"])


def router(service: Service) -> APIRouter:
    """A case beside that of an earlier scan, and its report as a reader left it."""
    from fastapi import APIRouter, Depends, Query, Response
    from fastapi.concurrency import run_in_threadpool

    from apps.medical.schemas import MedicalComparison
    from shared.serve.api.cases import MADE
    from shared.serve.known_keys import get_group
    from shared.serve.openapi import content, file_content
    from shared.store.cases import RESULT

    routes = APIRouter()
    # As defaults, for FastAPI reads annotations where this function's imports are not known.
    earlier = Query(description="the case of the earlier scan")
    between = Query(default=None, description="the days between the two scans, for the doubling time")
    of_group = Depends(get_group)

    @routes.get("/cases/{case_id}/comparison", response_model=MedicalComparison, responses=MADE)
    async def comparison(
        case_id: str,
        prior: str = earlier,
        days: float | None = between,
        group: str | None = of_group,
    ) -> Response:
        """The findings of a case beside those of an earlier scan of the same patient."""
        sources: dict[str, Path | bytes] = {"days": b"" if days is None else repr(days).encode()}
        cases = [await run_in_threadpool(service.case, asked, group) for asked in (case_id, prior)]
        for side, case in zip(("now", "before"), cases, strict=True):
            for name in (RESULT, SLAB):
                sources[f"{side}/{name}"] = await service.file(case, name)
        return Response(await service.make(COMPARISON, sources, group), media_type="application/json")

    for operation, name, body, words in (
        ("reviewed_report", REVIEWED_REPORT, file_content("application/dicom"), "a DICOM structured report"),
        ("reviewed_fhir", REVIEWED_FHIR, content("application/fhir+json", {"type": "object"}), "a FHIR bundle"),
    ):
        _add_reviewed(routes, service, operation, name, body, f"The findings as a reader left them, as {words}.")
    return routes


def _add_reviewed(
    routes: APIRouter, service: Service, operation: str, name: str, body: dict[str, Any], described: str
) -> None:
    """A route to what is made of a case and its review, as ``operation`` and ``body`` in the OpenAPI document."""
    from fastapi import Depends, Query, Response
    from fastapi.concurrency import run_in_threadpool

    from shared.serve.api.reviews import get_key_name
    from shared.serve.api.schemas import Problem
    from shared.serve.known_keys import get_group
    from shared.store.cases import RESULT

    whose = Query(default=None, description="whose review; empty for one without a name; the newest where left out")
    asked = Query(default="no", description="yes: the reviewer attests to the report, which is then VERIFIED")
    answers_to = Query(
        default=None, min_length=1, max_length=64, pattern=_ORGANIZATION, description="of a verified report: whose"
    )
    asking, of_group = Depends(get_key_name), Depends(get_group)
    (media_type,) = body["content"]
    saved_as = name.rpartition("/")[2].replace(".", ".reviewed.", 1)
    responses: dict[int | str, dict[str, Any]] = {
        200: body,
        403: {"model": Problem, "description": "It is to be verified, and the key is not its reviewer's"},
        404: {"model": Problem, "description": "There is no such case, or no such review of it"},
        409: {"model": Problem, "description": "There is no report of the case, or of this review"},
        503: {"model": Problem, "description": "There is no room to make it; see Retry-After"},
        504: {"model": Problem, "description": "It could not be made before the deadline"},
        507: {"model": Problem, "description": "The disk is full"},
    }

    async def read(
        case_id: str,
        reviewer: str | None = whose,
        verified: Literal["yes", "no"] = asked,
        organization: str | None = answers_to,
        key_name: str | None = asking,
        group: str | None = of_group,
    ) -> dict[str, Any]:
        """What it is made from, by name."""
        if (verified == "yes") is (organization is None):
            raise InvalidInputError("a verified report needs both verified=yes and organization, another has neither")
        case = await run_in_threadpool(service.case, case_id, group)
        if organization is not None and reviewer is None:
            reviewer = key_name
        review = _review(await run_in_threadpool(service.store.reviews.of_case, case.id), reviewer)
        if organization is not None and key_name not in (None, review.reviewer):
            raise InvalidInputError("a report is verified by the key of its reviewer, and this is another", status=403)
        if organization is not None and review.reviewer is None:
            raise InvalidInputError("the review names no reviewer, and so nobody verifies its report", status=409)
        report = await run_in_threadpool(service.store.lasting, case, REPORT_SOURCE)
        if report is None:
            raise InvalidInputError(NO_REPORT, status=409)
        stated = stated_review(review, organization)
        return {REPORT_SOURCE: report, RESULT: await service.file(case, RESULT), REVIEW: stated}

    sources = Depends(read)
    headers = {"Content-Disposition": f'attachment; filename="{saved_as}"'}

    async def reviewed(given: dict[str, Any] = sources, group: str | None = of_group) -> Response:
        return Response(await service.make(name, given, group), media_type=media_type, headers=headers)

    async def checked(given: dict[str, Any] = sources) -> Response:
        """Refuses what GET refuses, and makes nothing: the form asks each time that a reviewed case is opened."""
        await run_in_threadpool(_reviewed_source, given)
        answer = Response(media_type=media_type, headers=headers)
        del answer.headers["Content-Length"]  # which is not known yet (RFC 9110, 9.3.2)
        return answer

    path = f"/cases/{{case_id}}/{name}"
    routes.head(path, include_in_schema=False, response_model=None)(checked)
    routes.get(
        path,
        name=operation,
        description=described,
        response_class=Response,
        response_model=None,
        responses=responses,
    )(reviewed)


def _reviewed_source(sources: Mapping[str, Path | bytes]) -> bytes:
    report, result, review = (
        found if isinstance(found := sources[name], bytes) else found.read_bytes()
        for name in (REPORT_SOURCE, "result.json", REVIEW)
    )
    return reviewed_source(report, result, review)


def _review(reviews: Sequence[Review], reviewer: str | None) -> Review:
    """The reviewer's among a case's reviews, or the newest. Refuses (404) where there is none."""
    if not reviews:
        raise InvalidInputError("the case has no review", status=404)
    for review in reviews:
        if reviewer is None or (review.reviewer or "") == reviewer.strip():
            return review
    names = ", ".join(one.reviewer or "somebody without a name" for one in reviews)
    raise InvalidInputError(f"the case was not reviewed by {reviewer!r}; it was by {names}", status=404)
