"""The medical application: lung nodules in chest CT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.medical.models import MODELS
from shared.app import App, DenseNetwork, DomainScore, Importer, Sample, Schemas, Table

if TYPE_CHECKING:
    from torch import nn

    from apps.medical.adapters.gateway import DicomGateway
    from apps.medical.predictor import NodulePredictor
    from apps.medical.service import MedicalCodec
    from shared.deploy.artifact import Artifact
    from shared.deploy.predictor import Predictor
    from shared.recipe import DataConfig, Recipe

ROOT = Path(__file__).parent


def _recipes() -> Mapping[str, Callable[[], Recipe]]:
    from apps.medical.recipes import RECIPES

    return RECIPES


def _dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    from apps.medical.models.dense import dense

    return dense(recipe, model)


def _calibrate(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    from apps.medical.inference.calibration import calibrate

    return calibrate(recipe, model)


def _calibrate_second(recipe: Recipe, model: nn.Module, detector: Artifact) -> dict[str, Any]:
    from apps.medical.inference.calibration import calibrate_second

    return calibrate_second(recipe, model, detector)


def _predictor(artifacts: Sequence[Artifact], device: str) -> NodulePredictor:
    from apps.medical.predictor import NodulePredictor

    return NodulePredictor.load(artifacts, device)


def _codec(predictor: Predictor[Any, Any]) -> MedicalCodec:
    from apps.medical.service import MedicalCodec

    return MedicalCodec(predictor)


def _result_table(content: Mapping[str, Any]) -> Table:
    from apps.medical.outputs.result import result_table

    return result_table(content)


def _case_label(content: Mapping[str, Any]) -> str:
    from apps.medical.outputs.result import case_label

    return case_label(content)


def _score_files(files: Mapping[str, Path]) -> Table:
    from apps.medical.metrics.luna16 import score_files

    return score_files(files)


def _data_sets() -> Mapping[str, type[DataConfig]]:
    from apps.medical.datasets import DATA_SETS

    return DATA_SETS


def _importers() -> Mapping[str, Importer]:
    from apps.medical.models.imports import IMPORTERS

    return IMPORTERS


def _evaluate(predictor: Predictor[Any, Any], data: DataConfig, limit: int | None) -> Table:
    from apps.medical.inference.evaluation import evaluate_data_set

    return evaluate_data_set(predictor, data, limit)


def _score(predictor: Predictor[Any, Any], data: DataConfig, limit: int | None) -> Sequence[DomainScore]:
    from apps.medical.inference.evaluation import score

    return score(predictor, data, limit)


def _training_cases(data: DataConfig, input: Any, most: int) -> Iterator[Any]:
    from apps.medical.datasets import training_volumes

    return training_volumes(data, most)


def _schemas() -> Schemas:
    from apps.medical.schemas import MedicalOptions, MedicalResult

    return Schemas(options=MedicalOptions, result=MedicalResult)


def _read_options(options: Mapping[str, str]) -> Any:
    from apps.medical.inference.options import read_options

    return read_options(options)


def _belongs_to(second: Artifact, detector: Artifact) -> bool:
    from apps.medical.inference.partners import belongs_to

    return belongs_to(second, detector)


def _served_with(artifact: Artifact, *registries: Path) -> Sequence[Artifact]:
    from apps.medical.predictor import served_with

    return served_with(artifact, *registries)


def _samples() -> Sequence[Sample]:
    from apps.medical.samples import samples

    return samples()


def _gateway() -> type[DicomGateway]:
    from apps.medical.adapters.gateway import DicomGateway

    return DicomGateway


def _reproduce(quick: bool) -> Table:
    from apps.medical.reproduce import reproduce

    return reproduce(quick)


app = App(
    name="medical",
    title="Lung nodules in chest CT",
    summary="Finds lung nodules in a CT of the chest, marks them on the slices and measures them in millimetres.",
    notice="For research. Not a medical device: not to be used for diagnosis or treatment.",
    root=ROOT,
    models=MODELS,
    partners={MODELS[1]: _belongs_to},
    read_options=_read_options,
    schemas=_schemas,
    job_bytes=12_000_000,
    sample_jobs=True,
    recipes=_recipes,
    dense=_dense,
    calibrate=_calibrate,
    calibrate_second=_calibrate_second,
    score_files=_score_files,
    predictor=_predictor,
    codec=_codec,
    result_table=_result_table,
    case_label=_case_label,
    data_sets=_data_sets,
    importers=_importers,
    evaluate=_evaluate,
    score=_score,
    training_cases=_training_cases,
    served_with=_served_with,
    samples=_samples,
    reproduce=_reproduce,
    gateway=_gateway,
    kinds=(".zip", ".dcm", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw", ".gz"),
)
