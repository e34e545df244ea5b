"""Options for reading a table, the same in every interface. Missing options are guessed; notes show the guesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shared.errors import InvalidInputError

UNITS = ("s", "ms", "us", "ns", "days", "excel", "day-first", "month-first")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """Column names, and how times and numbers are written; None means that it is determined from the table.

    ``time``, ``value`` and ``series`` are the columns of times (DATE+TIME for two columns), of the value to score, and
    of the series' names (EXCHANGE+SYMBOL for several columns that name a series together); without a header the columns
    are called 1, 2, 3. ``zone`` (IANA) applies to times that state none; the default is UTC. ``decimal`` is the decimal
    mark. ``unit`` says how times are written: a count since 1970, Excel's day numbers, or the order of day and month in
    01/02/2024. ``labels`` is the column that marks anomalous rows, if a data set has one. ``covariates`` are columns
    that a network takes in addition to the value; text columns among them are kept whatever their names.
    ``series_if_present`` is the column of series names in the table that a network was trained on, which a file of one
    series may lack; ``value_if_present`` is that table's value column, which a file may name differently.

    Raises InvalidInputError for an unknown decimal mark, unit or zone.
    """

    time: str | None = None
    value: str | None = None
    series: str | None = None
    zone: str | None = None
    decimal: str | None = None
    unit: str | None = None
    labels: str | None = None
    covariates: tuple[str, ...] = ()
    series_if_present: str | None = None
    value_if_present: str | None = None

    def __post_init__(self) -> None:
        if self.decimal not in (None, ".", ","):
            raise InvalidInputError(f"the option decimal is {self.decimal!r}; give '.' or ','")
        if self.unit not in (None, *UNITS):
            raise InvalidInputError(f"the option unit is {self.unit!r}; give one of {', '.join(UNITS)}")
        try:
            ZoneInfo(self.zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InvalidInputError(
                f"the option zone is {self.zone!r}, which is not an IANA time zone; give one such as Asia/Tokyo"
            ) from error


DEFAULT_OPTIONS = TableOptions()
_INTERNAL_OPTIONS = ("labels", "covariates", "series_if_present", "value_if_present")
OPTION_NAMES = tuple(field.name for field in fields(TableOptions) if field.name not in _INTERNAL_OPTIONS)
"""The options that a request may have; labels belong to a data set, covariates to a data set or a network."""


def table_options(options: Mapping[str, str]) -> TableOptions:
    """The reading options among ``options``; an empty text counts as missing."""
    given: dict[str, Any] = {name: options[name].strip() for name in OPTION_NAMES if options.get(name, "").strip()}
    return replace(DEFAULT_OPTIONS, **given)
