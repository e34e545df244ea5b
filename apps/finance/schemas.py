"""The options of a request and the content of ``result.json``, as documented in the HTTP interface.

Times are UTC in ISO 8601; values are those of the scored column, as read.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from apps.finance.types import Direction
from shared.app import Schemas
from shared.result_schema import ComputedWith

Time = Annotated[str, Field(description="UTC, ISO 8601")]


class FinanceOptions(TypedDict, total=False):
    """The options of a request. If an option is missing, the table or the model determines it."""

    time: Annotated[str, Field(description="the column of times; DATE+TIME joins two columns")]
    value: Annotated[str, Field(description="the column that is scored")]
    series: Annotated[
        str,
        Field(
            description="the column that names the series, if the table holds several below each other; "
            "exchange+symbol joins several columns"
        ),
    ]
    zone: Annotated[str, Field(description="the IANA time zone of times that state none, such as Europe/Berlin")]
    decimal: Annotated[Literal[".", ","], Field(description="the decimal mark")]
    unit: Annotated[
        Literal["s", "ms", "us", "ns", "days", "excel", "day-first", "month-first"],
        Field(
            description="how times are written: a count since 1970, Excel's day numbers, or the order of day and month"
        ),
    ]
    instrument: Annotated[str, Field(description="the name of the only series to score, out of several")]
    columns: Annotated[Literal["all"], Field(description="score every column by itself, and all of them jointly")]
    events_per_day: Annotated[float, Field(gt=0, description="how many events are wanted")]
    events_per_1000_rows: Annotated[float, Field(gt=0, le=10, description="how many events are wanted; default 0.6")]
    threshold: Annotated[
        float,
        Field(gt=0, le=1, description="a fixed score from which a row begins an event, instead of a number of events"),
    ]


class FinanceEvent(TypedDict):
    """An event."""

    series: NotRequired[Annotated[str, Field(description="the name of its series, if there are several")]]
    start: Time
    end: Annotated[str, Field(description="time of its last row; UTC, ISO 8601")]
    peak: Annotated[str, Field(description="time of its strongest row; UTC, ISO 8601")]
    score: Annotated[float, Field(ge=0, le=1)]
    observed: Annotated[float | None, Field(description="the value at the peak")]
    expected: Annotated[float | None, Field(description="the median of the forecast at the peak")]
    low: Annotated[float | None, Field(description="the lower end of the forecast band at the peak")]
    high: Annotated[float | None, Field(description="the upper end of the forecast band at the peak")]
    direction: Annotated[Direction, Field(description="where the value lies relative to the band")]
    channel: Annotated[str, Field(description="what was unusual: a detector's channel, gap or corporate_action")]
    size: Annotated[float | None, Field(description="its size in the unit of the values")]
    deviations: Annotated[float | None, Field(description="its size in robust deviations of the rows before it")]
    reason: Annotated[str, Field(description="why it is an event, in words, with its size")]
    since: NotRequired[Annotated[str, Field(description="an estimate of when the level began to change")]]
    columns: NotRequired[Annotated[list[str], Field(description="the columns that contribute to a joint score")]]
    note: NotRequired[Annotated[str, Field(description="further facts: the length of a gap, the ratio of a split")]]


class FinanceScored(TypedDict):
    """Facts about one scored series."""

    name: str
    rows: int
    missing: Annotated[int, Field(description="rows without a value")]
    start: Time
    end: Time
    threshold_at_the_end: float


class FinanceSeries(TypedDict):
    """What was scored: one series, or the file with several series."""

    name: str
    rows: int
    missing: int
    start: Time
    end: Time
    column: Annotated[str, Field(description="the column that was scored")]
    columns: Annotated[list[str], Field(description="the columns that the model can score")]
    notes: Annotated[list[str], Field(description="what was guessed, and what the reader had to do")]
    interval_s: NotRequired[Annotated[float, Field(description="the usual time between rows; for a single series")]]
    threshold_at_the_end: NotRequired[Annotated[float, Field(description="for a single series")]]
    series_column: NotRequired[Annotated[str, Field(description="the column that names the series; for several")]]


class FinancePart(FinanceScored):
    """One of several series."""

    interval_s: float
    events: Annotated[int, Field(description="the number of events")]
    strongest: Annotated[float, Field(description="the highest score of its events; 0 if there are none")]


class FinanceTrueWindow(TypedDict):
    """A period of a synthetic series that was made anomalous."""

    start: Time
    end: Time
    kind: str


class FinanceResult(ComputedWith):
    """``result.json``: the events and their series."""

    events: list[FinanceEvent]
    series: FinanceSeries
    parts: NotRequired[Annotated[list[FinancePart], Field(description="for a file with several series")]]
    threshold: Annotated[float, Field(description="the score that begins an event, at the start of the series")]
    score: Annotated[str, Field(description="what a score means, in words")]
    band: Annotated[list[float], Field(description="the quantile levels of the forecast band's lower and upper end")]
    model: str
    synthetic_truth: NotRequired[Annotated[list[FinanceTrueWindow], Field(description="for a synthetic series")]]


@with_config(ConfigDict(extra="forbid", strict=True))
class FinanceMissed(TypedDict):
    """An event that a reviewer says was missed."""

    series: NotRequired[
        Annotated[str, Field(max_length=500, description="the series' name in `parts`, if there are several")]
    ]
    start: Annotated[str, Field(max_length=40, description="time of its first row; UTC, ISO 8601, as in events")]
    end: Annotated[str, Field(max_length=40, description="time of its last row; UTC, ISO 8601")]


SCHEMAS = Schemas(options=FinanceOptions, result=FinanceResult, missed=FinanceMissed)
