"""Splits and dividends in the prices of a share: what they are, and the series as though there had been none.

With an adjusted close beside the close they are exact: the ratio of the two changes on the day of the action. Without
one a split is told by a price that changes by a usual ratio over night while the volume changes by its inverse;
whether a dividend was paid cannot be told then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from apps.finance.types import DAY_NS, Floats, Series

_USUAL = (Fraction(3, 2), *(Fraction(number) for number in (2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 40, 50, 100)))
"""New shares for old ones in splits, and old for new in reverse splits from 2 on."""
_MIN_SPLIT = 1.15
_NEAR_RATIO = 0.005
_MIN_ADJUSTMENT = 0.0015
_MAX_SHARE = 0.05
_PAST, _MIN_PAST = 60, 20
_USUAL_CHANGES, _FARTHEST = 4.0, 0.08
_VOLUME_WITHIN = 2.5


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """From ``row`` on the price is ``factor`` times what it would be; ``note`` says why. ``listed`` where it shows:
    a split, or a dividend of more than four usual changes."""

    row: int
    factor: float
    note: str
    listed: bool


def corporate_actions(series: Series) -> tuple[CorporateAction, ...]:
    """Those in the price that is scored; none where it is adjusted itself, or no price by its name."""
    from apps.finance.adapters.columns import ADJUSTED, PRICES, VOLUMES, first_matching_label, plain

    if series.joint or plain(series.column) not in PRICES or plain(series.column) in ADJUSTED:
        return ()
    adjusted, volume = (first_matching_label(names, series.values) for names in (ADJUSTED, VOLUMES))
    if adjusted is not None:
        return _by_adjusted(series.target, series.values[adjusted])
    return _by_volume(series, series.values[volume]) if volume is not None else ()


def adjustments(series: Series) -> str:
    """What the adjusted close that is scored has been adjusted for, as a note; empty where that cannot be told."""
    from apps.finance.adapters.columns import ADJUSTED, PRICES, first_matching_label, plain

    close = first_matching_label([name for name in PRICES if name not in ADJUSTED], series.values)
    if series.joint or plain(series.column) not in ADJUSTED or close is None:
        return ""
    found = _by_adjusted(series.values[close], series.target)
    splits = sum("split" in one.note for one in found)
    dividends = sum("dividend" in one.note for one in found)
    counted = [
        f"{number} {name}{'s' if number > 1 else ''}"
        for number, name in ((splits, "split"), (dividends, "dividend"))
        if number
    ]
    return f"column {series.column!r} is adjusted for {' and '.join(counted)}" if counted else ""


def continued(series: Series, actions: Sequence[CorporateAction]) -> tuple[Series, Floats]:
    """The series as though there had been no action, and (N,) what its values are multiplied by to have it back."""
    factor = np.ones(len(series))
    for one in actions:
        factor[one.row :] *= one.factor
    if not actions:
        return series, factor
    return replace(series, values={**series.values, series.column: series.target / factor}), factor


def _by_adjusted(close: Floats, adjusted: Floats) -> tuple[CorporateAction, ...]:
    rows = np.flatnonzero(np.isfinite(close) & np.isfinite(adjusted) & (close > 0) & (adjusted > 0))
    if len(rows) < 2:
        return ()
    ratios = np.log(adjusted[rows] / close[rows])
    # Prices are written with so many decimals: the ratio is known to half of the last one of each.
    rounding = _half_decimal(close[rows]) / close[rows] + _half_decimal(adjusted[rows]) / adjusted[rows]
    steps = np.diff(ratios)
    noise = _MIN_ADJUSTMENT + rounding[1:] + rounding[:-1]
    places = np.flatnonzero(np.abs(steps) > noise)
    if len(places) > max(_MAX_SHARE * len(rows), 2):
        return ()  # not an adjusted close as exporters write it
    usual = np.abs(np.diff(np.log(adjusted[rows])))
    found = []
    for place in places.tolist():
        factor = float(np.exp(-steps[place]))
        past = usual[max(0, place - _PAST) : place]
        before = float(close[rows[place]])
        split = _ratio(1 / factor) if not 1 / _MIN_SPLIT < factor < _MIN_SPLIT else None
        if split is not None:
            note, listed = _split(split), True
        elif factor < 1:
            note = f"dividend of {before * (1 - factor):.4g} ({100 * (1 - factor):.2g} %)"
            listed = len(past) >= _MIN_PAST and -np.log(factor) > _USUAL_CHANGES * float(np.mean(past))
        else:
            note, listed = f"adjusted by {factor:.4g}", True
        found.append(CorporateAction(int(rows[place + 1]), factor, note, bool(listed)))
    return tuple(found)


def _by_volume(series: Series, volume: Floats) -> tuple[CorporateAction, ...]:
    rows = np.flatnonzero(np.isfinite(series.target) & (series.target > 0))
    close, traded, days = series.target[rows], volume[rows], series.times_ns[rows] // DAY_NS
    changes = np.diff(np.log(close))
    found = []
    for place in np.flatnonzero((np.abs(changes) > np.log(1.4)) & (np.diff(days) > 0)).tolist():
        past, volumes = np.abs(changes[max(0, place - _PAST) : place]), traded[max(0, place + 1 - _PAST) : place + 1]
        volumes = volumes[np.isfinite(volumes) & (volumes > 0)]
        if min(len(past), len(volumes)) < _MIN_PAST or not traded[place + 1] > 0:
            continue
        within = min(_USUAL_CHANGES * float(np.mean(past)), _FARTHEST)
        candidates = [ratio for one in _USUAL for ratio in ((one,) if one < 2 else (one, 1 / one))]
        ratio = min(candidates, key=lambda one: abs(changes[place] + np.log(float(one))))
        more = float(np.log(traded[place + 1] / np.median(volumes)))
        alike = abs(more - np.log(float(ratio))) <= np.log(_VOLUME_WITHIN)
        if abs(changes[place] + np.log(float(ratio))) <= within and alike:
            found.append(CorporateAction(int(rows[place + 1]), float(1 / ratio), _split(ratio), True))
    return tuple(found)


def _ratio(new_for_old: float) -> Fraction | None:
    """The ratio of small numbers that is near; None where there is none."""
    larger = max(new_for_old, 1 / new_for_old)
    near = Fraction(larger).limit_denominator(5)
    if abs(float(near) / larger - 1) > _NEAR_RATIO or (near.denominator > 1 and near.numerator > 10):
        return None
    return near if new_for_old >= 1 else 1 / near


def _split(ratio: Fraction) -> str:
    return f"{ratio.numerator}-for-{ratio.denominator} {'split' if ratio > 1 else 'reverse split'}"


def _half_decimal(values: Floats) -> float:
    """Half of the last decimal with which prices are written, of 8 at the most."""
    written = (number for number in range(8) if np.allclose(values, np.round(values, number), rtol=0, atol=1e-9))
    return 0.5 * float(10.0 ** -next(written, 8))
