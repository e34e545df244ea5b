"""The predictor: a CSV or Parquet file in, one or several judged series out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from apps.finance.adapters.csv import read_contents
from apps.finance.adapters.parquet import read_parquet_contents
from apps.finance.adapters.table import Contents
from apps.finance.inference.calibration import default_stride, from_manifest
from apps.finance.inference.events import anomalies
from apps.finance.inference.forecasting import forecast
from apps.finance.inference.scoring import Calibration, combine, improbability
from apps.finance.outputs.files import result, scores_csv, series_json
from apps.finance.outputs.picture import draw, draw_several
from apps.finance.outputs.several import several_result, several_scores_csv, several_series_json
from apps.finance.recipes import FinanceRecipe
from apps.finance.types import Detection, Judgement, Series, Window
from shared.deploy.artifact import Artifact
from shared.deploy.predictor import Request, Response
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

LEAST_ROWS = 60
ROWS_PER_SECOND = 2500
"""Of the time that somebody waits, one core judges these in a quarter: the rest is for the queue and for others."""
MOST_ROWS = 2_000_000
_PARQUET = (".parquet", ".pq")
_OPTIONS = ("column", "threshold", "series")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The series of a file, and the threshold asked for, or None for the model's own.

    ``told_by`` is the column that tells several series apart; ``truth`` is what is known of a synthetic one.
    """

    name: str
    series: tuple[Series, ...]
    told_by: str = ""
    notes: tuple[str, ...] = ()
    threshold: float | None = None
    truth: tuple[Window, ...] = ()


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
        """Options: ``column``, the value that is judged; ``threshold``, the score that begins an event, in (0, 1];
        ``series``, the one of several that is judged."""
        unknown = sorted(request.options.keys() - set(_OPTIONS))
        if unknown:
            raise InvalidInputError(f"there is no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
        path = _only(request.files)
        column = request.options.get("column", "").strip() or None
        read = read_parquet_contents if path.suffix.lower() in _PARQUET else read_contents
        contents = _chosen(read(path, column=column), request.options.get("series", "").strip(), path.name)
        series, notes = _long_enough(contents, path.name)
        rows = sum(map(len, series))
        if rows > MOST_ROWS:
            raise InvalidInputError(f"{path.name} has {rows} rows; hand in at most {MOST_ROWS} at a time")
        if request.seconds is not None and rows > request.seconds * ROWS_PER_SECOND:
            raise InvalidInputError(
                f"{path.name} has {rows} rows, and in the {request.seconds:g} s that are waited for an answer "
                f"{request.seconds * ROWS_PER_SECOND:.0f} are judged; hand in fewer (a shorter time, longer bars, "
                f"fewer series), or use the command line, which takes {MOST_ROWS}: trivium predict finance"
            )
        return Question(
            name=path.name,
            series=series,
            told_by=contents.told_by,
            notes=notes,
            threshold=_threshold(request.options.get("threshold", "")),
            truth=contents.truth,
        )

    def predict(self, batch: Sequence[Question]) -> list[Judgement]:
        """Judges each file's series; what one gets does not depend on the others."""
        with _one_thread() if self.device == "cpu" else nullcontext():
            return [
                Judgement(
                    name=question.name,
                    told_by=question.told_by,
                    notes=question.notes,
                    detections=tuple(self.judge(series, question.threshold) for series in question.series),
                    truth=question.truth,
                )
                for question in batch
            ]

    def judge(self, series: Series, threshold: float | None = None) -> Detection:
        """Forecasts, scores and events of one series."""
        calibration = self.calibration if threshold is None else replace(self.calibration, threshold=threshold)
        made = forecast(self.model, [series], stride=self.stride, device=self.device)[0]
        channels = improbability(series, made, calibration)
        scores = combine(channels)
        return Detection(
            series=series,
            forecast=made,
            scores=scores,
            threshold=calibration.threshold,
            anomalies=anomalies(series, made, scores, calibration, channels),
        )

    def encode(self, outputs: Judgement) -> Response:
        if outputs.told_by:
            return Response(
                result=several_result(outputs, model=self.name),
                picture=draw_several(outputs),
                files={"series.json": several_series_json(outputs), "scores.csv": several_scores_csv(outputs)},
            )
        (one,) = outputs.detections
        return Response(
            result=result(one, model=self.name, notes=outputs.notes, truth=outputs.truth),
            picture=draw(one),
            files={"series.json": series_json(one), "scores.csv": scores_csv(one)},
        )


def _one_thread() -> AbstractContextManager[Any]:
    """Computes on the calling thread alone: the network's small operations wait longer for other threads than they run.

    Where cores are shared, two threads were four times as slow as one. OpenMP counts its threads for each calling
    thread, so that other applications of the process keep theirs, which torch.set_num_threads would take from them.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="openmp")
    return limits


def _only(files: tuple[Path, ...]) -> Path:
    if len(files) == 1 and files[0].is_dir():
        files = tuple(sorted(path for path in files[0].iterdir() if path.is_file()))
    if len(files) != 1:
        raise InvalidInputError(
            f"hand in one CSV or Parquet file, not {len(files)} files; several series go into one file, below each "
            "other, with a column 'ticker' that names them"
        )
    path = files[0]
    if path.suffix.lower() not in (".csv", ".txt", ".tsv", "", *_PARQUET):
        raise InvalidInputError(f"{path.name} is neither a CSV nor a Parquet file; export the series as one of the two")
    return path


def _chosen(contents: Contents, wanted: str, name: str) -> Contents:
    if not wanted:
        return contents
    found = tuple(one for one in contents.series if one.name == wanted)
    if not found or not contents.told_by:
        there = ", ".join(one.name for one in contents.series[:10]) if contents.told_by else "one alone, without a name"
        more = ", …" if len(contents.series) > 10 else ""
        raise InvalidInputError(f"{name} has no series {wanted!r}; it has {there}{more}")
    return replace(contents, series=found, notes=(*contents.notes, f"series {wanted!r} alone was judged"))


def _long_enough(contents: Contents, name: str) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """The series with enough values, and the file's notes; refuses a file without one."""
    observed = [int(np.isfinite(one.target).sum()) for one in contents.series]
    enough = tuple(one for one, count in zip(contents.series, observed, strict=True) if count >= LEAST_ROWS)
    if not enough:
        column = contents.series[0].column
        most = max(observed)
        which = f"{most} values in column {column!r}"
        if len(observed) > 1:
            which = f"{len(observed)} series with at most {which}"
        raise InvalidInputError(
            f"{name} has {which}; a judgement needs at least {LEAST_ROWS}, and is the better the more there are"
        )
    short = [one.name for one, count in zip(contents.series, observed, strict=True) if count < LEAST_ROWS]
    if not short:
        return enough, contents.notes
    first = ", ".join(short[:5]) + (", …" if len(short) > 5 else "")
    note = f"{len(short)} series with fewer than {LEAST_ROWS} values were left out ({first})"
    return enough, (*contents.notes, note)


def _threshold(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError as error:
        raise InvalidInputError(
            f"the threshold {text!r} is not a number; give one above 0 and at most 1, such as 0.3"
        ) from error
    if not 0 < value <= 1:
        raise InvalidInputError(f"the threshold {value:g} is not above 0 and at most 1")
    return value
