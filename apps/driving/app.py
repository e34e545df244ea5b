"""The driving application: objects in 3D, from a LiDAR sweep or from camera images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.driving.models import IMPORTED, MODELS, SECOND_STAGE
from shared.app import App, DenseNetwork, DomainScore, Importer, Sample, Schemas, Table

if TYPE_CHECKING:
    from torch import nn

    from apps.driving.predictor import DrivingPredictor
    from apps.driving.service import DrivingCodec
    from shared.deploy.artifact import Artifact
    from shared.recipe import DataConfig, Recipe

ROOT = Path(__file__).parent


def _recipes() -> Mapping[str, Callable[[], Recipe]]:
    from apps.driving.recipes import RECIPES

    return RECIPES


def _dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    from apps.driving.models.dense import dense

    return dense(recipe, model)


def _calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    from apps.driving.inference.calibration import calibrate

    return calibrate(recipe, model)


def _calibrate_second(recipe: Recipe, model: nn.Module, detector: Artifact) -> dict[str, Any]:
    from apps.driving.inference.calibration import calibrate_second

    return calibrate_second(recipe, model, detector)


def _predictor(artifacts: Sequence[Artifact], device: str) -> DrivingPredictor:
    from apps.driving.predictor import DrivingPredictor

    return DrivingPredictor.load(artifacts, device)


def _codec(predictor: Any) -> DrivingCodec:
    from apps.driving.service import DrivingCodec

    return DrivingCodec(predictor)


def _evaluate(predictor: Any, data: Any, limit: int | None) -> Table:
    from apps.driving.inference.evaluation import evaluate

    return evaluate(predictor, data, limit)


def _score_files(files: Mapping[str, Path]) -> Table:
    from apps.driving.metrics.results import score_files

    return score_files(files)


def _predict_folder(
    predictor: Any, folder: Path, out: Path, options: Mapping[str, str], say: Callable[[str], object]
) -> int:
    from apps.driving.inference.folder import predict_folder
    from apps.driving.inference.options import read_options

    return predict_folder(predictor, folder, out, read_options(options), say)


def _schemas() -> Schemas:
    from apps.driving.schemas import DrivingOptions, DrivingResult

    return Schemas(options=DrivingOptions, result=DrivingResult)


def _read_options(options: Mapping[str, str]) -> Any:
    from apps.driving.inference.options import read_options

    return read_options(options)


def _data_sets() -> Mapping[str, type[DataConfig]]:
    from apps.driving.datasets import data_sets

    return data_sets()


def _importers() -> Mapping[str, Importer]:
    from apps.driving.models.imports import IMPORTERS

    return IMPORTERS


def _models_table() -> Table:
    from apps.driving.models.families import table

    return table()


def _result_table(content: Mapping[str, Any]) -> Table:
    from apps.driving.outputs.result import result_table

    return result_table(content)


def _score(predictor: Any, data: Any, limit: int | None) -> Sequence[DomainScore]:
    from apps.driving.inference.evaluation import score

    return score(predictor, data, limit)


def _training_cases(data: Any, input: Any, most: int) -> Iterator[Any]:
    from apps.driving.datasets.frame_data import training_frames

    return training_frames(data, input, most)


def _served_with(artifact: Artifact, *registries: Path) -> Sequence[Artifact]:
    from apps.driving.predictor import served_with

    return served_with(artifact, *registries)


def _belongs_to(second: Artifact, detector: Artifact) -> bool:
    from apps.driving.inference.partners import belongs_to

    return belongs_to(second, detector)


def _samples() -> Sequence[Sample]:
    from apps.driving.samples import samples

    return samples()


def _reproduce(quick: bool) -> Table:
    from apps.driving.reproduce import table

    return table(quick)


app = App(
    name="driving",
    title="3D object detection",
    summary="Finds cars, pedestrians and cyclists in 3D: PointPillars in a LiDAR sweep, FCOS3D in camera images.",
    notice="Not for control of vehicles. For research and evaluation; the weights learnt from synthetic scenes.",
    root=ROOT,
    models=(*MODELS, SECOND_STAGE, *IMPORTED),
    partners={SECOND_STAGE: _belongs_to},
    recipes=_recipes,
    dense=_dense,
    calibrate=_calibrate,
    calibrate_second=_calibrate_second,
    predictor=_predictor,
    codec=_codec,
    read_options=_read_options,
    schemas=_schemas,
    predict_folder=_predict_folder,
    score_files=_score_files,
    result_table=_result_table,
    importers=_importers,
    models_table=_models_table,
    data_sets=_data_sets,
    evaluate=_evaluate,
    score=_score,
    training_cases=_training_cases,
    served_with=_served_with,
    samples=_samples,
    reproduce=_reproduce,
)
