"""``import trivium``: its exports, how long it takes to import, and the examples in docs/python.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import trivium
from apps.driving.app import app as driving_app
from apps.driving.predictor import DrivingPredictor
from tests.servers import free_port, is_up
from tests.shared import line_app
from tests.shared.engine import line

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
(MODULE,) = (example for example in EXAMPLES if example.startswith("# points.py"))
(PROJECT,) = re.findall(r"^```toml\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
EXPORTS = [
    "AdamW",
    "App",
    "Constant",
    "CosineRestarts",
    "DDP",
    "Dataset",
    "Decoded",
    "DenseNetwork",
    "DomainScore",
    "FSDP",
    "InvalidInputError",
    "Limits",
    "LoadedModel",
    "MeanScores",
    "Predictor",
    "Recipe",
    "Request",
    "Response",
    "Run",
    "SGD",
    "Steps",
    "Task",
    "WeightedLoss",
    "export",
    "fit",
    "load",
    "on_use",
    "open_network",
    "read_weights",
    "serve",
]


def python(code: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process that finds Trivium on its path, like an installed package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_package_exports_exactly_these_names():
    assert sorted(trivium.__all__) == EXPORTS == sorted(EXPORTS)
    assert dir(trivium) == EXPORTS
    for name in EXPORTS:
        assert getattr(trivium, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        trivium.fly  # noqa: B018
    assert (ROOT / "trivium" / "py.typed").is_file()


def test_the_import_is_fast_and_loads_no_large_library(tmp_path):
    code = (
        "import sys, time; start = time.process_time(); import trivium; print(time.process_time() - start)\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))"
    )
    durations_s = []
    for _ in range(5):
        seconds, modules = python(code, tmp_path).stdout.splitlines()
        durations_s.append(float(seconds))
        assert not set(modules.split()) & {"torch", "numpy", "fastapi", "pydantic", "yaml", "tyro"}
    assert min(durations_s) < 0.08


def test_every_export_is_documented_with_an_example():
    for name in EXPORTS:
        assert any(f"trivium.{name}" in example for example in EXAMPLES) or name == "LoadedModel"
        assert re.search(rf"^## .*\b{name}\b", DOCS, re.MULTILINE), f"docs/python.md has no heading for {name}"


def test_the_examples_run(tmp_path):
    shutil.copy(ROOT / "tests" / "data" / "metric.csv", tmp_path)
    (tmp_path / "points.py").write_text(MODULE)
    code = "\n".join(example for example in EXAMPLES if example != MODULE and "trivium.serve" not in example)
    completed = python(code, tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "tft-anomaly version 1" in completed.stdout and "nowhere.csv does not exist" in completed.stdout
    assert re.search(r"^metric.csv, value: \d+ events in 800 rows", completed.stdout, re.MULTILINE), completed.stdout


def test_the_application_of_the_page_is_used_from_the_command_line(tmp_path):
    """It is installed by hand, as pip would do, because building a wheel takes longer than all the commands."""
    project = tomllib.loads(PROJECT)
    metadata = tmp_path / "trivium_points-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: trivium-points\nVersion: 0.1.0\n")
    (entry,) = project["project"]["entry-points"]["trivium.apps"].items()
    (metadata / "entry_points.txt").write_text("[trivium.apps]\n{} = {}\n".format(*entry))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    (tmp_path / f"{module}.py").write_text(MODULE)
    (tmp_path / "pairs.csv").write_text("3,1\n2,5\n")
    (tmp_path / "words.csv").write_text("three,one\n")
    assert len([line for line in MODULE.splitlines() if line.strip()]) <= 72
    commands = (
        "train points --out run --device cpu --data.count 1024 --schedule.warmup-steps 0 --optimizer.learning-rate 0.1",
        "export run --registry models",
        "programs points --artifact models/points/1",
        "predict points pairs.csv --artifact models/points/1 --out out",
        "predict points pairs.csv --artifact models/points/1 --out torch --program torch",
        "predict points words.csv --artifact models/points/1 --out none",
    )
    code = f"from shared.cli.main import main; print([main(line.split()) for line in {commands!r}])"
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    completed = python(code, tmp_path, **environment)
    assert completed.stdout.endswith("[0, 0, 0, 0, 0, 2]\n"), completed.stdout + completed.stderr
    assert "words.csv is not a CSV of two numbers a line" in completed.stderr
    for folder in ("out", "torch"):
        result = json.loads((tmp_path / folder / "result.json").read_text())
        assert result["differences"] == pytest.approx([2, -3], abs=0.1)
        assert result["versions"] == {"points": 1} and result["programs"]["points"]


def test_the_serving_example_serves_until_it_is_interrupted(tmp_path):
    (example,) = (example for example in EXAMPLES if "trivium.serve" in example)
    (tmp_path / "models").mkdir()
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIVIUM_WARM": "false"}
    command = [sys.executable, "-W", "ignore", "-c", f"import trivium\n{example.replace('8000', str(port))}"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as server:
        address, deadline = f"http://127.0.0.1:{port}/v2/health/live", time.monotonic() + 60
        while not is_up(address):
            assert server.poll() is None, server.stderr and server.stderr.read()
            assert time.monotonic() < deadline
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0


def test_local_packages_named_shared_and_apps_do_not_shadow_trivium(tmp_path):
    for name in ("shared", "apps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    code = "import trivium; print(trivium.App.__module__, trivium.load)"
    completed = python(code, tmp_path)
    assert completed.returncode == 0 and "shared.app" in completed.stdout, completed.stderr
    (tmp_path / "shared" / "__init__.py").write_text("")
    completed = python("import shared, trivium", tmp_path)
    assert completed.returncode == 1 and "another package called shared is already imported" in completed.stderr


def test_a_checkpoint_and_its_exported_artifact_predict_the_same(tmp_path):
    app = line_app.make_app(tmp_path / "line")
    line.train(tmp_path / "run", steps=4, checkpoint_every=2)
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: line\n", "name: tiny\n", 1))
    artifact = trivium.export(tmp_path / "run", tmp_path / "models", app=app)
    exported = trivium.load(app, artifact=artifact.path, device="cpu")
    trained = trivium.load(app, checkpoint=tmp_path / "run", device="cpu")
    assert repr(trained) == "LoadedModel(line: line version 1)"
    points = [(1.0, 2.0), (3.0, 4.0)]
    assert trained.predict(points) == exported.predict(points)
    assert trained.predict(points[0]) == exported.predict(points)[0]
    assert trained.predict(points[0], times=2.0) == 2 * trained.predict(points[0])
    (tmp_path / "two.csv").write_text("1,2\n3,4\n")
    (tmp_path / "one.csv").write_text("1,2\n")
    assert trained.predict_files(tmp_path / "two.csv") == trained.predict(points)
    assert trained.predict_files(tmp_path / "one.csv", times=2) == trained.predict(points[0], times=2.0)
    assert trained.read(tmp_path / "two.csv") == points


def test_invalid_arguments_of_load_and_predict_are_refused(tmp_path):
    with pytest.raises(trivium.InvalidInputError, match="there is no application 'astronomy'"):
        trivium.load("astronomy")
    app = line_app.make_app(tmp_path / "line")
    with pytest.raises(trivium.InvalidInputError, match="not both"):
        trivium.load(app, artifact=tmp_path, checkpoint=tmp_path)
    with pytest.raises(trivium.InvalidInputError, match="does not exist"):
        trivium.load(app, checkpoint=tmp_path)
    model = trivium.LoadedModel(
        app=app,
        artifact="",
        predictor=line_app.LinePredictor(line.Network().build(), device="cpu", threshold=0),
        codec=None,
    )
    with pytest.raises(trivium.InvalidInputError, match="the options often cannot be used; the options are times"):
        model.predict((1.0, 2.0), often=3)


def test_an_input_of_the_wrong_type_is_refused_with_the_type_that_is_taken(tmp_path):
    driving = trivium.LoadedModel(
        app=driving_app, artifact="", predictor=DrivingPredictor(detectors={}, least_scores={}), codec=None
    )
    message = r"of type apps\.driving\.types\.Frame\(name, points_lidar_m, cameras\) .* not {}; call predict_files"
    for value, kind in ((np.zeros((9, 4), np.float32), "ndarray"), ("sweep.bin", "str"), ([tmp_path], "PosixPath")):
        with pytest.raises(trivium.InvalidInputError, match=message.format(kind)):
            driving.predict(value)
    with pytest.raises(trivium.InvalidInputError, match=r"a finance model .*finance\.types\.Series\(.*\) .* not list"):
        trivium.load("finance", device="cpu").predict([[1.0, 2.0, 3.0]])
