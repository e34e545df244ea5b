"""Triton's load generator. Skipped unless it is on the PATH or TRIVIUM_PERF_ANALYZER has its path.

PyPI's tritonclient 2.41.1 for Linux holds the binary (tritonclient-2.41.1.data/data/bin/perf_analyzer); it needs
libb64.so.0d (Debian's libb64-0d) and libcudart.so.12 (PyPI's nvidia-cuda-runtime-cu12) in LD_LIBRARY_PATH.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving

PERF_ANALYZER = os.environ.get("TRIVIUM_PERF_ANALYZER") or shutil.which("perf_analyzer")


@pytest.mark.skipif(PERF_ANALYZER is None, reason="perf_analyzer is not installed")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_measures_a_model_over_both_protocols(tmp_path: Path, protocol: str) -> None:
    settings = Settings(store=tmp_path / "store", workers=0, warm=False, grpc_port=0)
    application = create_app(settings, {"finance": find("finance")})
    with serving(application) as address:
        port = application.state.grpc_port
        place = address.removeprefix("http://") if protocol == "http" else f"127.0.0.1:{port}"
        found = tmp_path / "found.csv"
        limits = ["--measurement-interval", "500", "--stability-percentage", "999", "--max-trials", "3"]
        command = [
            str(PERF_ANALYZER),
            "-m",
            "tft-anomaly",
            "-u",
            place,
            "-i",
            protocol,
            "-b",
            "4",
            "--input-data",
            "zero",
        ]
        completed = subprocess.run(
            [*command, "--concurrency-range", "2", *limits, "-f", str(found)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (line,) = csv.DictReader(found.read_text().splitlines())
    assert float(line["Inferences/Second"]) > 0 and "Server Compute Infer" in line
