"""The benchmark of detector training: the peer and ours compute the same losses and gradients from the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MEDICAL = """
recipe, scans = benchmark.medical_recipe(folder, quick=True)
found = benchmark.monai_parity(recipe, scans)
"""
DRIVING = """
found = benchmark.mmdet3d_parity(benchmark.driving_recipe(folder, quick=True, sweeps=benchmark.BATCH))
"""


@pytest.mark.parametrize("sides", [MEDICAL, DRIVING], ids=["medical", "driving"])
def test_the_peer_and_ours_have_the_same_losses_and_gradients(sides, tmp_path):
    """Runs in a new process, because the benchmark replaces a missing module there to import mmdet3d's data sets."""
    script = "import json, pathlib, sys, warnings\nwarnings.simplefilter('ignore')\n"
    script += "from benchmarks import train_detectors as benchmark\nfolder = pathlib.Path(sys.argv[1])\n"
    script += f"{sides}\nprint(json.dumps(found))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert completed.returncode == 0, completed.stderr
    found = json.loads(completed.stdout.splitlines()[-1])
    assert found["difference of losses"] < 1e-6
    assert found["difference of gradients"] < 1e-5
