"""What the columns of a table are, by their names: times, the value that is meant, identifiers, series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import polars as pl

from apps.finance.types import Times
from shared.errors import InvalidInputError


def _words(text: str) -> list[str]:
    return text.split("|")


TIMES = _words(
    "timestamp|datetime|date time|time|date|ts|open time|time utc|timestamp utc|trade date|trading day|gmt time|day"
    "|local time|unix|unix timestamp|datum|month|日期时间|交易时间|成交时间|时间|交易日期|成交日期|日期|月份"
)
"""What time columns are called, plain (see ``plain``), the likeliest first."""
DATE_AND_TIME = _words("date+time|datum+uhrzeit|datum+zeit|日期+时间|trade date+trade time|交易日期+交易时间")
SERIES = _words(
    "ticker|symbol|ts code|证券代码|股票代码|基金代码|合约代码|代码|stock code|code|instrument|instrument id|isin|cusip"
    "|sedol|ric|permno|unique id|series id|item id|asset id|证券名称|股票名称|证券简称|名称|stock|security|asset|coin"
    "|pair|contract|currency|account|series|name"
)
"""What columns are called that tell series below each other apart, the likeliest first."""
_PERHAPS_SERIES = SERIES[SERIES.index("stock") :]  # these hold a value where they hold numbers
_NOTES = _words("side|direction|note|notes|remark|comment|weekday|方向|买卖方向|备注")  # their words name no series
ADJUSTED = _words("adj close|adjclose|adjusted close")
PRICES = ADJUSTED + _words(
    "close|close last|close price|收盘价|收盘|price|last|last price|最新价|价格"
    "|成交价|settle|结算价|mid|nav|单位净值|净值|schlusskurs|schluss|clôture|cierre|zamkniecie|zamknięcie|終値"
)
PRICE_WORDS = {"close", "price", "last", "nav"}
_VALUES = _words("value|数值|值|amount|金额|rate|汇率|level|成交额")
VALUES = {*PRICES, *_VALUES}  # words in these are a fault
VOLUMES = _words("volume|vol|成交量")
_AMOUNTS = {*VOLUMES, *_words("count|quantity|qty|size|trades|tickvol")}  # scored where nothing else is
BIDS, ASKS = _words("bid|bid price|bid close|买一价"), _words("ask|ask price|ask close|offer|卖一价")
_OTHERS = set(_words("open|high|low|bid|ask|prev|previous|prior|change|pct|id|strike|volume|vol|count|size|limit"))
_IDENTIFIERS = _words("|id|no|index|row|unnamed: 0|序号")


def plain(label: str) -> str:
    """A column's name without case, brackets, units in brackets, and marks between words: 'Close (USD)' is 'close'."""
    text = re.sub(r"\s*[\(\[（【][^\)\]）】]*[\)\]）】]", "", label.strip().strip("<>\"'"))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold()
    return re.sub(r"[_./\-\s]+", " ", text).strip()


def called(wanted: str, labels: Sequence[str]) -> str | None:
    """The label that a user means by ``wanted``: as written, else without case, else plain."""
    forms = (str.strip, lambda text: text.strip().casefold(), plain)
    return next((label for form in forms for label in labels if form(label) == form(wanted) != ""), None)


def first_called(names: Iterable[str], labels: Iterable[str]) -> str | None:
    """The label that is called by the first of ``names``; of several, the first."""
    known = {plain(label): label for label in reversed(list(labels))}
    return next((known[name] for name in names if name in known), None)


def with_word(words: set[str], labels: Iterable[str]) -> str | None:
    """The first label with one of ``words`` in it and none that makes another thing of it, as in 'open price'."""
    parts = ((label, set(plain(label).split())) for label in labels)
    return next((label for label, found in parts if found & words and not found & _OTHERS), None)


def names_rows(label: str) -> bool:
    """Whether a column names rows or series, or holds further times, by its name."""
    name = plain(label)
    return name in (*SERIES, *TIMES, *_IDENTIFIERS) or name.endswith((" id", "代码", " time", " date"))


def other_value(labels: Sequence[str], values: Iterable[str]) -> str | None:
    """A value by its name, else the first of ``values`` that does not name rows; volumes and the like last."""
    candidates = [label for label in values if not names_rows(label)]
    first = (one for one in candidates if not set(plain(one).split()) & _AMOUNTS)
    return first_called(_VALUES, labels) or next(first, next(iter(candidates), None))


def series_column(frame: pl.DataFrame, numeric: Iterable[str], times: Times, name: str) -> str | None:
    """The column that tells series apart: called as one of ``SERIES``, with entries that come again.

    Refuses a table in which the words of another column tell all rows with the same time apart, as series would.
    """
    most = frame.height / 2
    named = [one for one in frame.columns if plain(one) in SERIES and 1 < frame[one].n_unique() <= most]
    named = [one for one in named if not (one in numeric and plain(one) in _PERHAPS_SERIES)]
    label = min(named, key=lambda one: SERIES.index(plain(one)), default=None)
    table = pl.select(time=pl.Series(times), key=frame[label] if label else pl.lit(""))
    words = [one for one in frame.columns if frame[one].dtype == pl.String and plain(one) not in (*SERIES, *_NOTES)]
    words = [one for one in words if one not in numeric and frame[one].n_unique() <= most]
    for other in words if words and table.n_unique() < table.height else []:
        entries = frame[other].fill_null("")
        if table.with_columns(entries.alias("word")).n_unique() == table.height:
            which = f"{other!r} ({', '.join(map(repr, entries.unique(maintain_order=True).head(3)))})"
            how = "if it names the series, give it as the option 'series', else hand in a file with one kind of rows"
            raise InvalidInputError(f"{name}: rows with the same time differ in column {which}; {how}")
    return label
