"""What the columns of a table are, by their names: times, the value that is meant, identifiers, series."""

from __future__ import annotations

import re
from collections.abc import Iterable


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split("|"))


TIMES = _words(
    "timestamp|datetime|date time|time|date|ts|open time|time utc|timestamp utc|trade date|trading day|gmt time"
    "|local time|unix|unix timestamp|day|datum|month|日期时间|交易时间|成交时间|时间|交易日期|成交日期|日期|月份"
)
"""What time columns are called, plain (see ``plain``), the likeliest first."""
SERIES = _words(
    "ticker|symbol|ts code|证券代码|股票代码|基金代码|合约代码|代码|stock code|code|instrument|instrument id|isin|cusip"
    "|sedol|ric|permno|unique id|series id|item id|asset id|证券名称|股票名称|证券简称|名称|stock|security|asset|coin"
    "|pair|contract|currency|account|series|name"
)
"""What columns are called that tell series below each other apart, plain, the likeliest first."""
PERHAPS_SERIES = SERIES[SERIES.index("stock") :]
"""Those of them that hold a value where they hold numbers."""
NOTES = _words("side|direction|note|notes|remark|comment|weekday|方向|买卖方向|备注")
"""Columns of words that never do."""
OF_A_TRADE = _words("exchange|venue|market|condition|conditions|flag|flags|status|session|成交类型|状态|交易所")
"""Columns of words that may differ between trades at the same time."""
_PRICES = _words(
    "close|close last|close price|收盘价|收盘|adj close|price|last|last price|最新价|价格|成交价|settle|结算价|mid|nav"
    "|单位净值|净值|schlusskurs|schluss|clôture|cierre|fechamento|chiusura|zamknięcie|終値"
)
_VALUES = _words("value|数值|值|amount|金额|rate|汇率|level|成交额")
_AMOUNTS = set(_words("volume|vol|count|quantity|qty|size|trades|tickvol|成交量"))
"""How much there was of something; what is meant only where no other column of numbers is."""
_BIDS, _ASKS = _words("bid|bid price|bid close|买一价"), _words("ask|ask price|ask close|offer|卖一价")
_OTHER_WORDS = set(
    _words(
        "open|high|low|bid|ask|prev|previous|prior|change|pct|id|strike|volume|vol|time|date|count|size|limit|target"
    )
)
_IDENTIFIERS = set(_words("|id|no|index|row|unnamed: 0|序号"))
CHINESE = dict(
    pair.split("=")
    for pair in _words(
        "开盘=open|开盘价=open|最高=high|最高价=high|最低=low|最低价=low|收盘=close|收盘价=close|成交量=volume"
    )
)
"""What bars are called in Chinese, so that columns may be named in English."""


def plain(label: str) -> str:
    """A column's name without case, brackets, units in brackets, and marks between words: 'Close (USD)' is 'close'."""
    text = re.sub(r"\s*[\(\[（【][^\)\]）】]*[\)\]）】]", "", label.strip().strip("<>\"'"))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold()
    return re.sub(r"[_./\-\s]+", " ", text).strip()


def called(wanted: str, labels: Iterable[str]) -> str | None:
    """The label that a user means by ``wanted``: as written, else without case, else plain, else in English."""
    labels = list(reversed(list(labels)))
    english = {CHINESE.get(plain(label), ""): label for label in labels}
    found = {**english, **{plain(label): label for label in labels}, **{one.strip().casefold(): one for one in labels}}
    return found.get(wanted.strip().casefold()) if wanted.strip() else None


def first_called(names: Iterable[str], labels: Iterable[str]) -> str | None:
    """The label that is called by the first of ``names``; of several, the first."""
    known = {plain(label): label for label in reversed(list(labels))}
    return next((known[name] for name in names if name in known), None)


def with_word(words: Iterable[str], labels: Iterable[str], but: Iterable[str] = ()) -> str | None:
    """The first label with one of ``words`` in it and none of ``but``."""
    parts = {label: set(plain(label).split()) for label in labels}
    return next((label for label, found in parts.items() if found & set(words) and not found & set(but)), None)


def value_column(labels: Iterable[str]) -> str | None:
    """The label that by its name holds the value that is meant: a price before bid and ask before other values.

    None where bid and ask (see ``bid_and_ask``) are there and no price is.
    """
    labels = list(labels)
    price = first_called(_PRICES, labels) or with_word(("close", "price", "last", "nav"), labels, _OTHER_WORDS)
    if price is not None or bid_and_ask(labels) is not None:
        return price
    return first_called(_VALUES, labels) or with_word(("value", "amount", "rate"), labels, _OTHER_WORDS)


def is_value(label: str) -> bool:
    """Whether a column is called as a price or a value is, so that words in it are a fault."""
    return plain(label) in _PRICES or plain(label) in _VALUES[:5]


def bid_and_ask(labels: Iterable[str]) -> tuple[str, str] | None:
    """The labels of the bid and the ask, if both are there and no price is."""
    labels = list(labels)
    bid, ask = first_called(_BIDS, labels), first_called(_ASKS, labels)
    return None if bid is None or ask is None or first_called(_PRICES, labels) else (bid, ask)


def names_rows(label: str) -> bool:
    """Whether a column names rows or series, or holds further times, by its name."""
    name = plain(label)
    return name in SERIES or name in TIMES or name in _IDENTIFIERS or name.endswith((" id", "代码", " time", " date"))


def first_value(labels: Iterable[str]) -> str | None:
    """The first column that does not name rows; one that counts how much there was only where there is no other."""
    candidates = [label for label in labels if not names_rows(label)]
    return next((one for one in candidates if not set(plain(one).split()) & _AMOUNTS), next(iter(candidates), None))
