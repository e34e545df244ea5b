"""Binance's spot market files have no header: their columns are recognised by the content of every row."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TIME, _NUMBER, _FLAG = r"1\d{12}(?:\d{3})?", r"\d+(?:\.\d*)?", r"(?:true|false)"
_LAYOUTS = {
    "klines": (
        "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore",
        [_TIME, *[_NUMBER] * 5, _TIME, *[_NUMBER] * 5],
    ),
    "aggregate trades": (
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,is_best_match",
        [r"\d+", _NUMBER, _NUMBER, r"\d+", r"\d+", _TIME, _FLAG, _FLAG],
    ),
    "trades": (
        "id,price,quantity,quote_quantity,time,is_buyer_maker,is_best_match",
        [r"\d+", _NUMBER, _NUMBER, _NUMBER, _TIME, _FLAG, _FLAG],
    ),
}
"""The names that Binance gives the columns in files with a header; times are ms since 1970, in files since 2025 us."""


def binance_columns(lines: Sequence[str]) -> tuple[str, list[str]] | None:
    """The kind of Binance file and its columns, from its first ``lines``; None for other files."""
    for kind, (names, cells) in _LAYOUTS.items():
        row = re.compile(",".join(cells), re.IGNORECASE)
        if lines and all(map(row.fullmatch, map(str.strip, lines))):
            return kind, names.split(",")
    return None
