"""The HTTP side: files and options to volumes, findings to a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apps.medical.adapters.source import read_volume
from apps.medical.outputs.files import output_files
from apps.medical.outputs.picture import png, sheet_source
from apps.medical.outputs.report import REPORT, report_source, structured_report
from apps.medical.outputs.report import SOURCE as REPORT_SOURCE
from apps.medical.outputs.result import result
from apps.medical.outputs.slab import SLAB, slab_file, slab_source
from apps.medical.predictor import MAX_FINDINGS, Options
from apps.medical.types import CTVolume, Findings
from shared.deploy.predictor import PICTURE, Decoded, Later, Request, Response, programs_of
from shared.errors import InvalidInputError


class MedicalCodec:
    """One CT a request.

    Options: ``score`` (0 to 1), ``most`` (1 to 100), ``series`` (SeriesNumber or UID), ``patient`` (yes or no: whether
    the DICOM report says whose the scan is).
    """

    def __init__(self, predictor: object = None) -> None:
        self._predictor = predictor

    def decode(self, request: Request) -> Decoded[CTVolume]:
        """The one CT in the request's files. Raises ``InvalidInputError``."""
        given, default = request.options, Options()
        if unknown := sorted(given.keys() - {"score", "most", "series", "patient"}):
            raise InvalidInputError(f"there is no option {unknown[0]}; there are score, most, series and patient")
        if given.get("patient", "no") not in ("yes", "no"):
            raise InvalidInputError(f"the option patient is {given['patient']!r}; expected yes or no")
        options = Options(
            min_score=_number(given, "score", default.min_score, 0, 1),
            max_findings=_whole_number(given, "most", default.max_findings, 1, MAX_FINDINGS),
        )
        volume = read_volume(request.files, series=given.get("series") or None, patient=given.get("patient") == "yes")
        return Decoded(inputs=(volume,), options=options)

    def encode(self, decoded: Decoded[CTVolume], outputs: Sequence[Findings]) -> Response:
        """The findings as ``result.json`` and files in the field's formats; later the picture and the viewer's slab."""
        (volume,), (findings,) = decoded.inputs, outputs
        made = {PICTURE: ("sheet",), SLAB: ("voxels.npz",)}
        sources = {"sheet": sheet_source(volume, findings), "voxels.npz": slab_source(volume, findings)}
        versions = {name: program.version for name, program in programs_of(self._predictor).items()}
        if (report := report_source(volume, findings, versions)) is not None:
            made[REPORT], sources[REPORT_SOURCE] = (REPORT_SOURCE,), report
        return Response(
            result=result(volume, findings),
            files=output_files(volume, findings),
            later=Later(files=made, sources=sources),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """The picture, the slab, or the report."""
        if name == REPORT:
            return structured_report(sources[REPORT_SOURCE])
        return png(sources["sheet"]) if name == PICTURE else slab_file(sources["voxels.npz"])


def _number(options: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = options.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InvalidInputError(f"the option {name} is {text!r}; expected a number from {low:g} to {high:g}")
    return value


def _whole_number(options: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _number(options, name, default, low, high)
    if value % 1:
        raise InvalidInputError(f"the option {name} is {options[name]!r}; expected a whole number from {low} to {high}")
    return int(value)
