"""Dates and times of day in columns of their own, made one: Date and Time, year and month and day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.finance.adapters.columns import plain

if TYPE_CHECKING:
    import polars

_PAIRS = [
    *(("date", "time"), ("日期", "时间"), ("day", "time"), ("trade date", "trade time"), ("datum", "zeit")),
    *(("交易日期", "交易时间"), ("成交日期", "成交时间"), ("trading day", "update time")),
]


def join_parts(frame: polars.DataFrame) -> polars.DataFrame:
    """A table whose date and time of day are columns of their own, with them made one; any other as it is."""
    import polars as pl

    labels = {plain(label): label for label in reversed(frame.columns)}
    for day, clock in _PAIRS:
        if day not in labels or clock not in labels or (clocked := _clock(frame[labels[clock]])) is None:
            continue
        date = frame[labels[day]]
        if isinstance(date.dtype, pl.Datetime):
            date = date.cast(pl.Date)
        if not (date.dtype in (pl.String, pl.Date) or date.dtype.is_integer()):
            continue
        bare = date.cast(pl.String).str.strip_chars().str.replace(r"[ T]00:00(:00(\.0+)?)?$", "")
        joined = bare + " " + clocked
        if "update millisec" in labels:  # futures in China have two quotes a second
            joined = joined + "." + frame[labels["update millisec"]].cast(pl.String).str.strip_chars().str.zfill(3)
        return frame.drop(labels[day], labels[clock]).insert_column(0, joined.alias("date time"))
    if "year" in labels and "month" in labels and not {"date", "timestamp", "time", "datetime"} & labels.keys():
        parts = [labels[part] for part in ("year", "month", "day") if part in labels]
        text = [frame[label].cast(pl.Int64, strict=False).cast(pl.String).str.zfill(2) for label in parts]
        if not any(one.null_count() for one in text):
            text = [*text, pl.repeat("01", frame.height, eager=True)][:3]
            joined = (text[0] + "-" + text[1] + "-" + text[2]).alias("date")
            return frame.drop(parts).insert_column(0, joined)
    return frame


def _clock(time: polars.Series) -> polars.Series | None:
    """Times of day as 09:30:00, from text with colons or from numbers such as 930 and 93000; None for anything else."""
    import polars as pl

    if time.dtype != pl.Time and time.dtype != pl.String and not time.dtype.is_integer():
        return None
    text = time.cast(pl.String).fill_null("").str.strip_chars()
    filled = text.filter(text != "")
    if len(filled) and bool(filled.str.contains(r"^\d{1,2}:\d\d").all()):
        return text
    if not len(filled) or not bool(filled.str.contains(r"^\d{1,6}$").all()):
        return None
    # 93000 is 09:30:00 and 930 is 09:30; six digits in one row make them seconds in all.
    long = bool((filled.str.len_chars() > 4).any())
    return (
        text.str.zfill(6 if long else 4).str.replace(r"^(\d\d)(\d\d)(\d\d)?$", "${1}:${2}:${3}").str.strip_suffix(":")
    )
