"""The HTTP side: decodes files and options into volumes, and encodes findings into a response."""

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
from apps.medical.outputs.picture import picture_source, png
from apps.medical.outputs.report import REPORT, REPORT_SOURCE, report_source, structured_report
from apps.medical.outputs.result import result
from apps.medical.outputs.reviewed import (
    REVIEW,
    REVIEWED_FHIR,
    REVIEWED_REPORT,
    review_json,
    reviewed_report,
    reviewed_source,
)
from apps.medical.outputs.segmentation import SEGMENTATION, can_be_segmented, segmentation
from apps.medical.outputs.slab import SLAB, slab_file, slab_source
from apps.medical.outputs.whole_scan import SCAN, whole_scan
from apps.medical.types import CTVolume, Findings
from shared.deploy.predictor import PICTURE, Decoded, DeferredFiles, Request, Response, programs_of
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from shared.review import Review
    from shared.serve.service import Service

INCOMPLETE = (
    "The series may be incomplete: the sender did not release its association, and no further images arrived. Compare "
    "the number of images, and send the series again if some are missing."
)

COMPARISON = "comparison.json"
_ORGANIZATION = r"^[^\\\x00-\x1f\x7f]*[^\s\\\x00-\x1f\x7f][^\\\x00-\x1f\x7f]*$"
"""A non-blank DICOM long string (LO, PS3.5 6.2)."""
NO_REPORT = (
    "the case has no DICOM report: its input was not a DICOM series, or the study, series or images lack unique "
    "identifiers or a standard SOP class, or the case was stored by an earlier version (then analyse the CT again)"
)


