"""Dates and times of day in columns of their own, made one: Date and Time, year and month and day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.finance.adapters.columns import plain

if TYPE_CHECKING:
    import polars

_PAIRS = (
    ("date", "time"),
    ("日期", "时间"),
    ("day", "time"),
    ("trade date", "trade time"),
    ("datum", "zeit"),
    ("交易日期", "交易时间"),
    ("成交日期", "成交时间"),
    ("trading day", "update time"),
)


def join_parts(frame: polars.DataFrame) -> polars.DataFrame:
    """A table whose date and time of day are columns of their own, with them made one; any other as it is."""
    import polars as pl

    labels = {plain(label): label for label in reversed(frame.columns)}
    for day, clock in _PAIRS:
        if day not in labels or clock not in labels:
            continue
        date, time = frame[labels[day]], frame[labels[clock]]
        if time.dtype == pl.Time and (date.dtype == pl.Date or isinstance(date.dtype, pl.Datetime)):
            joined = frame.select(pl.col(date.name).cast(pl.Date).dt.combine(pl.col(time.name))).to_series()
        else:
            clocked = _clock(time)
            if clocked is None or not (date.dtype == pl.String or date.dtype == pl.Date or date.dtype.is_integer()):
                continue
            joined = date.cast(pl.String).str.strip_chars().str.replace(r"[ T]00:00(:00(\.0+)?)?$", "") + " " + clocked
        thousandths = labels.get("update millisec")  # futures in China have two quotes a second
        if thousandths is not None and joined.dtype == pl.String:
            joined = joined + "." + frame[thousandths].cast(pl.String).str.strip_chars().str.zfill(3)
        return frame.drop(date.name, time.name).insert_column(0, joined.alias("date time"))
    if "year" in labels and "month" in labels and not {"date", "timestamp", "time", "datetime"} & labels.keys():
        parts = [labels[part] for part in ("year", "month", "day") if part in labels]
        text = [frame[label].cast(pl.Int64, strict=False).cast(pl.String).str.zfill(2) for label in parts]
        if not any(one.null_count() for one in text):
            ones = text[2] if len(text) > 2 else pl.repeat("01", frame.height, eager=True)
            joined = (text[0] + "-" + text[1] + "-" + ones).alias("date")
            return frame.drop(parts).insert_column(0, joined)
    return frame


def _clock(time: polars.Series) -> polars.Series | None:
    """Times of day as 09:30:00, from text with colons or from numbers such as 930 and 93000; None for anything else."""
    import polars as pl

    if time.dtype == pl.Time:
        return time.cast(pl.String)
    if time.dtype != pl.String and not time.dtype.is_integer():
        return None
    text = time.cast(pl.String).fill_null("").str.strip_chars()
    filled = text.filter(text != "")
    if len(filled) == 0:
        return None
    if bool(filled.str.contains(r"^\d{1,2}:\d\d").all()):
        return text
    if not bool(filled.str.contains(r"^\d{1,6}$").all()):
        return None
    # 93000 is 09:30:00 and 930 is 09:30; six digits in one row make them seconds in all.
    width = 6 if bool((filled.str.len_chars() > 4).any()) else 4
    padded = text.str.zfill(width)
    pattern, colons = (r"^(\d\d)(\d\d)(\d\d)$", "${1}:${2}:${3}") if width == 6 else (r"^(\d\d)(\d\d)$", "${1}:${2}")
    return padded.str.replace(pattern, colons)
