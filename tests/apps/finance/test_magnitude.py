"""The size of an event in the unit of its values and in robust deviations, and its reason in words."""

from __future__ import annotations

import re

import numpy as np
import pytest

from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.magnitude import amount, magnitude

WALK = 100 + np.random.default_rng(0).standard_normal(9000).cumsum()


def of_normal(past: np.ndarray, about: float) -> float:
    """The robust standard deviation of the last 8,000 rows."""
    return float(1.482602 * np.median(np.abs(past[-8000:] - about)))


@pytest.mark.parametrize(("detector", "rows"), [("jump", 1), ("move", 4)])
def test_a_jump_is_the_change_in_deviations_of_such_changes(detector, rows):
    values = WALK.copy()
    values[8999] = values[8999 - rows] - 12.5
    found = magnitude(values, detector, 8999, 8999, 100.0)
    assert found.size == pytest.approx(-12.5)
    assert found.deviations == pytest.approx(-12.5 / of_normal(WALK[rows:8999] - WALK[: 8999 - rows], 0.0), rel=1e-3)
    since = {1: "the row before", 4: "four rows before"}[rows]
    reason = f"a sudden change: -12.5 from {since}, {-found.deviations:.1f} robust deviations"
    assert found.reason == reason


def test_a_value_beyond_the_range_is_measured_from_the_expected_value():
    values = WALK.copy()
    values[8999] = WALK.max() + 40
    expected = float(WALK[8998])
    found = magnitude(values, "beyond_range", 8999, 8999, expected)
    assert found.size == pytest.approx(values[8999] - expected, rel=1e-5)
    assert found.deviations == pytest.approx(found.size / of_normal(np.diff(WALK[:8999]), 0.0), rel=1e-3)
    assert found.reason.startswith("a value above all earlier values: +")


def test_a_level_is_the_mean_of_eight_rows_and_the_median_of_such_means():
    noise = np.random.default_rng(1).standard_normal(3000)
    values = noise + np.where(np.arange(3000) >= 2900, 1000.0, 0.0)
    found = magnitude(values, "level", 2904, 2910, 0.0)
    assert found.size == pytest.approx(1000, abs=2) and found.deviations > 300
    assert re.match(r"a new level: the mean of 8 rows is (9|1,0)\d\d(\.\d)? above its median of ", found.reason)


def test_volatility_is_reported_with_its_median():
    values = np.concatenate([WALK[:5000], np.full(30, WALK[4999])])
    found = magnitude(values, "low_volatility", 5011, 5011, 0.0)
    usual = -found.size
    assert found.reason.startswith(f"changes smaller than usual: 0 a row over 12 rows where {amount(usual)} is usual")
    assert usual == pytest.approx(0.8, abs=0.05) and found.deviations < -3


def test_mostly_constant_ticks_have_deviations_too():
    values = np.where(np.arange(500) % 5 == 4, 100.01, 100.0)
    values[499] = 101.0
    found = magnitude(values, "jump", 499, 499, 100.0)
    changes = np.abs(np.diff(values[:499]))
    assert found.deviations == pytest.approx(found.size / (1.2533 * changes.mean()), rel=0.01)


@pytest.mark.parametrize("detector", DETECTORS)
def test_there_are_no_deviations_without_history_or_changes(detector):
    for values, expected in ((WALK[:21], float("nan")), (np.append(np.full(300, 5.0), 6.0), 5.0)):
        found = magnitude(values, detector, len(values) - 1, len(values) - 1, expected)
        assert found.deviations is None
        assert found.reason and "robust" not in found.reason and "nan" not in found.reason


def test_rows_after_the_peak_change_nothing():
    for detector in DETECTORS:
        assert magnitude(WALK, detector, 5000, 5003, 1.0) == magnitude(WALK[:5004], detector, 5000, 5003, 1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.678, "12,346"),
        (1.23456, "1.235"),
        (0.0123456, "0.01235"),
        (0.0, "0"),
        (1.5e-7, "1.500e-07"),
        (-3.0, "-3"),
    ],
)
def test_amounts_have_four_digits(value, text):
    assert amount(value) == text
