"""CRSP's daily and monthly stock files, as WRDS exports them: a price has a sign that is not part of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apps.finance.adapters.columns import first_matching_label
from apps.finance.types import Floats


def unsign_crsp_prices(values: dict[str, Floats], labels: Sequence[str]) -> list[str]:
    """Replaces a column PRC beside PERMNO by the prices in it, and returns notes about it.

    Without a trade on a day, CRSP writes the mean of bid and ask with a minus sign, and 0 if there is none either
    (CRSP data description guide, Price or Bid/Ask Average).
    """
    price = first_matching_label(["prc"], values)
    if price is None or first_matching_label(["permno"], labels) is None:
        return []
    means, missing = int((values[price] < 0).sum()), int((values[price] == 0).sum())
    values[price] = np.where(values[price] == 0, np.nan, np.abs(values[price]))
    values_are = "values are means of bid and ask on days" if means > 1 else "value is the mean of bid and ask on a day"
    notes = [f"{means} negative {values_are} without a trade"] if means else []
    notes += [f"{missing} zero{'s count' if missing > 1 else ' counts'} as missing"] if missing else []
    return [f"column {price!r}, in CRSP's layout: {' and '.join(notes)}"] if notes else []
