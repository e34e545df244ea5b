"""A Trivium application that reads handwritten digits. Contains only the ``App``; its parts are imported on use."""

from pathlib import Path

import trivium

app = trivium.App(
    name="digits",
    title="Handwritten digits",
    summary="Reads the digit in an image.",
    notice="An example.",
    root=Path(__file__).parent,
    models=("digits",),
    recipes=lambda: {"small": trivium.on_use("digits_app.parts:small")},
    dense=trivium.on_use("digits_app.parts:dense"),
    predictor=trivium.on_use("digits_app.parts:DigitPredictor"),
    codec=lambda predictor: trivium.on_use("digits_app.parts:DigitCodec")(),
    training_cases=trivium.on_use("digits_app.parts:training_cases"),
    score=trivium.on_use("digits_app.parts:score"),
)
