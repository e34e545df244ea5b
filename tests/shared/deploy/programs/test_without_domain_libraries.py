"""A prediction imports no training library, and loads only those of an application's models that an input needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TRAINING = {"monai", "mmdet3d", "mmdet", "mmcv", "mmengine", "pytorch_forecasting", "lightning", "torchvision"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
SCRIPT = """
import sys
from pathlib import Path
from shared.app import find
from shared.deploy.opening import open_predictor
from shared.deploy.predictor import Request, answer

opened = open_predictor(find({app!r}), program="onnx", lazy=True)
response = answer(opened.predictor, Request(files=(Path({file!r}),)), opened.codec)
assert response.result["programs"] == {programs}, response.result["programs"]
assert response.result["program_reasons"] == dict.fromkeys({programs}, "it was requested")
imported = {unwanted} & set(sys.modules)
imported |= {{name for name in sys.modules if name.startswith({rooms})}}
assert not imported, imported
"""


def _run(script: str) -> None:
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert completed.returncode == 0, completed.stderr


def test_a_forecast_imports_no_torch(tmp_path: Path) -> None:
    file, walk = tmp_path / "walk.csv", np.random.default_rng(0).normal(size=200).cumsum()
    lines = [f"2024-01-01T{row // 60:02}:{row % 60:02}:00Z,{value:.6f}" for row, value in enumerate(walk)]
    file.write_text("\n".join(["time,value", *lines]) + "\n")
    unwanted = TRAINING | COMPILER | {"torch"}
    programs = {"tft-anomaly": "onnx"}
    rooms = ("shared.engine", "shared.comms", "apps.finance.task")
    _run(SCRIPT.format(app="finance", file=str(file), programs=programs, unwanted=unwanted, rooms=rooms))


def test_a_sweep_loads_only_the_lidar_model(tmp_path: Path) -> None:
    file, random = tmp_path / "sweep.bin", np.random.default_rng(0)
    points = random.uniform((0, -20, -1.8, 0), (60, 20, -1.6, 1), (4000, 4))
    points.astype("<f4").tofile(file)
    programs = {"pointpillars": "onnx", "lidar_rcnn": "onnx"}
    unwanted = TRAINING | COMPILER
    rooms = ("shared.engine", "shared.comms", "apps.driving.datasets", "apps.driving.task")
    _run(SCRIPT.format(app="driving", file=str(file), programs=programs, unwanted=unwanted, rooms=rooms))


def test_the_medical_predictor_and_codec_import_no_training_library() -> None:
    imports = "import sys, apps.medical.predictor, apps.medical.service\n"
    _run(f"{imports}imported = {TRAINING | COMPILER} & set(sys.modules)\nassert not imported, imported")


@pytest.mark.parametrize(("app", "unwanted"), [("medical", {"scipy"}), ("driving", {"cv2", "scipy"})])
def test_a_network_is_loaded_without_libraries_that_only_its_input_needs(app: str, unwanted: set[str]) -> None:
    _run(
        "import sys\nfrom shared.app import find\nfrom shared.deploy.opening import open_predictor\n"
        f"opened = open_predictor(find({app!r}), lazy=True)\n"
        f"imported = {unwanted} & set(sys.modules)\nassert not imported, imported"
    )
