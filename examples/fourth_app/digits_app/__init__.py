"""Handwritten digits as an application of Trivium. Only what an application is: its parts are imported on use."""

from importlib import import_module
from pathlib import Path
from typing import Any

from shared.app import App


def _part(name: str) -> Any:
    return getattr(import_module("digits_app.parts"), name)


app = App(
    name="digits",
    title="Handwritten digits",
    summary="Reads the digit in an image.",
    notice="An example.",
    root=Path(__file__).parent,
    models=("digits",),
    recipes=lambda: {"small": _part("small")},
    dense=lambda recipe, network: _part("dense")(network),
    predictor=lambda artifacts, device: _part("DigitPredictor")(artifacts[0], device),
    codec=lambda predictor: _part("DigitCodec")(),
)
