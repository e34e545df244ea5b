"""The roles of a table's columns by their names: times, the value to score, identifiers, series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import polars as pl

from apps.finance.types import Times
from shared.errors import InvalidInputError


def _split_words(text: str) -> list[str]:
    return text.split("|")


TIMES = _split_words(
    "timestamp|datetime|date time|time|date|dates|ts|open time|time utc|timestamp utc|trade date|trading day|gmt time"
    "|day|local time|unix|unix timestamp|datum|month|日期时间|交易时间|成交时间|时间|交易日期|成交日期|日期|月份"
    "|dly cal dt|dlycaldt|mth cal dt|mthcaldt"
)
"""Normalised names of time columns (see ``normalised_label``), the likeliest first."""
DATE_AND_TIME = _split_words("date+time|datum+uhrzeit|datum+zeit|日期+时间|trade date+trade time|交易日期+交易时间")
SERIES = _split_words(
    "ticker|symbol|ts code|证券代码|股票代码|基金代码|合约代码|代码|stock code|code|instrument|instrument id|isin|cusip"
    "|sedol|ric|permno|perm no|figi|gvkey|permco|security id|sec id|secid|sid|unique id|series id|item id|asset id"
    "|证券名称|股票名称|证券简称|名称|stock|security|asset|coin"
    "|pair|contract|currency|account|series|name"
)
"""Names of columns that identify series below each other, the likeliest first."""
_PERHAPS_SERIES = SERIES[SERIES.index("stock") :]  # if these hold numbers, they are values
_CONTRACTS = _split_words(
    "tenor|term|strike|maturity|expiry|expiration|laufzeit|contract month|delivery month|到期日|行权价"
)
"""Names of columns that distinguish contracts with the same time."""
_NUMBERED = [*_PERHAPS_SERIES, *_CONTRACTS, "id"]  # their numbers may distinguish rows with the same time
_NOTES = _split_words(
    "side|direction|note|notes|remark|comment|weekday|方向|买卖方向|备注"
)  # their words do not name series
ADJUSTED = _split_words("adj close|adjclose|adjusted close")
PRICES = ADJUSTED + _split_words(
    "close|close last|close price|收盘价|收盘|price|last|last price|px last|last px|px|prc|dly prc|dlyprc|mth prc"
    "|mthprc|trdprc 1|最新价|价格|成交价|settle|结算价|mid|nav|单位净值|净值|schlusskurs|schluss|clôture|cierre"
    "|zamkniecie|zamknięcie|終値"
)
PRICE_WORDS = {"close", "price", "last", "nav", "px"}
_VALUES = _split_words("value|数值|值|amount|金额|rate|汇率|level|成交额")
VALUES = {*PRICES, *_VALUES}  # words in these columns are a fault
VOLUMES = _split_words("volume|vol|dly vol|dlyvol|mth vol|mthvol|成交量")
_CHANGES = _split_words("change|chg|pct")
_AMOUNTS = {*VOLUMES, *_CHANGES, *_split_words("count|quantity|qty|size|shares|trades|tickvol")}
"""Words in the names of columns that are scored only if there is nothing else."""
BIDS = _split_words("bid|bid price|bid px|bid close|best bid|best bid price|买一价")
ASKS = _split_words("ask|ask price|ask px|ask close|best ask|best ask price|offer|offer price|卖一价")
_MODIFIERS = {*_AMOUNTS, *_CONTRACTS} | set(_split_words("open|high|low|bid|ask|offer|prev|previous|prior|id|limit"))
_MODIFIERS |= set(_split_words("time|date|timestamp|updated|update|ratio|earnings|book|dividend|return"))
_IDENTIFIERS = _split_words("|id|no|index|row|unnamed: 0|序号")


@lru_cache(maxsize=4096)
def normalised_label(label: str) -> str:
    """A column's name without case, brackets, bracketed units and separators: 'Close (USD)' becomes 'close'."""
    text = re.sub(r"\s*[\(\[（【][^\)\]）】]*[\)\]）】]", "", label.strip().strip("<>\"'*†"))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold()
    return re.sub(r"[_./\-\s]+", " ", text).strip()


def matching_label(wanted: str, labels: Sequence[str]) -> str | None:
    """The label that matches ``wanted``: exactly, else without case, else normalised; None if there is none."""
    forms = (str.strip, lambda text: text.strip().casefold(), normalised_label)
    return next((label for form in forms for label in labels if form(label) == form(wanted) != ""), None)


def first_matching_label(names: Iterable[str], labels: Iterable[str]) -> str | None:
    """The label that matches the earliest of ``names``; if several do, the first label."""
    known = {normalised_label(label): label for label in reversed(list(labels))}
    return next((known[name] for name in names if name in known), None)


