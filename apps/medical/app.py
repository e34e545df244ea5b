"""The medical application: lung nodules in chest CT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from apps.medical.models import MODELS
from shared.app import App, on_use

app = App(
    name="medical",
    title="Lung nodules in chest CT",
    summary="Finds lung nodules in a CT of the chest, marks them on the slices and measures them in millimetres.",
    notice="For research. Not a medical device: not to be used for diagnosis or treatment.",
    root=Path(__file__).parent,
    models=MODELS,
    partners={MODELS[1]: on_use("apps.medical.inference.partners:is_trained_for")},
    read_options=on_use("apps.medical.inference.options:read_options"),
    schemas=partial(resolve_name, "apps.medical.schemas:SCHEMAS"),
    reviewing=partial(resolve_name, "apps.medical.outputs.reviews:REVIEWING"),
    job_bytes=12_000_000,
    sample_jobs=True,
    recipes=partial(resolve_name, "apps.medical.recipes:RECIPES"),
    dense=on_use("apps.medical.models.dense:dense"),
    calibrate=on_use("apps.medical.inference.calibration:calibrate"),
    calibrate_second=on_use("apps.medical.inference.calibration:calibrate_second"),
    score_files=on_use("apps.medical.metrics.luna16:score_files"),
    predictor=on_use("apps.medical.predictor:NodulePredictor.load"),
    codec=on_use("apps.medical.service:MedicalCodec"),
    result_table=on_use("apps.medical.outputs.result:result_table"),
    case_label=on_use("apps.medical.outputs.result:case_label"),
    data_sets=partial(resolve_name, "apps.medical.datasets:DATA_SETS"),
    importers=partial(resolve_name, "apps.medical.models.imports:IMPORTERS"),
    evaluate=on_use("apps.medical.inference.evaluation:evaluate_data_set"),
    score=on_use("apps.medical.inference.evaluation:score"),
    training_cases=on_use("apps.medical.datasets:training_volumes"),
    served_with=on_use("apps.medical.predictor:served_with"),
    samples=on_use("apps.medical.samples:samples"),
    reproduce=on_use("apps.medical.reproduce:reproduce"),
    router=on_use("apps.medical.service:router"),
    compare=on_use("apps.medical.outputs.comparison:compare_folders"),
    gateway=partial(resolve_name, "apps.medical.adapters.gateway:DicomGateway"),
    kinds=(".zip", ".dcm", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw", ".gz"),
)
