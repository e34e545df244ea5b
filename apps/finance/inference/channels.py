"""What is looked at: each channel's statistic at each row, larger for more unusual, from that row and earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.finance.datasets.windows import last_seen, same_time_before
from apps.finance.types import Floats, Forecast, Series


@dataclass(frozen=True, slots=True)
class Channel:
    """``word`` is what a user reads. The statistic is a mean over ``rows`` rows.

    ``echo`` is for how many rows it may stay large after its cause has gone.
    """

    word: str
    rows: int
    echo: int


CHANNELS = {
    "surprise": Channel("surprise", 1, 0),
    "drift": Channel("drift", 48, 47),
    "level": Channel("level", 8, 7),
    "rhythm": Channel("rhythm", 12, 11),
    "jump": Channel("jump", 1, 0),
    "move": Channel("jump", 4, 4),
    "unrest": Channel("unrest", 48, 47),
    "calm": Channel("calm", 12, 0),
}
"""The words: a single value off its forecast; many in a row on one side of it; a level never had; another time of day
than on other days; a change from the row before (or from four rows before); changes larger, and smaller, than usual."""

BLOCK = 64
"""What is known of the past is renewed every so many rows."""
GUARD = 128
"""The past ends so many rows ago."""
_MEMORY, _LATELY = 2000, 100
_HIGHEST = 8.0
"""No single row counts for more than this in a mean."""
_RHYTHMIC = 0.4
_STILL = 0.02


def past(start: int, memory: int) -> slice:
    """The rows that a block from ``start`` on is compared with: up to ``memory`` rows, to 128 rows before it.

    So an event that goes on is not measured by its own beginning. The first 256 rows cannot wait so long.
    """
    end = max(start - GUARD, min(start, GUARD))
    return slice(max(0, end - memory), end)


def statistics(series: Series, forecast: Forecast, *, memory: int) -> dict[str, Floats]:
    """Each channel's statistic at each row, (N,); NaN where there is none yet. ``memory`` rows make up the past."""
    far = np.clip(forecast.surprise[:, -1], -_HIGHEST, _HIGHEST)
    values = series.target
    change = np.abs(_change(values, 1))
    usual = _usual_change(values, change)
    clipped = np.minimum(change, _HIGHEST * usual)
    lately = np.concatenate([[np.nan], trailing_mean(clipped, _LATELY)[:-1]])
    return {
        "surprise": np.abs(forecast.surprise[:, 0]),
        "drift": np.abs(trailing_mean(far, CHANNELS["drift"].rows)),
        "level": _unusual_level(values, memory),
        "rhythm": _broken_rhythm(series, memory),
        "jump": change / np.maximum(lately, 0.2 * usual),
        "move": np.abs(_change(values, CHANNELS["move"].rows)) / usual,
        "unrest": trailing_mean(clipped, CHANNELS["unrest"].rows) / usual,
        "calm": _unusual_calm(clipped / usual, memory),
    }


def trailing_mean(values: Floats, rows: int) -> Floats:
    """(N,) the mean of the last ``rows`` values that there are; NaN until half of them are there."""
    seen = np.isfinite(values)
    sums = np.concatenate([np.zeros(rows), np.cumsum(np.where(seen, values, 0))])
    counts = np.concatenate([np.zeros(rows), np.cumsum(seen)])
    number = counts[rows:] - counts[:-rows]
    return np.where(number >= rows / 2, (sums[rows:] - sums[:-rows]) / np.maximum(number, 1), np.nan)


def _change(values: Floats, rows: int) -> Floats:
    """(N,) the change from the value seen ``rows`` rows before; NaN where the row is missing."""
    before: Floats = np.concatenate([np.full(rows, np.nan), last_seen(values)[:-rows]])[: len(values)]
    change: Floats = values - before
    return change


def _usual_change(values: Floats, change: Floats) -> Floats:
    """(N,) the mean absolute change in up to 2000 earlier rows, a millionth of the mean absolute value at the least."""
    usual = np.full(len(values), np.nan)
    for start in range(0, len(values), BLOCK):
        rows = past(start, _MEMORY)
        seen = change[rows][np.isfinite(change[rows])]
        if len(seen) >= 30:
            usual[start : start + BLOCK] = max(seen.mean(), 1e-6 * np.nanmean(np.abs(values[rows])), 1e-9)
    return usual


def _unusual_calm(change: Floats, memory: int) -> Floats:
    """(N,) how small the mean of the last changes (N,) is, which come in usual changes: their negative logarithm.

    NaN where the series stands still every now and then: where it did so in more than a twentieth of the past.
    """
    calm = -np.log(trailing_mean(change, CHANNELS["calm"].rows) + _STILL)
    result = np.full(len(calm), np.nan)
    for start in range(0, len(calm), BLOCK):
        before = calm[past(start, memory)]
        before = before[np.isfinite(before)]
        if len(before) and np.mean(before > -np.log(1.05 * _STILL)) <= 0.05:
            result[start : start + BLOCK] = calm[start : start + BLOCK]
    return result


def _unusual_level(values: Floats, memory: int) -> Floats:
    """(N,) how far the mean of the last rows lies outside the middle 98 % of earlier such means, in their spreads."""
    level = trailing_mean(values, CHANNELS["level"].rows)
    result = np.full(len(values), np.nan)
    for start in range(0, len(values), BLOCK):
        before = level[past(start, memory)]
        before = before[np.isfinite(before)]
        if len(before) < 100:
            continue
        low, middle, high = np.quantile(before, [0.01, 0.5, 0.99])
        spread = max(high - low, 1e-3 * abs(middle), 1e-9)
        now = level[start : start + BLOCK]
        result[start : start + BLOCK] = np.maximum(low - now, now - high) / spread
    return result


def _broken_rhythm(series: Series, memory: int) -> Floats:
    """(N,) how far the last rows' mean is from the same time on up to four days before, in usual such departures.

    NaN where the series has had no rhythm: where such departures were not much smaller than those from the median.
    """
    usual, known = same_time_before(series, horizon=1)
    departure = np.where(known >= 0.75, series.target - usual, np.nan)
    mean = np.abs(trailing_mean(departure, CHANNELS["rhythm"].rows))
    result = np.full(len(mean), np.nan)
    for start in range(0, len(mean), BLOCK):
        rows = past(start, memory)
        before, values = mean[rows], series.target[rows]
        before = before[np.isfinite(before)]
        if len(before) < 100:
            continue
        middle = float(np.nanmedian(values))
        if before.mean() > _RHYTHMIC * np.nanmean(np.abs(values - middle)):
            continue
        scale = max(float(before.mean()), 1e-4 * abs(middle), 1e-9)
        result[start : start + BLOCK] = mean[start : start + BLOCK] / scale
    return result
