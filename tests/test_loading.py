"""The loading benchmark measures the process that loads, not the process that starts it."""

from __future__ import annotations

import numpy as np

from benchmarks import loading

BALLAST_MB = 600


def test_the_memory_of_the_parent_process_is_not_counted():
    ballast = np.ones(BALLAST_MB * 1_000_000, np.uint8)
    seconds, memory_mb = loading._run_process("finance", "tft-anomaly", "pass")
    assert ballast[-1] and 0 < seconds < 60
    assert 10 < memory_mb < BALLAST_MB / 2
