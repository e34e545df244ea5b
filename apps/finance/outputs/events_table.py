"""The events of a ``result.json`` as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.app import Table

MAX_EVENTS = 20
_COLUMNS = ("start", "end", "score", "observed", "expected", "low", "high", "why")


def events_table(result: Mapping[str, Any]) -> Table:
    """The strongest events in the order of time; the notes of the file are said by whatever prints the result."""
    events = result["events"]
    strongest = sorted(events, key=lambda event: -float(event["score"]))[:MAX_EVENTS]
    shown = [event for event in events if event in strongest] if len(events) > MAX_EVENTS else events
    columns = ("series", *_COLUMNS) if "parts" in result else _COLUMNS
    more = f", the {len(shown)} strongest shown" if len(shown) < len(events) else ""
    many = f" in {len(result['parts'])} series" if "parts" in result else ""
    return Table(
        title=f"{result['series']['name']}: {len(events)} events{many}{more}",
        columns=columns,
        rows=[[_cell(event[name]) for name in columns[:-1]] + [_what(event)] for event in shown],
    )


def _what(event: Mapping[str, Any]) -> str:
    """Why it is an event, and what is known besides where the reason does not tell it."""
    note = event.get("note", "")
    reason = str(event["reason"])
    return f"{reason}; {note}" if note and note not in reason else reason


def _cell(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else "-" if value is None else str(value)
