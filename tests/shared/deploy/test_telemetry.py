"""No use of a model is reported to anyone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("chosen", [None, "0"])
def test_onnxruntime_makes_no_identifier_for_reports_unless_the_user_asks_for_it(tmp_path, chosen):
    """onnxruntime 1.29 and newer write one into the user's home folder as soon as they are imported."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "XDG_CACHE_HOME")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment |= {"HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    if chosen is not None:
        environment["ORT_DISABLE_TELEMETRY"] = chosen
    code = "from shared.deploy import onnx_network; import onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert completed.stdout.strip() == (chosen or "1"), completed.stderr
    assert chosen == "0" or not list(tmp_path.rglob("deviceid"))
