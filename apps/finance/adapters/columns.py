"""What the columns of a table are, by their names and numbers: times, the value that is meant, identifiers, series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from apps.finance.types import Floats


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split("|"))


TIMES = _words(
    "timestamp|time stamp|datetime|date time|time|date|ts|open time|time utc|utc|timestamp utc|trade date|trading date"
    "|trading day|observation date|quote date|price date|gmt time|local time|unix|unixtime|unix timestamp|epoch|dt|day"
    "|datum|zeit|fecha|period|month|year|日期时间|成交日期|发生日期|交易时间|成交时间|时间|交易日期|交易日|日期|月份|年份"
)
"""What time columns are called, plain (see ``plain``), the likeliest first."""
SERIES = _words(
    "ticker|symbol|ts code|证券代码|股票代码|基金代码|合约代码|代码|stock code|stock|code|instrument|secid|security"
    "|isin|cusip|sedol|ric|permno|asset|coin|pair|contract|currency|account|unique id|series|series id|item id|asset id"
    "|instrument id|id stock|证券简称|证券名称|股票名称|名称|security name|stock name|name"
)
"""What columns are called that tell series below each other apart, plain, the likeliest first."""
PERHAPS_SERIES = set(_words("stock|security|asset|coin|pair|contract|currency|account|series|name"))
"""Those of them that may be called so and hold a value, where they hold numbers."""
NO_SERIES = set(
    _words("side|direction|buy sell|b s|bs|note|notes|remark|comment|weekday|day of week|方向|买卖|买卖方向|性质|备注")
)
"""Columns of words that never do."""
OF_A_TRADE = set(
    _words(
        "exchange|venue|market|ex|condition|conditions|cond|sale condition|tape|status|flag|flags|session|成交类型|状态"
        "|市场|交易所"
    )
)
"""Columns of words that say of a trade where and how it was, and may differ between trades at the same time."""
_PRICES = _words(
    "close|close last|close price|closing price|收盘价|收盘|adj close|adjusted close|price|last|last price|px last"
    "|最新价|价格|现价|成交价|成交价格|成交均价|settle|settlement|settlement price|结算价|mid|mid price|midprice|nav"
    "|net asset value|单位净值|净值|kurs|schlusskurs|schluss|cours|dernier|clôture|cloture|fermeture|cierre|ultimo"
    "|último|fechamento|chiusura|zamknięcie|zamkniecie|kapanış|закрытие|終値|종가|收市价"
)
_VALUES = _words(
    "value|val|y|wert|valeur|valor|数值|值|amount|金额|rate|yield|利率|汇率|level|return|returns|pnl|balance|spread"
    "|成交额|成交金额|发生金额"
)
_AMOUNTS = set(_words("volume|vol|count|quantity|qty|size|trades|成交量|成交数量|wolumen|volumen|stücke|umsatz"))
"""How much there was of something; what is meant only where no other column of numbers is."""
_BIDS = _words("bid|bid price|best bid|bid1|bid close|bid px|买一价|买入价|买价")
_ASKS = _words("ask|ask price|best ask|ask1|ask close|ask px|卖一价|卖出价|卖价|offer|offer price|best offer|ofr")
_PRICE_WORDS = set(_words("close|price|last|settle|nav|mid|收盘|收盘价|净值"))
_VALUE_WORDS = set(_words("value|amount|rate|yield"))
_OTHER_WORDS = set(
    _words(
        "open|high|low|bid|ask|offer|prev|previous|pre|prior|change|chg|pct|id|strike|volume|vol|time|date|timestamp"
        "|count|size|qty|limit|target|diff|traded"
    )
)
_IDENTIFIERS = set(
    _words("|id|ids|no|nr|num|number|index|idx|row|rows|rownum|row id|seq|sequence|key|#|n|level 0|序号|编号|行号")
)
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
    text = re.sub(r"[_./\-\s]+", " ", text).strip()
    return re.sub(r"^\d+ (?=\D)", "", text)


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


def with_time_word(labels: Iterable[str]) -> str | None:
    """The first label with a word for a time in it, such as 'valuation date' or 委托日期."""
    for label in labels:
        name = plain(label)
        if {"date", "time", "timestamp", "datetime"} & set(name.split()) or "日期" in name or "时间" in name:
            return label
    return None


def value_column(labels: Iterable[str]) -> str | None:
    """The label that by its name holds the value that is meant: a price before bid and ask before other values.

    None where bid and ask (see ``bid_and_ask``) are there and no price is.
    """
    labels = list(labels)
    price = first_called(_PRICES, labels) or _with_word(_PRICE_WORDS, labels)
    if price is not None or bid_and_ask(labels) is not None:
        return price
    return first_called(_VALUES, labels) or _with_word(_VALUE_WORDS, labels)


def is_value(label: str) -> bool:
    """Whether a column is called as a price or a value is, so that words in it are a fault."""
    return plain(label) in _PRICES or plain(label) in ("value", "amount", "金额", "数值")


def bid_and_ask(labels: Iterable[str]) -> tuple[str, str] | None:
    """The labels of the bid and the ask, if both are there and no price is."""
    labels = list(labels)
    bid, ask = first_called(_BIDS, labels), first_called(_ASKS, labels)
    if bid is None or ask is None or first_called(_PRICES, labels) or _with_word(_PRICE_WORDS, labels):
        return None
    return bid, ask


def _with_word(words: set[str], labels: Iterable[str]) -> str | None:
    for label in labels:
        parts = set(plain(label).split())
        if parts & words and not parts & _OTHER_WORDS:
            return label
    return None


def names_rows(label: str, numbers: Floats) -> bool:
    """Whether a column of numbers names rows or series by its name (and, of a mere number, has no entry twice)."""
    name = plain(label)
    if name in SERIES or name in TIMES or name == "id" or name.endswith((" id", "代码")):
        return True
    seen = numbers[np.isfinite(numbers)]
    if name.endswith((" time", " timestamp", " date")) and len(seen) and float(seen.min()) > 1e7:
        return True
    numbered = name in _IDENTIFIERS or name.startswith("unnamed")
    return numbered and bool((seen == np.floor(seen)).all()) and len(np.unique(seen)) == len(seen)


def first_value(values: Mapping[str, Floats]) -> str | None:
    """The first column that neither names nor counts rows; one that never changes only where there is no other."""
    candidates = [label for label, numbers in values.items() if not names_rows(label, numbers)]
    candidates = [label for label in candidates if not _counts_rows(values[label])] or candidates
    candidates = [label for label in candidates if not set(plain(label).split()) & _AMOUNTS] or candidates
    changing = [label for label in candidates if np.nanmin(values[label]) < np.nanmax(values[label])]
    return next(iter(changing or candidates), None)


def _counts_rows(numbers: Floats) -> bool:
    """Whether a column goes up or down by one with each row."""
    steps = np.diff(numbers)
    return len(steps) > 1 and bool((np.abs(steps) == 1).all() and (steps == steps[0]).all())
