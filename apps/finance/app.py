"""The finance application: anomalies in time series."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from shared.app import App, on_use

app = App(
    name="finance",
    title="Anomalies in financial time series",
    summary="Scores every row of a series by the rows before it, and shows what is unusual and what was expected.",
    notice="A research tool. What it marks is unusual, not wrong; it gives no advice and does not itself detect fraud.",
    root=Path(__file__).parent,
    models=("tft-anomaly",),
    job_bytes=1_000_000,
    recipes=partial(resolve_name, "apps.finance.recipes:RECIPES"),
    dense=lambda recipe, model: on_use("apps.finance.models.tft:dense")(model),
    calibrate=on_use("apps.finance.inference.calibration:calibrate_recipe"),
    predictor=on_use("apps.finance.predictor:FinancePredictor.load"),
    codec=on_use("apps.finance.service:FinanceCodec"),
    read_options=on_use("apps.finance.service:read_options"),
    schemas=partial(resolve_name, "apps.finance.schemas:SCHEMAS"),
    reviewing=partial(resolve_name, "apps.finance.outputs.reviews:REVIEWING"),
    data_sets=partial(resolve_name, "apps.finance.datasets:DATA_SETS"),
    importers=partial(resolve_name, "apps.finance.models.imports:IMPORTERS"),
    fine_tuned=on_use("apps.finance.recipes:fine_tuned"),
    training_cases=on_use("apps.finance.inference.examples:training_series"),
    score_files=on_use("apps.finance.metrics.nab_files:score_files"),
    evaluate=on_use("apps.finance.inference.evaluation:evaluate"),
    score=on_use("apps.finance.inference.evaluation:score"),
    result_table=on_use("apps.finance.outputs.events_table:events_table"),
    samples=on_use("apps.finance.samples:samples"),
    input_needed=on_use("apps.finance.models.stored:input_needed"),
    sample_fault=on_use("apps.finance.models.stored:sample_fault"),
    reproduce=on_use("apps.finance.reproduce:reproduce"),
)
