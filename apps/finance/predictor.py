"""The predictor: a CSV or Parquet file in, a judged series out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from apps.finance.calibration import default_stride, from_manifest
from apps.finance.data.csv import read_csv
from apps.finance.data.parquet import read_parquet
from apps.finance.events import anomalies
from apps.finance.forecasting import forecast
from apps.finance.outputs.files import result, scores_csv, series_json
from apps.finance.outputs.picture import draw
from apps.finance.recipes import FinanceRecipe
from apps.finance.scoring import Calibration, score
from apps.finance.types import Detection, Series
from shared.deploy.artifact import Artifact
from shared.deploy.predictor import Request, Response
from shared.engine.recipe import from_mapping
from shared.refusal import Refusal

LEAST_ROWS = 60
MOST_ROWS = 2_000_000
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A series to judge, and the threshold asked for, or None for the model's own."""

    series: Series
    threshold: float | None = None


class FinancePredictor:
    """Finds anomalies in series with a trained forecaster; see ``forecasting``, ``scoring`` and ``events``."""

    def __init__(self, model: nn.Module, calibration: Calibration, *, stride: int, device: str, name: str) -> None:
        self.model, self.calibration = model.eval().to(device), calibration
        self.stride, self.device, self.name = stride, device, name

    @classmethod
    def load(cls, artifact: Artifact, device: str) -> FinancePredictor:
        """The predictor of an artifact."""
        recipe = from_mapping(FinanceRecipe, artifact.recipe()["recipe"])
        model = recipe.model.build()
        model.load_state_dict(artifact.weights())
        mapping = artifact.manifest.calibration
        stride = int(mapping.get("stride", default_stride(recipe.model.horizon)))
        name = f"{artifact.manifest.name} version {artifact.manifest.version}"
        return cls(model, from_manifest(mapping), stride=stride, device=device, name=name)

    def decode(self, request: Request) -> Question:
        """Options: ``column``, the value that is judged; ``threshold``, the score that begins an event, in (0, 1]."""
        unknown = sorted(request.options.keys() - {"column", "threshold"})
        if unknown:
            raise Refusal(f"there is no option {unknown[0]!r}; there are column and threshold")
        path = _only(request.files)
        column = request.options.get("column", "").strip() or None
        series = (read_parquet if path.suffix.lower() in _PARQUET else read_csv)(path, column=column)
        observed = int(np.isfinite(series.target).sum())
        if observed < LEAST_ROWS:
            raise Refusal(
                f"{path.name} has {observed} values in column {series.column!r}; a judgement needs at least "
                f"{LEAST_ROWS}, and is the better the more there are"
            )
        if len(series) > MOST_ROWS:
            raise Refusal(f"{path.name} has {len(series)} rows; hand in at most {MOST_ROWS} at a time")
        return Question(series=series, threshold=_threshold(request.options.get("threshold", "")))

    def predict(self, batch: Sequence[Question]) -> list[Detection]:
        """Judges each series; what one gets does not depend on the others."""
        return [self.judge(question.series, question.threshold) for question in batch]

    def judge(self, series: Series, threshold: float | None = None) -> Detection:
        """Forecasts, scores and events of one series."""
        calibration = self.calibration if threshold is None else replace(self.calibration, threshold=threshold)
        made = forecast(self.model, [series], stride=self.stride, device=self.device)[0]
        scores = score(series, made, calibration)
        return Detection(
            series=series,
            forecast=made,
            scores=scores,
            threshold=calibration.threshold,
            anomalies=anomalies(series, made, scores, calibration),
        )

    def encode(self, outputs: Detection) -> Response:
        return Response(
            result=result(outputs, model=self.name),
            picture=draw(outputs),
            files={"series.json": series_json(outputs), "scores.csv": scores_csv(outputs)},
        )


def _only(files: tuple[Path, ...]) -> Path:
    if len(files) == 1 and files[0].is_dir():
        files = tuple(sorted(path for path in files[0].iterdir() if path.is_file()))
    if len(files) != 1:
        raise Refusal(f"hand in one CSV or Parquet file with one series, not {len(files)} files")
    path = files[0]
    if path.suffix.lower() not in (".csv", ".txt", ".tsv", "", *_PARQUET):
        raise Refusal(f"{path.name} is neither a CSV nor a Parquet file; export the series as one of the two")
    return path


def _threshold(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError as error:
        raise Refusal(f"the threshold {text!r} is not a number; give one above 0 and at most 1, such as 0.3") from error
    if not 0 < value <= 1:
        raise Refusal(f"the threshold {value:g} is not above 0 and at most 1")
    return value
