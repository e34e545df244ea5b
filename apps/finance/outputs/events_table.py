"""The events of a ``result.json`` as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.app import Table

MAX_EVENTS = 20
_COLUMNS = ("start", "end", "score", "observed", "expected", "low", "high", "why")


def events_table(result: Mapping[str, Any]) -> Table:
    """The strongest events in time order; whoever prints the result prints the file's notes."""
    events = result["events"]
    strongest = sorted(events, key=lambda event: -float(event["score"]))[:MAX_EVENTS]
    shown = [event for event in events if event in strongest] if len(events) > MAX_EVENTS else events
    columns = ("series", *_COLUMNS) if "parts" in result else _COLUMNS
    shown_text = f", the {len(shown)} strongest shown" if len(shown) < len(events) else ""
    series_text = f" in {len(result['parts'])} series" if "parts" in result else ""
    return Table(
        title=f"{result['series']['name']}: {len(events)} events{series_text}{shown_text}",
        columns=columns,
        rows=[[_cell(event[name]) for name in columns[:-1]] + [_reason(event)] for event in shown],
    )


def _reason(event: Mapping[str, Any]) -> str:
    """Why it is an event, with the note if the reason does not contain it."""
    note = event.get("note", "")
    text = str(event["reason"])
    return f"{text}; {note}" if note and note not in text else text


def _cell(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else "-" if value is None else str(value)
