"""What the user can say of a table, the same by every interface. What is not said is guessed; notes show the guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shared.errors import InvalidInputError

UNITS = ("s", "ms", "us", "ns", "days", "excel", "day-first", "month-first")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """Columns by their names, and how times and numbers are written; None where the table shall tell.

    ``time``, ``value`` and ``series`` are the columns of the times, of the value that is judged, and of the names of
    several series below each other. ``zone`` is the time zone of times that have none (an IANA name; UTC otherwise).
    ``decimal`` is the decimal mark, a point or a comma. ``unit`` says how times are written: ``s``, ``ms``, ``us``,
    ``ns`` or ``days`` since 1970, ``excel`` for Excel's days, ``day-first`` or ``month-first`` for dates such as
    01/02/2024. ``labels`` is the column that marks anomalous rows, where a data set has one.
    """

    time: str | None = None
    value: str | None = None
    series: str | None = None
    zone: str | None = None
    decimal: str | None = None
    unit: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.decimal not in (None, ".", ","):
            raise InvalidInputError(f"the option decimal is {self.decimal!r}; give '.' or ','")
        if self.unit not in (None, *UNITS):
            raise InvalidInputError(f"the option unit is {self.unit!r}; give one of {', '.join(UNITS)}")
        if self.zone is not None:
            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise InvalidInputError(
                    f"the option zone is {self.zone!r}, which is no time zone; give one such as Europe/Berlin"
                ) from error

    def columns(self) -> list[str] | None:
        """The columns that are enough to read, where all that matter are named; None where more must be looked at."""
        if self.time is None or self.value is None or self.series is None:
            return None
        return [self.time, self.value, self.series, *([self.labels] if self.labels else [])]


NOTHING_SAID = TableOptions()
OPTION_NAMES = tuple(field.name for field in fields(TableOptions) if field.name != "labels")
"""What a request may say; labels are a data set's."""


def table_options(options: Mapping[str, str]) -> TableOptions:
    """The options among ``options`` that say something of the table; an empty text says nothing."""
    given = {name: options[name].strip() for name in OPTION_NAMES if options.get(name, "").strip()}
    return TableOptions(**given)
