"""Freed memory stays in the process during a run and is returned to the system afterwards."""

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
    """The number of page faults while blocks are allocated and freed one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.ones(BLOCK, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def glibc(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def test_freed_blocks_are_reused_within_the_context_and_returned_afterwards(glibc):
    # In a fresh process: in a long-running one the heap may have no room to grow.
    subprocess.run([sys.executable, "-m", "tests.shared.engine.test_host_memory"], check=True, cwd=ROOT, timeout=120)


def in_a_new_process():
    outside = faults()
    with keep_freed_memory():
        faults()
        within = faults()
    assert within < outside / 4
    assert faults() > 4 * within


def test_allocator_settings_of_the_user_are_kept(glibc, monkeypatch):
    outside = faults()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with keep_freed_memory():
        assert faults() > outside / 2


if __name__ == "__main__":
    in_a_new_process()
