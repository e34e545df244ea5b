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
    "timestamp|datetime|date time|time|date|dates|ts|open time|time utc|timestamp utc|trade date|trading day|gmt time"
    "|day|local time|unix|unix timestamp|datum|month|日期时间|交易时间|成交时间|时间|交易日期|成交日期|日期|月份"
)
"""What time columns are called, plain (see ``plain``), the likeliest first."""
DATE_AND_TIME = _words("date+time|datum+uhrzeit|datum+zeit|日期+时间|trade date+trade time|交易日期+交易时间")
SERIES = _words(
    "ticker|symbol|ts code|证券代码|股票代码|基金代码|合约代码|代码|stock code|code|instrument|instrument id|isin|cusip"
    "|sedol|ric|permno|perm no|figi|gvkey|permco|security id|sec id|secid|sid|unique id|series id|item id|asset id"
    "|证券名称|股票名称|证券简称|名称|stock|security|asset|coin"
    "|pair|contract|currency|account|series|name"
)
"""What columns are called that tell series below each other apart, the likeliest first."""
_PERHAPS_SERIES = SERIES[SERIES.index("stock") :]  # these hold a value where they hold numbers
_CONTRACTS = _words("tenor|term|strike|maturity|expiry|expiration|laufzeit|contract month|delivery month|到期日|行权价")
"""What columns are called that tell contracts with the same time apart."""
_NUMBERED = [*_PERHAPS_SERIES, *_CONTRACTS, "id"]  # their numbers may tell rows with the same time apart
_NOTES = _words("side|direction|note|notes|remark|comment|weekday|方向|买卖方向|备注")  # their words name no series
ADJUSTED = _words("adj close|adjclose|adjusted close")
PRICES = ADJUSTED + _words(
    "close|close last|close price|收盘价|收盘|price|last|last price|px last|last px|px|prc|最新价|价格"
    "|成交价|settle|结算价|mid|nav|单位净值|净值|schlusskurs|schluss|clôture|cierre|zamkniecie|zamknięcie|終値"
)
PRICE_WORDS = {"close", "price", "last", "nav", "px"}
_VALUES = _words("value|数值|值|amount|金额|rate|汇率|level|成交额")
VALUES = {*PRICES, *_VALUES}  # words in these are a fault
VOLUMES = _words("volume|vol|成交量")
_CHANGES = _words("change|chg|pct")
_AMOUNTS = {*VOLUMES, *_CHANGES, *_words("count|quantity|qty|size|shares|trades|tickvol")}
"""Words of what is scored where nothing else is."""
BIDS = _words("bid|bid price|bid px|bid close|best bid|买一价")
ASKS = _words("ask|ask price|ask px|ask close|best ask|offer|offer price|卖一价")
_OTHERS = {*_AMOUNTS, *_CONTRACTS} | set(_words("open|high|low|bid|ask|offer|prev|previous|prior|id|limit"))
_OTHERS |= set(_words("time|date|timestamp|updated|update|ratio|earnings|book|dividend|return"))
_IDENTIFIERS = _words("|id|no|index|row|unnamed: 0|序号")


def plain(label: str) -> str:
    """A column's name without case, brackets, units in brackets, and marks between words: 'Close (USD)' is 'close'."""
    text = re.sub(r"\s*[\(\[（【][^\)\]）】]*[\)\]）】]", "", label.strip().strip("<>\"'*†"))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold()
    return re.sub(r"[_./\-\s]+", " ", text).strip()


def matching_label(wanted: str, labels: Sequence[str]) -> str | None:
    """The label that a user means by ``wanted``: as written, else without case, else plain."""
    forms = (str.strip, lambda text: text.strip().casefold(), plain)
    return next((label for form in forms for label in labels if form(label) == form(wanted) != ""), None)


def first_matching_label(names: Iterable[str], labels: Iterable[str]) -> str | None:
    """The label that is called by the first of ``names``; of several, the first."""
    known = {plain(label): label for label in reversed(list(labels))}
    return next((known[name] for name in names if name in known), None)


def with_word(words: set[str], labels: Iterable[str]) -> str | None:
    """The first label with one of ``words`` in it and none that makes another thing of it, as in 'open price'."""
    parts = ((label, _parts(label)) for label in labels)
    return next((label for label, found in parts if found & words and not (found - words) & _OTHERS), None)


def _parts(label: str) -> set[str]:
    return set(re.split(r"[ %]+", plain(label)))


def names_rows(label: str) -> bool:
    """Whether a column names rows, series or contracts, or holds further times, by its name."""
    name = plain(label)
    ends = (" id", "代码", " time", " date", " timestamp", " updated", " updated at", " update", " tenor", " expiry")
    return name in (*SERIES, *TIMES, *_CONTRACTS, *_IDENTIFIERS) or name.endswith(ends)


def is_quantity(label: str) -> bool:
    """Whether a column is one of volumes, counts or changes, by its name."""
    return bool(_parts(label) & _AMOUNTS)


def other_value(labels: Sequence[str]) -> str | None:
    """A value by its name, else the first of ``labels`` that does not name rows; volumes and the like last."""
    candidates = [label for label in labels if not names_rows(label)]
    first = (one for one in candidates if not is_quantity(one))
    return first_matching_label(_VALUES, labels) or next(first, next(iter(candidates), None))


def series_column(frame: pl.DataFrame, numeric: Iterable[str], times: Times, name: str) -> str | None:
    """The column that tells series apart: called as one of ``SERIES``, with entries that come again.

    Refuses a table in which another column tells all rows with the same time apart, as series would: one of words, or
    one of numbers that by its name may number series or contracts; so may all of them together where one says which
    contract it is.
    """
    named = [one for one in frame.columns if plain(one) in SERIES and _repeats(frame[one])]
    named = [one for one in named if not (one in numeric and plain(one) in _PERHAPS_SERIES)]
    label = min(named, key=lambda one: SERIES.index(plain(one)), default=None)
    table = pl.select(time=pl.Series(times), key=frame[label] if label else pl.lit(""))
    if table.n_unique() == table.height:
        return label
    others = [one for one in frame.columns if frame[one].dtype == pl.String and plain(one) not in (*SERIES, *_NOTES)]
    words = [one for one in others if one not in numeric and _repeats(frame[one])]
    numbers = [one for one in numeric if plain(one) in _NUMBERED or plain(one).endswith(" id")]
    words += [one for one in numbers if one != label and _repeats(frame[one])]
    together = [words] if len(words) > 1 and any(plain(one) in _CONTRACTS for one in words) else []
    for others in [*([one] for one in words), *together]:
        entries = frame.select(pl.col(others).cast(pl.String).fill_null(""))
        if pl.concat([table, entries.rename(lambda one: f" {one}")], how="horizontal").n_unique() == table.height:
            shown = entries.unique(maintain_order=True).head(3).rows()
            which = f"{' and '.join(map(repr, others))} ({', '.join(repr(' '.join(row)) for row in shown)})"
            how = "if it names the series, give it as the option 'series', else hand in a file with one kind of rows"
            raise InvalidInputError(f"{name}: rows with the same time differ in column {which}; {how}")
    return label


def _repeats(cells: pl.Series) -> bool:
    """Whether a column has several entries that come again, as names of series do."""
    return 1 < cells.n_unique() <= len(cells) / 2
