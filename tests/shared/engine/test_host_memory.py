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


@pytest.mark.parametrize("check", ["reused_within_the_context", "users_settings_kept"])
def test_freed_memory_is_kept_unless_the_user_configured_the_allocator(glibc, check):
    # In a fresh process: the heap of a long-running one may have a free chunk that fits the blocks, or no room to grow.
    command = [sys.executable, "-m", "tests.shared.engine.test_host_memory", check]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)


def reused_within_the_context():
    outside = faults()
    with keep_freed_memory():
        faults()
        within = faults()
    assert within < outside / 4
    assert faults() > 4 * within


def users_settings_kept():
    outside = faults()
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "1"
    with keep_freed_memory():
        assert faults() > outside / 2


if __name__ == "__main__":
    {check.__name__: check for check in (reused_within_the_context, users_settings_kept)}[sys.argv[1]]()
