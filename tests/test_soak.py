"""The soak benchmark's test for memory growth: a slope and its error, from autocorrelated samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.soak import CONNECTIONS, TARGET_SHARE, hold_load, slope

MB_PER_HOUR, TIMES_S = 1e6 / 3600, np.arange(240) * 2.0
"""One megabyte per hour in bytes per second; one sample every two seconds, for ten minutes without the first fifth."""
Noise = Callable[[np.random.Generator], Any]


def white_noise(random: np.random.Generator) -> Any:
    return random.normal(0, 50_000, len(TIMES_S))


def autocorrelated_noise(random: np.random.Generator) -> Any:
    """Each sample is nine tenths of the one before plus new noise."""
    found = random.normal(0, 20_000, len(TIMES_S))
    for number in range(1, len(found)):
        found[number] += 0.9 * found[number - 1]
    return found


def random_walk(random: np.random.Generator) -> Any:
    return np.cumsum(random.normal(0, 10_000, len(TIMES_S)))


def step(random: np.random.Generator) -> Any:
    return random.normal(0, 4_000, len(TIMES_S)) + 80_000 * (np.arange(len(TIMES_S)) > random.integers(len(TIMES_S)))


def detection_rate(noise: Noise, leak: float) -> float:
    """The share of trials in which growth exceeds its error, with a leak of ``leak`` megabytes per hour."""
    random, trials = np.random.default_rng(0), 400
    found = [slope(list(TIMES_S), list(4e8 + noise(random) + leak * MB_PER_HOUR * TIMES_S)) for _ in range(trials)]
    return sum(growth > error for growth, error in found) / trials


@pytest.mark.parametrize("noise", [white_noise, autocorrelated_noise, random_walk, step])
def test_a_leak_of_5_megabytes_per_hour_is_found_in_ten_minutes_with_few_false_alarms(noise: Noise) -> None:
    assert detection_rate(noise, 0) <= 0.1
    assert detection_rate(noise, 5) >= 0.95


def test_the_slope_of_a_line_is_exact() -> None:
    growth, error = slope(list(TIMES_S), list(3 * TIMES_S + 7))
    assert growth == pytest.approx(3) and error < 1e-9


@pytest.mark.parametrize("later_saturation", [1400.0, 700.0, 350.0])
def test_the_load_is_held_when_the_machine_becomes_slower_or_faster(later_saturation: float) -> None:
    durations_s: list[float] = []

    def ask(seconds: float, pause_ms: int) -> float:
        # The server answers connections in turn: each waits for the others, at most as long as all of them take.
        saturation = 700.0 if sum(durations_s) < 150 else later_saturation
        durations_s.append(seconds)
        return saturation * 1000 / max(1000, (2 + pause_ms) * saturation / CONNECTIONS)

    load = hold_load(10, 60.0, 5.0, ask)
    assert len(load.rates) == 10 and sum(seconds == 60.0 for seconds in durations_s) == 10
    # One minute was measured at the former speed, all others at the present one.
    assert load.rates[-1] / load.saturations[-1] == pytest.approx(TARGET_SHARE, abs=0.05)
    assert load.share == pytest.approx(TARGET_SHARE, abs=0.08)
