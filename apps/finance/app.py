"""The finance application as the runtime sees it. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.app import App, DenseNetwork, DomainScore, Importer, Sample, Schemas, Table

if TYPE_CHECKING:
    from torch import nn

    from shared.deploy.artifact import Artifact
    from shared.deploy.predictor import Codec, Predictor
    from shared.recipe import DataConfig, Recipe

_ROOT = Path(__file__).parent


def _recipes() -> Mapping[str, Callable[[], Recipe]]:
    from apps.finance.recipes import RECIPES

    return RECIPES


def _dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    from apps.finance.models.tft import dense

    return dense(model)


def _calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    from apps.finance.inference.calibration import calibrate_recipe

    return calibrate_recipe(recipe, model)


def _predictor(artifacts: Sequence[Artifact], device: str) -> Predictor[Any, Any]:
    from apps.finance.predictor import FinancePredictor

    return FinancePredictor.load(artifacts, device)


def _codec(predictor: Predictor[Any, Any]) -> Codec[Any, Any]:
    from apps.finance.predictor import FinancePredictor
    from apps.finance.service import FinanceCodec

    assert isinstance(predictor, FinancePredictor)
    return FinanceCodec(predictor)


def _data_sets() -> Mapping[str, type[DataConfig]]:
    from apps.finance.datasets import DATA_SETS

    return DATA_SETS


def _importers() -> Mapping[str, Importer]:
    from apps.finance.models.imports import IMPORTERS

    return IMPORTERS


def _evaluate(predictor: Predictor[Any, Any], data: DataConfig, limit: int | None) -> Table:
    from apps.finance.inference.evaluation import evaluate
    from apps.finance.predictor import FinancePredictor

    assert isinstance(predictor, FinancePredictor)
    return evaluate(predictor, data, limit)


def _result_table(result: Mapping[str, Any]) -> Table:
    from apps.finance.outputs.events_table import events_table

    return events_table(result)


def _score_files(files: Mapping[str, Path]) -> Table:
    from apps.finance.metrics.nab_files import score_files

    return score_files(files)


def _score(predictor: Predictor[Any, Any], data: DataConfig, limit: int | None) -> Sequence[DomainScore]:
    from apps.finance.inference.evaluation import score
    from apps.finance.predictor import FinancePredictor

    assert isinstance(predictor, FinancePredictor)
    return score(predictor, data, limit)


def _schemas() -> Schemas:
    from apps.finance.schemas import FinanceOptions, FinanceResult

    return Schemas(options=FinanceOptions, result=FinanceResult)


def _read_options(options: Mapping[str, str]) -> Any:
    from apps.finance.service import read_options

    return read_options(options)


def _samples() -> Sequence[Sample]:
    from apps.finance.samples import samples

    return samples()


def _reproduce(quick: bool) -> Table:
    from apps.finance.reproduce import reproduce

    return reproduce(quick)


app = App(
    name="finance",
    title="Anomalies in financial time series",
    summary="Judges every row of a series by the rows before it, and shows what is unusual beside what was expected.",
    notice="A research tool. What it marks is unusual, not wrong; it gives no advice and detects no fraud by itself.",
    root=_ROOT,
    models=("tft-anomaly",),
    job_bytes=1_000_000,
    recipes=_recipes,
    dense=_dense,
    calibrate=_calibrate,
    predictor=_predictor,
    codec=_codec,
    read_options=_read_options,
    schemas=_schemas,
    data_sets=_data_sets,
    importers=_importers,
    score_files=_score_files,
    evaluate=_evaluate,
    score=_score,
    result_table=_result_table,
    samples=_samples,
    reproduce=_reproduce,
)
