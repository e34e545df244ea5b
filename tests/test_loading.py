"""The benchmark of loading: what it measures is the process that loads, not the one that starts it."""

from __future__ import annotations

import numpy as np

from benchmarks import loading

BALLAST_MB = 600


def test_the_memory_of_a_process_is_its_own():
    held = np.ones(BALLAST_MB * 1_000_000, np.uint8)
    seconds, memory_mb = loading._run_process("finance", "tft-anomaly", "pass")
    assert held[-1] and 0 < seconds < 60
    assert 10 < memory_mb < BALLAST_MB / 2
