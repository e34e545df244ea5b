"""What says whether a server's memory grows: the error of a slope in samples that depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.soak import CONNECTIONS, TARGET_SHARE, hold_load, slope

PER_HOUR, TIMES = 1e6 / 3600, np.arange(240) * 2.0
"""Megabytes an hour in bytes a second; ten minutes without the first fifth, every two seconds."""
Noise = Callable[[np.random.Generator], Any]


def level(random: np.random.Generator) -> Any:
    return random.normal(0, 50_000, len(TIMES))


def slow(random: np.random.Generator) -> Any:
    """Each sample keeps nine tenths of the one before."""
    found = random.normal(0, 20_000, len(TIMES))
    for number in range(1, len(found)):
        found[number] += 0.9 * found[number - 1]
    return found


def walk(random: np.random.Generator) -> Any:
    return np.cumsum(random.normal(0, 10_000, len(TIMES)))


def step(random: np.random.Generator) -> Any:
    return random.normal(0, 4_000, len(TIMES)) + 80_000 * (np.arange(len(TIMES)) > random.integers(len(TIMES)))


def share_found(noise: Noise, leak: float) -> float:
    """How often growth beyond the error is found at a leak of so many megabytes an hour."""
    random, number = np.random.default_rng(0), 400
    found = [slope(list(TIMES), list(4e8 + noise(random) + leak * PER_HOUR * TIMES)) for _ in range(number)]
    return sum(grows > error for grows, error in found) / number


@pytest.mark.parametrize("noise", [level, slow, walk, step])
def test_a_leak_of_5_megabytes_an_hour_is_found_in_ten_minutes_and_none_is_not(noise: Noise) -> None:
    assert share_found(noise, 0) <= 0.1
    assert share_found(noise, 5) >= 0.95


def test_the_slope_is_that_of_the_line() -> None:
    grows, error = slope(list(TIMES), list(3 * TIMES + 7))
    assert grows == pytest.approx(3) and error < 1e-9


@pytest.mark.parametrize("later", [1400.0, 700.0, 350.0])
def test_the_share_is_held_where_the_machine_becomes_slower_or_faster(later: float) -> None:
    asked: list[float] = []

    def ask(seconds: float, pause_ms: int) -> float:
        # The server answers in turn: a connection waits for the others, at most for as long as all take.
        saturation = 700.0 if sum(asked) < 150 else later
        asked.append(seconds)
        return saturation * 1000 / max(1000, (2 + pause_ms) * saturation / CONNECTIONS)

    held = hold_load(10, 60.0, 5.0, ask)
    assert len(held.rates) == 10 and sum(one == 60.0 for one in asked) == 10
    # One minute was held at the former speed; all others at the present one.
    assert held.rates[-1] / held.saturations[-1] == pytest.approx(TARGET_SHARE, abs=0.05)
    assert held.share == pytest.approx(TARGET_SHARE, abs=0.08)
