"""The HTTP side: files and options to volumes, findings to a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.medical.adapters.source import read_volume
from apps.medical.inference.options import read_options
from apps.medical.outputs.fhir import FHIR, fhir_bundle
from apps.medical.outputs.files import output_files
from apps.medical.outputs.labels import LABELS, PIECES, label_map, pieces_source
from apps.medical.outputs.picture import png, sheet_source
from apps.medical.outputs.report import REPORT, REPORT_SOURCE, report_source, structured_report
from apps.medical.outputs.result import result
from apps.medical.outputs.segmentation import SEGMENTATION, can_be_segmented, segmentation
from apps.medical.outputs.slab import SLAB, slab_file, slab_source
from apps.medical.types import CTVolume, Findings
from shared.deploy.predictor import PICTURE, Decoded, Later, Request, Response, programs_of

if TYPE_CHECKING:
    from fastapi import APIRouter

    from shared.serve.service import Service

INCOMPLETE = (
    "The series may be incomplete: its sender did not end it as DICOM has it, and nothing more of it came. Compare the "
    "number of images, and send the series again where some are missing."
)


COMPARISON = "comparison.json"


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
            made[REPORT], sources[REPORT_SOURCE] = (REPORT_SOURCE,), report
            made[FHIR] = (REPORT_SOURCE,)
            if can_be_segmented(volume, findings):
                made[SEGMENTATION] = (REPORT_SOURCE, PIECES)
        if (pieces := pieces_source(volume, findings)) is not None:
            made[LABELS], sources[PIECES] = (PIECES,), pieces
        return Response(
            result=result(volume, findings),
            files=output_files(volume, findings),
            later=Later(files=made, sources=sources),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """The picture, the slab, the report, its FHIR bundle, the segmentation, the labels, or a comparison."""
        if name == REPORT:
            return structured_report(sources[REPORT_SOURCE])
        if name == FHIR:
            return fhir_bundle(sources[REPORT_SOURCE])
        if name == SEGMENTATION:
            return segmentation(sources[REPORT_SOURCE], sources[PIECES])
        if name == LABELS:
            return label_map(sources[PIECES])
        if name == COMPARISON:
            # With it comes SimpleITK.
            from apps.medical.outputs.comparison import comparison_file

            return comparison_file(sources)
        return png(sources["sheet"]) if name == PICTURE else slab_file(sources["voxels.npz"])


def router(service: Service) -> APIRouter:
    """A case beside that of an earlier scan: what became of the findings."""
    from fastapi import APIRouter, Query, Response
    from fastapi.concurrency import run_in_threadpool

    from apps.medical.schemas import MedicalComparison
    from shared.store.cases import RESULT

    routes = APIRouter()
    # As defaults, for FastAPI reads annotations where this function's imports are not known.
    earlier = Query(description="the case of the earlier scan")
    between = Query(default=None, description="the days between the two scans, for the doubling time")

    @routes.get("/cases/{case_id}/comparison", response_model=MedicalComparison)
    async def comparison(
        case_id: str,
        prior: str = earlier,
        days: float | None = between,
    ) -> Response:
        """The findings of a case beside those of an earlier scan of the same patient."""
        sources: dict[str, Path | bytes] = {"days": b"" if days is None else repr(days).encode()}
        for side, asked in (("now", case_id), ("before", prior)):
            case = await run_in_threadpool(service.case, asked)
            for name in (RESULT, SLAB):
                sources[f"{side}/{name}"] = await service.file(case, name)
        return Response(await service.make(COMPARISON, sources), media_type="application/json")

    return routes
