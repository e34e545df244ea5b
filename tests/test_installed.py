"""Trivium installed from its wheel, with a fourth application, run in a folder with packages of the same names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

from tests.servers import free_port, is_up

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "fourth_app"
PACKAGES = ("apps", "shared", "trivium")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder into which the wheels of Trivium and of the example are installed, built without network."""
    folder = tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder / "source")
    shutil.copytree(EXAMPLE, folder / "example", ignore=ignored)
    offline = ["--no-deps", "--no-index"]
    wheel = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", folder / "wheels"]
    subprocess.run([*PIP, *wheel, folder / "source", folder / "example"], check=True)
    wheels = sorted((folder / "wheels").iterdir())
    subprocess.run([*PIP, "install", *offline, "--no-compile", "--target", folder / "site", *wheels], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A user's working folder that contains packages named ``apps`` and ``shared``."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("apps", "shared"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('this is not the Trivium that was installed')\n")
    return folder


@pytest.fixture(scope="module")
def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def trivium(site: Path, home: Path, environment: dict[str, str]):
    """Runs the installed command in the user's folder; returns what it prints."""

    def run(*words: str) -> str:
        command = [str(site / "bin" / "trivium"), *words]
        completed = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return completed.stdout

    return run


@pytest.fixture(scope="module")
def commands(home: Path, environment: dict[str, str]):
    """Runs several commands of the installed package in one process, in the user's folder; returns what they print."""

    def run(*command_lines: list[str]) -> str:
        code = f"import sys; from shared.cli.main import main; sys.exit(max(map(main, {list(command_lines)!r})))"
        command = [sys.executable, "-P", "-c", code]
        completed = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return completed.stdout

    return run


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for name in PACKAGES
        for path in (folder / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_contains_every_file_of_the_packages(site):
    assert files(site) == files(ROOT)


def test_the_example_has_fewer_than_120_lines():
    lines = [line for path in EXAMPLE.rglob("*.py") for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 120


def test_the_command_runs_in_a_folder_with_packages_of_the_same_names(trivium):
    assert "lung_nodules" in trivium("models", "medical")


def test_python_imports_trivium_in_a_folder_with_packages_of_the_same_names(site, home, environment):
    code = (
        "import trivium; print(trivium.__file__); print(trivium.App.__module__); import shared; print(shared.__file__)"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True)
    init_file, module, package = completed.stdout.split()
    assert init_file.startswith(str(site)) and module == "shared.app" and package.startswith(str(site)), (
        completed.stderr
    )


def test_a_fourth_application_trains_exports_predicts_and_is_served(site, home, environment, commands):
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    for number in (0, 1):
        Image.fromarray((images[-1 - number].reshape(8, 8) * 15.9).astype("uint8")).save(home / f"digit{number}.png")
    artifact = str(home / "registry" / "digits" / "1")
    # One process for all commands, because importing torch takes longer than each command itself.
    printed = commands(
        ["train", "digits", "--out", "run", "--device", "cpu", "--limits.epochs", "8"],
        ["evaluate", "digits", "--run", "run", "--device", "cpu"],
        ["export", "run", "--registry", "registry"],
        ["predict", "digits", "digit0.png", "digit1.png", "--artifact", artifact, "--out", "out"],
        ["models", "digits"],
        ["quantize", artifact, "--cases", "297"],
        ["predict", "digits", "digit0.png", "--artifact", artifact, "--out", "int8", "--program", "openvino-int8"],
    )
    assert json.loads((home / "run" / "result.json").read_text())["scores"]["accuracy"] > 0.85
    assert printed.count("accuracy") >= 2 and "Trains in seconds on one core." in printed
    assert json.loads((home / "int8" / "result.json").read_text())["programs"] == {"digits": "openvino-int8"}
    found = json.loads((home / "out" / "result.json").read_text())["digits"]
    assert [row["digit"] for row in found] == [int(digits[-1]), int(digits[-2])]
    assert "Handwritten digits: digits: 2" in printed and "probability" in printed

    port = free_port()
    command = [str(site / "bin" / "trivium"), "serve", "--registry", "registry", "--port", str(port)]
    settings = {**environment, "TRIVIUM_WARM": "false"}  # TRIVIUM_DEVICE keeps its default
    with subprocess.Popen(command, cwd=home, env=settings, stderr=subprocess.PIPE, text=True) as server:
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while not is_up(f"{address}/v2/health/live"):
                assert server.poll() is None and time.monotonic() < deadline, server.stderr and server.stderr.read()
            parts = [("files", (f"digit{n}.png", (home / f"digit{n}.png").read_bytes())) for n in (0, 1)]
            response = httpx.post(f"{address}/api/digits/predict", files=parts, timeout=60)
            assert response.status_code == 200 and response.json()["result"]["digits"] == found, response.text
            assert httpx.get(f"{address}/v2/models/digits").json()["inputs"][0]["shape"] == [-1, 64]
            assert "Handwritten digits" in httpx.get(f"{address}/digits").text
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()  # otherwise leaving the block would wait for the server
