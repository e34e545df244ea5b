"""Memory that is freed stays with the process while a run trains, and goes back to the system afterwards."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.engine.host_memory import keep_freed_memory

ROOT = Path(__file__).parents[3]
BLOCK, TIMES = 64 << 20, 8


def faults():
    """How many pages the system gives while so many blocks are taken one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.ones(BLOCK, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def glibc(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def test_freed_blocks_are_used_again_within_and_given_back_afterwards(glibc):
    # In a process of its own: one that has run long may have no room left where its heap grows.
    subprocess.run([sys.executable, "-m", "tests.shared.engine.test_host_memory"], check=True, cwd=ROOT, timeout=120)


def in_a_new_process():
    outside = faults()
    with keep_freed_memory():
        faults()
        within = faults()
    assert within < outside / 4
    assert faults() > 4 * within


def test_the_users_own_settings_hold(glibc, monkeypatch):
    outside = faults()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with keep_freed_memory():
        assert faults() > outside / 2


if __name__ == "__main__":
    in_a_new_process()
