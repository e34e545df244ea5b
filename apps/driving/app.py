"""The driving application: objects in 3D, from a LiDAR sweep or from camera images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from apps.driving.models import IMPORTED, MODELS, SECOND_STAGE
from shared.app import App, on_use

app = App(
    name="driving",
    title="3D object detection",
    summary="Finds cars, pedestrians and cyclists in 3D: PointPillars in a LiDAR sweep, FCOS3D in camera images.",
    notice="Not for control of vehicles. For research and evaluation.",
    root=Path(__file__).parent,
    models=(*MODELS, SECOND_STAGE, *IMPORTED),
    partners={SECOND_STAGE: on_use("apps.driving.inference.partners:is_trained_for")},
    recipes=partial(resolve_name, "apps.driving.recipes:RECIPES"),
    dense=on_use("apps.driving.models.dense:dense"),
    calibrate=on_use("apps.driving.inference.calibration:calibrate"),
    calibrate_second=on_use("apps.driving.inference.calibration:calibrate_second"),
    predictor=on_use("apps.driving.predictor:DrivingPredictor.load"),
    codec=on_use("apps.driving.service:DrivingCodec"),
    read_options=on_use("apps.driving.inference.options:read_options"),
    schemas=partial(resolve_name, "apps.driving.schemas:SCHEMAS"),
    reviewing=partial(resolve_name, "apps.driving.outputs.reviews:REVIEWING"),
    predict_folder=lambda predictor, folder, out, options, say: on_use("apps.driving.inference.folder:predict_folder")(
        predictor, folder, out, on_use("apps.driving.inference.options:read_options")(options), say
    ),
    score_files=on_use("apps.driving.metrics.results:score_files"),
    result_table=on_use("apps.driving.outputs.result:result_table"),
    importers=partial(resolve_name, "apps.driving.models.imports:IMPORTERS"),
    models_table=on_use("apps.driving.models.families:table"),
    data_sets=on_use("apps.driving.datasets:data_sets"),
    evaluate=on_use("apps.driving.inference.evaluation:evaluate"),
    score=on_use("apps.driving.inference.evaluation:score"),
    training_cases=on_use("apps.driving.datasets.frame_data:training_frames"),
    served_with=on_use("apps.driving.predictor:served_with"),
    samples=on_use("apps.driving.samples:samples"),
    reproduce=on_use("apps.driving.reproduce:table"),
)
