"""A Trivium application that reads handwritten digits. Contains only the ``App``; its parts are imported on use."""

from pathlib import Path

from shared.app import App, on_use

app = App(
    name="digits",
    title="Handwritten digits",
    summary="Reads the digit in an image.",
    notice="An example.",
    root=Path(__file__).parent,
    models=("digits",),
    recipes=lambda: {"small": on_use("digits_app.parts:small")},
    dense=on_use("digits_app.parts:dense"),
    predictor=on_use("digits_app.parts:DigitPredictor"),
    codec=lambda predictor: on_use("digits_app.parts:DigitCodec")(),
)
