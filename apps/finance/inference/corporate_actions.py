"""Splits and dividends in share prices: finds them, and removes them from the series.

If there is an adjusted close beside the close, they are exact: the ratio of the two changes on the day of the action.
Without one, a split is detected if the price changes overnight by a common split ratio while the volume changes by its
inverse; dividends cannot be detected then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from apps.finance.types import DAY_NS, Floats, Series

_COMMON_RATIOS = (
    Fraction(3, 2),
    *(Fraction(number) for number in (2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 40, 50, 100)),
)
"""Common ratios of new to old shares in splits; from 2 on, also of old to new shares in reverse splits."""
_MIN_SPLIT = 1.15
_RATIO_TOLERANCE = 0.005
_MIN_ADJUSTMENT = 0.0015
_MAX_ACTION_SHARE = 0.05
_PAST_ROWS, _MIN_PAST = 60, 20
_TYPICAL_CHANGES, _MAX_TOLERANCE = 4.0, 0.08
_MAX_VOLUME_RATIO = 2.5


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """From ``row`` on the price is ``factor`` times what it would be otherwise; ``note`` says why. ``listed`` if it is
    visible: a split, or a dividend larger than four typical changes."""

    row: int
    factor: float
    note: str
    listed: bool


def corporate_actions(series: Series) -> tuple[CorporateAction, ...]:
    """The corporate actions in the scored price; none if it is an adjusted price, or no price by its name."""
    from apps.finance.adapters.columns import ADJUSTED, PRICES, VOLUMES, first_matching_label, normalised_label

    if series.joint or normalised_label(series.column) not in PRICES or normalised_label(series.column) in ADJUSTED:
        return ()
    adjusted, volume = (first_matching_label(names, series.values) for names in (ADJUSTED, VOLUMES))
    if adjusted is not None:
        return _from_adjusted_close(series.target, series.values[adjusted])
    return _from_volume(series, series.values[volume]) if volume is not None else ()


def adjustment_note(series: Series) -> str:
    """A note that says for what the scored adjusted close has been adjusted; empty if that is unknown."""
    from apps.finance.adapters.columns import ADJUSTED, PRICES, first_matching_label, normalised_label

    close = first_matching_label([name for name in PRICES if name not in ADJUSTED], series.values)
    if series.joint or normalised_label(series.column) not in ADJUSTED or close is None:
        return ""
    actions = _from_adjusted_close(series.values[close], series.target)
    splits = sum("split" in action.note for action in actions)
    dividends = sum("dividend" in action.note for action in actions)
    counts = [
        f"{number} {name}{'s' if number > 1 else ''}"
        for number, name in ((splits, "split"), (dividends, "dividend"))
        if number
    ]
    return f"column {series.column!r} is adjusted for {' and '.join(counts)}" if counts else ""


def without_actions(series: Series, actions: Sequence[CorporateAction]) -> tuple[Series, Floats]:
    """The series without the effect of the actions, and (N,) the factors that restore its original values."""
    factor = np.ones(len(series))
    for action in actions:
        factor[action.row :] *= action.factor
    if not actions:
        return series, factor
    return replace(series, values={**series.values, series.column: series.target / factor}), factor


def _from_adjusted_close(close: Floats, adjusted: Floats) -> tuple[CorporateAction, ...]:
    """The actions at which the ratio of adjusted close to close changes by more than the prices' rounding."""
    rows = np.flatnonzero(np.isfinite(close) & np.isfinite(adjusted) & (close > 0) & (adjusted > 0))
    if len(rows) < 2:
        return ()
    ratios = np.log(adjusted[rows] / close[rows])
    # Prices are rounded, so the ratio is known only to half of the last decimal of each price.
    rounding = _half_decimal(close[rows]) / close[rows] + _half_decimal(adjusted[rows]) / adjusted[rows]
    steps = np.diff(ratios)
    noise = _MIN_ADJUSTMENT + rounding[1:] + rounding[:-1]
    change_indices = np.flatnonzero(np.abs(steps) > noise)
    if len(change_indices) > max(_MAX_ACTION_SHARE * len(rows), 2):
        return ()  # exporters' adjusted closes change less often
    changes = np.abs(np.diff(np.log(adjusted[rows])))
    actions = []
    for index in change_indices.tolist():
        factor = float(np.exp(-steps[index]))
        past = changes[max(0, index - _PAST_ROWS) : index]
        price_before = float(close[rows[index]])
        split = _small_ratio(1 / factor) if not 1 / _MIN_SPLIT < factor < _MIN_SPLIT else None
        if split is not None:
            note, listed = _split_name(split), True
        elif factor < 1:
            note = f"dividend of {price_before * (1 - factor):.4g} ({100 * (1 - factor):.2g} %)"
            listed = len(past) >= _MIN_PAST and -np.log(factor) > _TYPICAL_CHANGES * float(np.mean(past))
        else:
            note, listed = f"adjusted by {factor:.4g}", True
        actions.append(CorporateAction(int(rows[index + 1]), factor, note, bool(listed)))
    return tuple(actions)


def _from_volume(series: Series, volume: Floats) -> tuple[CorporateAction, ...]:
    """The splits at which price and volume change overnight by inverse ratios."""
    rows = np.flatnonzero(np.isfinite(series.target) & (series.target > 0))
    close, traded, days = series.target[rows], volume[rows], series.times_ns[rows] // DAY_NS
    changes = np.diff(np.log(close))
    actions = []
    for index in np.flatnonzero((np.abs(changes) > np.log(1.4)) & (np.diff(days) > 0)).tolist():
        past, volumes = (
            np.abs(changes[max(0, index - _PAST_ROWS) : index]),
            traded[max(0, index + 1 - _PAST_ROWS) : index + 1],
        )
        volumes = volumes[np.isfinite(volumes) & (volumes > 0)]
        if min(len(past), len(volumes)) < _MIN_PAST or not traded[index + 1] > 0:
            continue
        tolerance = min(_TYPICAL_CHANGES * float(np.mean(past)), _MAX_TOLERANCE)
        candidates = [
            ratio for common in _COMMON_RATIOS for ratio in ((common,) if common < 2 else (common, 1 / common))
        ]
        ratio = min(candidates, key=lambda candidate: abs(changes[index] + np.log(float(candidate))))
        volume_change = float(np.log(traded[index + 1] / np.median(volumes)))
        volume_matches = abs(volume_change - np.log(float(ratio))) <= np.log(_MAX_VOLUME_RATIO)
        if abs(changes[index] + np.log(float(ratio))) <= tolerance and volume_matches:
            actions.append(CorporateAction(int(rows[index + 1]), float(1 / ratio), _split_name(ratio), True))
    return tuple(actions)


def _small_ratio(new_for_old: float) -> Fraction | None:
    """The nearest ratio of small integers, if it is close enough; else None."""
    larger = max(new_for_old, 1 / new_for_old)
    nearest = Fraction(larger).limit_denominator(5)
    if abs(float(nearest) / larger - 1) > _RATIO_TOLERANCE or (nearest.denominator > 1 and nearest.numerator > 10):
        return None
    return nearest if new_for_old >= 1 else 1 / nearest


def _split_name(ratio: Fraction) -> str:
    return f"{ratio.numerator}-for-{ratio.denominator} {'split' if ratio > 1 else 'reverse split'}"


def _half_decimal(values: Floats) -> float:
    """Half of the last decimal with which prices are written, at most 8 decimals."""
    exact_decimals = (number for number in range(8) if np.allclose(values, np.round(values, number), rtol=0, atol=1e-9))
    return 0.5 * float(10.0 ** -next(exact_decimals, 8))
