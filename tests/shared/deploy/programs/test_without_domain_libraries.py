"""Programs that are files need none of the libraries that the networks were trained with, which load for seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from shared.app import find
from shared.deploy.registry import shipped
app = find({app!r})
artifacts = [one for one in shipped(app) if one.manifest.name == {model!r}]
predictor = app.predictor(artifacts, "cpu")
assert predictor.programs[{model!r}].name == "onnx", predictor.programs
heavy = {{"monai", "mmdet3d", "mmdet", "pytorch_forecasting", "lightning"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(("app", "model"), [("driving", "pointpillars"), ("finance", "tft-anomaly")])
def test_a_predictor_of_an_onnx_imports_no_domain_library(
    app: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVIUM_PROGRAM", "onnx")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(app=app, model=model)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
