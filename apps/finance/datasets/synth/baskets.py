"""Synthetic baskets: several columns that move together, and faults that no single column shows. NumPy only."""

from __future__ import annotations

import numpy as np

from apps.finance.types import MINUTE_NS, LabelledSeries, Series, Window

KINDS = ("decoupled", "crossed", "stale")


def basket(generator: np.random.Generator, *, length: int = 3000, columns: int = 6) -> LabelledSeries:
    """Prices of ``columns`` shares driven by two common factors, with one fault of each kind in ``KINDS``.

    ``decoupled``: for 24 rows one share moves independently, with the usual size of changes. ``crossed``: for 24 rows
    two shares have each other's changes with the opposite sign. ``stale``: for 24 rows one share lags the others by
    three rows. The kind of a window names the fault and, after a colon, its columns.
    """
    loadings = generator.normal(0.0, 1.0, (2, columns)) + np.array([[1.5], [0.0]])
    factors = generator.standard_t(6, (length, 2))
    idiosyncratic = 0.25 * generator.standard_t(6, (length, columns))
    returns = 1e-3 * (factors @ loadings + idiosyncratic)
    rows = 24
    windows = []
    times = 1_577_836_800 * 10**9 + np.arange(length, dtype=np.int64) * 5 * MINUTE_NS
    for kind, position in zip(KINDS, (0.4, 0.6, 0.8), strict=True):
        first = int(position * length) + int(generator.integers(0, length // 20))
        fault_rows = slice(first, first + rows)
        first_share, second_share = (int(number) for number in generator.choice(columns, 2, replace=False))
        if kind == "decoupled":
            returns[fault_rows, first_share] = returns[generator.integers(50, first - 50, rows), first_share]
        elif kind == "crossed":
            returns[fault_rows, [first_share, second_share]] = -returns[fault_rows, [second_share, first_share]]
        else:
            returns[fault_rows, first_share] = returns[first - 3 : first - 3 + rows, first_share]
        names = f"share_{first_share}, share_{second_share}" if kind == "crossed" else f"share_{first_share}"
        windows.append(Window(start_ns=int(times[first]), end_ns=int(times[first + rows - 1]), kind=f"{kind}: {names}"))
    values = {f"share_{k}": 100 * np.exp(np.cumsum(returns[:, k])) for k in range(columns)}
    series = Series(name="synthetic basket", times_ns=times, values=values, column="share_0", interval_ns=5 * MINUTE_NS)
    return LabelledSeries(series=series, windows=tuple(windows))
