"""What a request may ask for and what ``result.json`` holds, as the description of the HTTP interface states it.

Times are UTC in ISO 8601; values are those of the scored column, as they were read.
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
    """The options of a request; what is left out is told by the table or by the model."""

    time: Annotated[str, Field(description="the column of times; DATE+TIME joins two")]
    value: Annotated[str, Field(description="the column that is scored")]
    series: Annotated[str, Field(description="the column that tells several series below each other apart")]
    zone: Annotated[str, Field(description="the IANA time zone of times without one, such as Europe/Berlin")]
    decimal: Annotated[Literal[".", ","], Field(description="the decimal mark")]
    unit: Annotated[
        Literal["s", "ms", "us", "ns", "days", "excel", "day-first", "month-first"],
        Field(description="how times are written: since 1970, by Excel, or the order of day and month"),
    ]
    instrument: Annotated[str, Field(description="the one of several series that is scored")]
    columns: Annotated[Literal["all"], Field(description="every column by itself, and all of them together")]
    events_per_day: Annotated[float, Field(gt=0, description="how many events are wanted")]
    events_per_1000_rows: Annotated[float, Field(gt=0, le=10, description="how many events are wanted; 0.6 without it")]
    threshold: Annotated[
        float, Field(gt=0, le=1, description="the score that begins an event, in place of a number of events")
    ]


class FinanceEvent(TypedDict):
    """An event."""

    series: NotRequired[Annotated[str, Field(description="the series that it is in, where there are several")]]
    start: Time
    end: Annotated[str, Field(description="its last row; UTC, ISO 8601")]
    peak: Annotated[str, Field(description="its strongest row; UTC, ISO 8601")]
    score: Annotated[float, Field(ge=0, le=1)]
    observed: Annotated[float | None, Field(description="the value at the peak")]
    expected: Annotated[float | None, Field(description="the median of the forecast there")]
    low: Annotated[float | None, Field(description="the lower end of the forecast's band there")]
    high: Annotated[float | None, Field(description="its upper end")]
    direction: Annotated[Direction, Field(description="where the value lies, as seen from the band")]
    channel: Annotated[str, Field(description="what was unusual: a detector's word, gap or corporate_action")]
    size: Annotated[float | None, Field(description="how large it is, in the unit of the values")]
    deviations: Annotated[float | None, Field(description="the same in robust deviations of the rows before it")]
    reason: Annotated[str, Field(description="why it is an event, in words, with its size")]
    since: NotRequired[Annotated[str, Field(description="an estimate of when the level began to change")]]
    columns: NotRequired[Annotated[list[str], Field(description="which columns, in a score of several together")]]
    note: NotRequired[Annotated[str, Field(description="how long a gap is, which split, and the like")]]


class FinanceScored(TypedDict):
    """What there is of a series."""

    name: str
    rows: int
    missing: Annotated[int, Field(description="rows without a value")]
    start: Time
    end: Time
    threshold_at_the_end: float


class FinanceSeries(TypedDict):
    """What was scored: a series, or the file that holds several."""

    name: str
    rows: int
    missing: int
    start: Time
    end: Time
    column: Annotated[str, Field(description="the column that was scored")]
    columns: Annotated[list[str], Field(description="those that the model could score")]
    notes: Annotated[list[str], Field(description="what was guessed, and what reading had to do")]
    interval_s: NotRequired[Annotated[float, Field(description="of one series: the usual time between rows")]]
    threshold_at_the_end: NotRequired[Annotated[float, Field(description="of one series")]]
    series_column: NotRequired[Annotated[str, Field(description="of several: the column that names them")]]


class FinancePart(FinanceScored):
    """One of several series."""

    interval_s: float
    events: Annotated[int, Field(description="how many")]
    strongest: Annotated[float, Field(description="the highest score of its events; 0 without any")]


class FinanceTrueWindow(TypedDict):
    """A stretch of a synthetic series that was made anomalous."""

    start: Time
    end: Time
    kind: str


class FinanceResult(ComputedWith):
    """``result.json``: the events, and the series that they are in."""

    events: list[FinanceEvent]
    series: FinanceSeries
    parts: NotRequired[Annotated[list[FinancePart], Field(description="of a file with several series")]]
    threshold: Annotated[float, Field(description="the score that begins an event, before any row has moved it")]
    score: Annotated[str, Field(description="what a score is, in words")]
    band: Annotated[list[float], Field(description="the lowest and the highest quantile of the forecast's band")]
    model: str
    synthetic_truth: NotRequired[Annotated[list[FinanceTrueWindow], Field(description="of a synthetic series")]]


@with_config(ConfigDict(extra="forbid", strict=True))
class FinanceMissed(TypedDict):
    """A stretch of a series that a reviewer says was an event, and was missed."""

    series: NotRequired[
        Annotated[str, Field(max_length=500, description="its name in `parts`, where there are several")]
    ]
    start: Annotated[str, Field(max_length=40, description="its first row; UTC, ISO 8601, as in events")]
    end: Annotated[str, Field(max_length=40, description="its last row; UTC, ISO 8601")]


SCHEMAS = Schemas(options=FinanceOptions, result=FinanceResult, missed=FinanceMissed)
