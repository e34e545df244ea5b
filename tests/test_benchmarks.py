"""Benchmarks as a user starts them: what they report on the way, and on how many threads they measure."""

from __future__ import annotations

import json
import os
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


@pytest.mark.parametrize(
    ("settings", "threads"), [({}, 1), ({"TRIVIUM_THREADS": "2"}, 2), ({"OMP_NUM_THREADS": "2"}, 2)]
)
def test_networks_are_timed_on_one_thread_unless_the_user_sets_another_number(settings, threads):
    """On several threads the CPU-seconds of the peer include those in which its threads wait for each other."""
    names = ("TRIVIUM_THREADS", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | settings
    command = [sys.executable, "-m", "benchmarks.quantize", "--models", "none"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["figures"]["threads"] == threads
