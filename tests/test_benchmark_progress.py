"""A benchmark that takes minutes says what it is doing, apart from its results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.comms.shaped_network import missing_privileges

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(missing_privileges() is not None, reason="needs network namespaces")
def test_allreduce_reports_each_method_as_it_is_measured():
    code = "from benchmarks import allreduce; allreduce.SIZES_MB = {1: 1}; allreduce.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " MB, " in line]
    assert [line.split(" MB, ")[1].rpartition(":")[0] for line in lines] == [
        "flat, launcher's order",
        "flat, our order",
        "hierarchical",
        "hierarchical bf16",
    ]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == "allreduce" and result["figures"]["hierarchical, 1 MB: seconds"] > 0
