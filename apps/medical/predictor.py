"""What every door calls: a CT in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.medical.adapters.source import read_volume
from apps.medical.inference.grid import canonical
from apps.medical.inference.lungs import Lungs, find_lungs
from apps.medical.inference.pipeline import Tiling, find_nodules
from apps.medical.models.dense import folded
from apps.medical.outputs.files import output_files
from apps.medical.outputs.picture import picture
from apps.medical.outputs.result import Reading, result
from apps.medical.types import CTVolume
from shared.deploy.predictor import Request, Response
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector

    from shared.deploy.artifact import Artifact

MOST_FINDINGS = 100
LISTED = 10
LEAST_SCORE = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """A volume, and which findings are to be listed: at most ``most``, of at least ``least_score``."""

    volume: CTVolume
    least_score: float
    most: int


class NodulePredictor:
    """Finds lung nodules. Findings of at least ``operating_score`` are set apart as suspicious."""

    def __init__(
        self,
        detector: RetinaNetDetector,
        *,
        spacing_mm: tuple[float, float, float],
        tiling: Tiling,
        device: str,
        operating_score: float,
    ) -> None:
        self.detector = detector.to(device).eval()
        self.network = folded(self.detector)
        self.spacing_mm, self.tiling, self.device = spacing_mm, tiling, device
        self.operating_score = operating_score

    def decode(self, request: Request) -> Case:
        """Options: ``score`` (0 to 1), ``most`` (1 to 100), ``series`` (a SeriesNumber or SeriesInstanceUID)."""
        options = request.options
        if unknown := sorted(options.keys() - {"score", "most", "series"}):
            raise InvalidInputError(f"there is no option {unknown[0]}; there are score, most and series")
        least = _number(options, "score", LEAST_SCORE, 0, 1)
        most = int(_number(options, "most", LISTED, 1, MOST_FINDINGS))
        volume = read_volume(request.files, series=options.get("series") or None)
        return Case(volume, least, most)

    def predict(self, batch: Sequence[Case]) -> list[Reading]:
        return [self._read(case) for case in batch]

    def encode(self, outputs: Reading) -> Response:
        return Response(result=result(outputs), picture=picture(outputs), files=output_files(outputs))

    def _read(self, case: Case) -> Reading:
        volume = canonical(case.volume)
        lungs = find_lungs(volume)
        if lungs is None:
            return Reading(case.volume, None, None, False, [], self.operating_score)
        found = find_nodules(
            self.detector,
            volume,
            lungs,
            spacing_mm=self.spacing_mm,
            tiling=self.tiling,
            network=self.network,
            device=self.device,
        )
        asked = [nodule for nodule in found if nodule.score >= case.least_score]
        listed, rest = asked[: case.most], asked[case.most :]
        unlisted = sum(nodule.score >= self.operating_score for nodule in rest)
        box = _lung_box_lps_mm(volume, lungs)
        return Reading(case.volume, box, lungs.millilitres, lungs.cut, listed, self.operating_score, unlisted)


def _lung_box_lps_mm(volume: CTVolume, lungs: Lungs) -> tuple[float, float, float, float, float, float]:
    ends = volume.to_lps_mm([lungs.low_ijk, [n - 1 for n in lungs.high_ijk]])
    low, high = ends.min(axis=0).tolist(), ends.max(axis=0).tolist()
    return (low[0], low[1], low[2], high[0], high[1], high[2])


def _number(options: Any, name: str, default: float, low: float, high: float) -> float:
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


def load(artifact: Artifact, device: str) -> NodulePredictor:
    """The predictor for an artifact."""
    import torch

    from apps.medical.recipes import NoduleRecipe
    from shared.recipe_file import from_mapping

    recipe = from_mapping(NoduleRecipe, artifact.recipe()["recipe"])
    with torch.random.fork_rng():
        detector = recipe.model.build()
    detector.load_state_dict(artifact.weights())
    return NodulePredictor(
        detector,
        spacing_mm=recipe.model.spacing_mm,
        tiling=Tiling(),
        device=device,
        operating_score=float(artifact.manifest.calibration.get("operating_score", 0.5)),
    )
