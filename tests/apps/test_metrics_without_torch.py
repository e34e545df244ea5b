"""Scoring result files and importing an application's types need neither torch nor a domain library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APPS = Path(__file__).parents[2] / "apps"


@pytest.mark.parametrize("app", ["medical", "driving", "finance"])
def test_the_metrics_and_types_of_an_application_import_no_torch(app):
    modules = [
        f"apps.{app}.metrics.{file.stem}"
        for file in sorted((APPS / app / "metrics").glob("*.py"))
        if not file.stem.startswith("__")
    ]
    assert modules
    modules.append(f"apps.{app}.types")
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'monai', 'mmdet3d', 'pytorch_forecasting', 'lightning'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"
