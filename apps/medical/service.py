"""The HTTP side: files and options to volumes, findings to a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apps.medical.adapters.source import read_volume
from apps.medical.outputs.files import output_files
from apps.medical.outputs.picture import png, sheet_source
from apps.medical.outputs.result import result
from apps.medical.outputs.slab import SLAB, slab_file, slab_source
from apps.medical.predictor import MAX_FINDINGS, Options
from apps.medical.types import CTVolume, Findings
from shared.deploy.predictor import PICTURE, Decoded, Later, Request, Response
from shared.errors import InvalidInputError


class MedicalCodec:
    """One CT a request. Options: ``score`` (0 to 1), ``most`` (1 to 100), ``series`` (SeriesNumber or UID)."""

    def __init__(self, predictor: object = None) -> None:
        pass

    def decode(self, request: Request) -> Decoded[CTVolume]:
        """The one CT in the request's files. Raises ``InvalidInputError``."""
        given, default = request.options, Options()
        if unknown := sorted(given.keys() - {"score", "most", "series"}):
            raise InvalidInputError(f"there is no option {unknown[0]}; there are score, most and series")
        options = Options(
            min_score=_number(given, "score", default.min_score, 0, 1),
            max_findings=_whole_number(given, "most", default.max_findings, 1, MAX_FINDINGS),
        )
        volume = read_volume(request.files, series=given.get("series") or None)
        return Decoded(inputs=(volume,), options=options)

    def encode(self, decoded: Decoded[CTVolume], outputs: Sequence[Findings]) -> Response:
        """The findings as ``result.json`` and files in the field's formats; later the picture and the viewer's slab."""
        (volume,), (findings,) = decoded.inputs, outputs
        sheet, voxels = sheet_source(volume, findings), slab_source(volume, findings)
        return Response(
            result=result(volume, findings),
            files=output_files(volume, findings),
            later=Later(
                files={PICTURE: ("sheet",), SLAB: ("voxels.npz",)}, sources={"sheet": sheet, "voxels.npz": voxels}
            ),
        )

    def make(self, name: str, sources: Mapping[str, bytes]) -> bytes:
        """The picture, or the slab."""
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