def label_with_word(words: set[str], labels: Iterable[str]) -> str | None:
    """The first label that contains one of ``words`` and no word that changes its meaning, as in 'open price'."""
    parts = ((label, _words_in(label)) for label in labels)
    return next(
        (
            label
            for label, words_of_label in parts
            if words_of_label & words and not (words_of_label - words) & _MODIFIERS
        ),
        None,
    )


def _words_in(label: str) -> set[str]:
    return set(re.split(r"[ %]+", normalised_label(label)))


def is_identifier(label: str) -> bool:
    """Whether a column, by its name, identifies rows, series or contracts, or holds further times."""
    name = normalised_label(label)
    endings = (" id", "代码", " time", " date", " timestamp", " updated", " updated at", " update", " tenor", " expiry")
    return name in (*SERIES, *TIMES, *_CONTRACTS, *_IDENTIFIERS) or name.endswith(endings)


def is_quantity(label: str) -> bool:
    """Whether a column holds volumes, counts or changes, by its name."""
    return bool(_words_in(label) & _AMOUNTS)


def fallback_value_label(labels: Sequence[str]) -> str | None:
    """A value column by its name, else the first label that is not an identifier; volumes and the like last."""
    candidates = [label for label in labels if not is_identifier(label)]
    first = (label for label in candidates if not is_quantity(label))
    return first_matching_label(_VALUES, labels) or next(first, next(iter(candidates), None))


def series_column(frame: pl.DataFrame, numeric: Iterable[str], times: Times, name: str) -> str | None:
    """The column that identifies the series: named as one of ``SERIES``, with repeating entries; None if there is none.

    Raises InvalidInputError if another column distinguishes all rows with the same time, as series names would: a text
    column, a numeric column whose name suggests series or contracts, or all of these together if one identifies
    contracts.
    """
    candidates = [column for column in frame.columns if normalised_label(column) in SERIES and _repeats(frame[column])]
    candidates = [
        column for column in candidates if not (column in numeric and normalised_label(column) in _PERHAPS_SERIES)
    ]
    label = min(candidates, key=lambda column: SERIES.index(normalised_label(column)), default=None)
    table = pl.select(time=pl.Series(times), key=frame[label] if label else pl.lit(""))
    if table.n_unique() == table.height:
        return label
    texts = [
        column
        for column in frame.columns
        if frame[column].dtype == pl.String and normalised_label(column) not in (*SERIES, *_NOTES)
    ]
    keys = [column for column in texts if column not in numeric and _repeats(frame[column])]
    numbers = [
        column
        for column in numeric
        if normalised_label(column) in _NUMBERED or normalised_label(column).endswith(" id")
    ]
    keys += [column for column in numbers if column != label and _repeats(frame[column])]
    together = [keys] if len(keys) > 1 and any(normalised_label(column) in _CONTRACTS for column in keys) else []
    for columns in [*([column] for column in keys), *together]:
        entries = frame.select(pl.col(columns).cast(pl.String).fill_null(""))
        if pl.concat([table, entries.rename(lambda column: f" {column}")], how="horizontal").n_unique() == table.height:
            shown = entries.unique(maintain_order=True).head(3).rows()
            differing = f"{' and '.join(map(repr, columns))} ({', '.join(repr(' '.join(row)) for row in shown)})"
            together_with = [*([label] if label and label not in columns else []), *columns]
            option = "it as the option 'series'" if len(together_with) < 2 else f"series={'+'.join(together_with)}"
            remedy = f"if it names the series, give {option}, else use a file with one kind of row"
            raise InvalidInputError(f"{name}: rows with the same time differ in column {differing}; {remedy}")
    return label


def _repeats(cells: pl.Series) -> bool:
    """Whether a column has several distinct entries that repeat, as series names do."""
    return 1 < cells.n_unique() <= len(cells) / 2


def with_joined_names(frame: pl.DataFrame, wanted: str, name: str) -> tuple[pl.DataFrame, list[str]]:
    """The table with a column of names that several columns give together, and those columns: for ``exchange+symbol``
    the names are as NYSE+ABC.

    Unchanged if ``wanted`` is a column of its own, or if it does not name several columns of the table. Raises
    InvalidInputError if different series would have the same name.
    """
    parts = [matching_label(part, frame.columns) for part in wanted.split("+")]
    labels = [label for label in parts if label is not None]
    if matching_label(wanted, frame.columns) is not None or len(parts) < 2 or len(labels) < len(parts):
        return frame, []
    texts = frame.select(pl.col(label).cast(pl.String).fill_null("(no name)") for label in labels)
    names = texts.select(pl.concat_str(pl.all(), separator="+").alias(wanted)).to_series()
    if names.n_unique() < texts.n_unique():
        raise InvalidInputError(
            f"{name}: the columns {' and '.join(map(repr, labels))} give different series the same name, because their "
            "entries contain a '+'; write another character there"
        )
    return frame.with_columns(names), labels