class MedicalCodec:
    """One CT per request.

    Options: ``score`` (0 to 1), ``most`` (1 to 100), ``series`` (SeriesNumber or UID), ``patient`` (yes or no: whether
    the DICOM files and the FHIR bundle name the patient), ``incomplete`` (yes or no: whether images may be missing,
    in which case a remark says so).
    """

    def __init__(self, predictor: object = None) -> None:
        self._predictor = predictor

    def decode(self, request: Request) -> Decoded[CTVolume]:
        """Reads the one CT in the request's files. Raises ``InvalidInputError``."""
        fields = request.options
        options = read_options(fields)
        volume = read_volume(request.files, series=fields.get("series") or None, patient=fields.get("patient") == "yes")
        if fields.get("incomplete") == "yes":
            volume = replace(volume, remarks=(*volume.remarks, INCOMPLETE))
        return Decoded(inputs=(volume,), options=options)

    def encode(self, decoded: Decoded[CTVolume], outputs: Sequence[Findings]) -> Response:
        """The findings as ``result.json`` and files; files that are slow to make are deferred until requested."""
        (volume,), (findings,) = decoded.inputs, outputs
        deferred: dict[str, tuple[str, ...]] = {PICTURE: ("sheet",), SLAB: ("voxels.npz",)}
        sources = {"sheet": picture_source(volume, findings), "voxels.npz": slab_source(volume, findings)}
        versions = {name: program.version for name, program in programs_of(self._predictor).items()}
        digests = getattr(self._predictor, "digests", None)
        if (report := report_source(volume, findings, versions, digests)) is not None:
            sources[REPORT_SOURCE] = report
        if report is not None and any(nodule.score >= findings.operating_score for nodule in findings.nodules):
            deferred[REPORT] = deferred[FHIR] = (REPORT_SOURCE,)
            if can_be_segmented(volume, findings):
                deferred[SEGMENTATION] = (REPORT_SOURCE, PIECES)
        if (pieces := pieces_source(volume, findings)) is not None:
            deferred[LABELS], sources[PIECES] = (PIECES,), pieces
        return Response(
            result=result(volume, findings),
            files=output_files(volume, findings),
            later=DeferredFiles(
                files=deferred,
                sources=sources,
                lasting=() if report is None else (REPORT_SOURCE,),
                inputs={SCAN: lambda: whole_scan(volume)},
            ),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """Makes a deferred file, or the file of one of the routes below, by its name."""
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
            # Imported here because it imports SimpleITK.
            from apps.medical.outputs.comparison import comparison_file

            return comparison_file(sources)
        return png(sources["sheet"]) if name == PICTURE else slab_file(sources["voxels.npz"])


def router(service: Service) -> APIRouter:
    """Routes for the comparison of a case with an earlier scan, and for its reviewed report."""
    from fastapi import APIRouter, Depends, Query, Response
    from fastapi.concurrency import run_in_threadpool

    from apps.medical.schemas import MedicalComparison
    from shared.serve.api.cases import GENERATED_FILE_RESPONSES
    from shared.serve.known_keys import get_group
    from shared.serve.openapi import content, file_content
    from shared.store.cases import RESULT

    routes = APIRouter()
    # Passed as defaults, not in annotations: FastAPI resolves annotations where this function's imports are unknown.
    prior_query = Query(description="the case of the earlier scan")
    days_query = Query(default=None, description="days between the two scans, for the doubling time")
    group_dependency = Depends(get_group)

    @routes.get("/cases/{case_id}/comparison", response_model=MedicalComparison, responses=GENERATED_FILE_RESPONSES)
    async def comparison(
        case_id: str,
        prior: str = prior_query,
        days: float | None = days_query,
        group: str | None = group_dependency,
    ) -> Response:
        """Compares the findings of a case with those of an earlier scan of the same patient."""
        sources: dict[str, Path | bytes] = {"days": b"" if days is None else repr(days).encode()}
        cases = [await run_in_threadpool(service.case, requested, group) for requested in (case_id, prior)]
        for side, case in zip(("now", "before"), cases, strict=True):
            for name in (RESULT, SLAB):
                sources[f"{side}/{name}"] = await service.file(case, name)
        return Response(await service.make(COMPARISON, sources, group), media_type="application/json")

    for operation, name, body, format_name in (
        ("reviewed_report", REVIEWED_REPORT, file_content("application/dicom"), "a DICOM structured report"),
        ("reviewed_fhir", REVIEWED_FHIR, content("application/fhir+json", {"type": "object"}), "a FHIR bundle"),
    ):
        _add_reviewed(
            routes, service, operation, name, body, f"The findings after a reader's review, as {format_name}."
        )
    return routes


def _add_reviewed(
    routes: APIRouter, service: Service, operation: str, name: str, body: dict[str, Any], description: str
) -> None:
    """Adds the route of a file that is made from a case and its review.

    ``operation`` and ``body`` are the operation's name and successful response in the OpenAPI document.
    """
    from fastapi import Depends, Query, Response
    from fastapi.concurrency import run_in_threadpool

    from shared.serve.api.reviews import get_key_name
    from shared.serve.api.schemas import Problem
    from shared.serve.known_keys import get_group
    from shared.store.cases import RESULT

    reviewer_query = Query(
        default=None, description="the reviewer; empty for a review without a name; the newest review if left out"
    )
    verified_query = Query(default="no", description="yes: the reviewer attests to the report, which is then VERIFIED")
    organization_query = Query(
        default=None,
        min_length=1,
        max_length=64,
        pattern=_ORGANIZATION,
        description="the organization that is responsible for a verified report",
    )
    key_name_dependency, group_dependency = Depends(get_key_name), Depends(get_group)
    (media_type,) = body["content"]
    saved_as = name.rpartition("/")[2].replace(".", ".reviewed.", 1)
    responses: dict[int | str, dict[str, Any]] = {
        200: body,
        403: {"model": Problem, "description": "Verification was requested, but the key is not the reviewer's"},
        404: {"model": Problem, "description": "There is no such case, or no such review of it"},
        409: {"model": Problem, "description": "No report can be made of the case or of this review"},
        503: {"model": Problem, "description": "The server has no capacity to make the file now; see Retry-After"},
        504: {"model": Problem, "description": "The file could not be made before the deadline"},
        507: {"model": Problem, "description": "The disk is full"},
    }

    async def read(
        case_id: str,
        reviewer: str | None = reviewer_query,
        verified: Literal["yes", "no"] = verified_query,
        organization: str | None = organization_query,
        key_name: str | None = key_name_dependency,
        group: str | None = group_dependency,
    ) -> dict[str, Any]:
        """The sources of the file, by name."""
        if (verified == "yes") is (organization is None):
            raise InvalidInputError(
                "verified=yes and organization go together: give both for a verified report, otherwise neither"
            )
        case = await run_in_threadpool(service.case, case_id, group)
        if organization is not None and reviewer is None:
            reviewer = key_name
        review = _review(await run_in_threadpool(service.store.reviews.of_case, case.id), reviewer)
        if organization is not None and key_name not in (None, review.reviewer):
            raise InvalidInputError(
                "only the reviewer's own key can verify the report; this is another key", status=403
            )
        if organization is not None and review.reviewer is None:
            raise InvalidInputError("the review names no reviewer, so its report cannot be verified", status=409)
        report = await run_in_threadpool(service.store.lasting, case, REPORT_SOURCE)
        if report is None:
            raise InvalidInputError(NO_REPORT, status=409)
        stated = review_json(review, organization)
        return {REPORT_SOURCE: report, RESULT: await service.file(case, RESULT), REVIEW: stated}

    sources = Depends(read)
    headers = {"Content-Disposition": f'attachment; filename="{saved_as}"'}

    async def reviewed(contents: dict[str, Any] = sources, group: str | None = group_dependency) -> Response:
        return Response(await service.make(name, contents, group), media_type=media_type, headers=headers)

    async def checked(contents: dict[str, Any] = sources) -> Response:
        """Refuses what GET refuses, without making the file: the form asks whenever it opens a reviewed case."""
        await run_in_threadpool(_reviewed_source, contents)
        response = Response(media_type=media_type, headers=headers)
        del response.headers["Content-Length"]  # not known before the file is made (RFC 9110, 9.3.2)
        return response

    path = f"/cases/{{case_id}}/{name}"
    routes.head(path, include_in_schema=False, response_model=None)(checked)
    routes.get(
        path,
        name=operation,
        description=description,
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
    """The review by ``reviewer``, or the newest if that is None. Raises ``InvalidInputError`` (404) without one."""
    if not reviews:
        raise InvalidInputError("the case has no review", status=404)
    for review in reviews:
        if reviewer is None or (review.reviewer or "") == reviewer.strip():
            return review
    names = ", ".join(review.reviewer or "an unnamed reader" for review in reviews)
    raise InvalidInputError(f"the case was not reviewed by {reviewer!r}; its reviewers: {names}", status=404)
