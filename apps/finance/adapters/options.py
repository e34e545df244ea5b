"""What the user can say of a table, the same by every interface. What is not said is guessed; notes show the guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shared.errors import InvalidInputError

UNITS = ("s", "ms", "us", "ns", "days", "excel", "day-first", "month-first")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """Columns by their names, and how times and numbers are written; None where the table shall tell.

    ``time``, ``value`` and ``series`` are the columns of times (two are DATE+TIME), of the value that is scored, and of
    the names of series; without a header columns are called 1, 2, 3. ``zone`` (IANA) is of times that have none, UTC
    otherwise; ``decimal`` is the decimal mark; ``unit`` says how times are written: since 1970, by Excel, or in which
    order 01/02/2024 is. ``labels`` is the column that marks anomalous rows, where a data set has one;
    ``covariates`` are columns that a network takes beside the value: those of words are kept as well, whatever their
    names. ``series_if_there`` is the column of names of series in the table that a network was trained on, which a file
    of one series may lack; ``value_if_there`` that of the value, which a file may call otherwise.
    """

    time: str | None = None
    value: str | None = None
    series: str | None = None
    zone: str | None = None
    decimal: str | None = None
    unit: str | None = None
    labels: str | None = None
    covariates: tuple[str, ...] = ()
    series_if_there: str | None = None
    value_if_there: str | None = None

    def __post_init__(self) -> None:
        if self.decimal not in (None, ".", ","):
            raise InvalidInputError(f"the option decimal is {self.decimal!r}; give '.' or ','")
        if self.unit not in (None, *UNITS):
            raise InvalidInputError(f"the option unit is {self.unit!r}; give one of {', '.join(UNITS)}")
        try:
            ZoneInfo(self.zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InvalidInputError(
                f"the option zone is {self.zone!r}, which is no time zone; try Asia/Tokyo"
            ) from error


NOTHING_SAID = TableOptions()
_NOT_OF_REQUESTS = ("labels", "covariates", "series_if_there", "value_if_there")
OPTION_NAMES = tuple(field.name for field in fields(TableOptions) if field.name not in _NOT_OF_REQUESTS)
"""What a request may say; labels are a data set's, and covariates a data set's or a network's."""


def table_options(options: Mapping[str, str]) -> TableOptions:
    """The options among ``options`` that say something of the table; an empty text says nothing."""
    said: dict[str, Any] = {name: options[name].strip() for name in OPTION_NAMES if options.get(name, "").strip()}
    return replace(NOTHING_SAID, **said)
