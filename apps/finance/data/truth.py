"""What is known of a synthetic series, in a file beside it: the windows in which it is anomalous."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from apps.finance.types import SECOND_NS, Window, iso_utc
from shared.refusal import Refusal

TRUTH = "synthetic_truth.json"
"""The name of the file; it is read where it is handed in beside a series, and shown beside what is found."""


def write_windows(path: Path, windows: Sequence[Window]) -> None:
    """Writes the windows as start, end (ISO 8601, UTC) and kind."""
    content = [windows_entry(window) for window in windows]
    path.write_text(json.dumps({"windows": content}, indent=1) + "\n", encoding="utf-8")


def windows_entry(window: Window) -> dict[str, str]:
    """A window in JSON types."""
    return {"start": iso_utc(window.start_ns), "end": iso_utc(window.end_ns), "kind": window.kind}


def read_windows(path: Path) -> tuple[Window, ...]:
    """The windows in such a file, to the microsecond; refuses any other file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Window(start_ns=_time_ns(one["start"]), end_ns=_time_ns(one["end"]), kind=str(one.get("kind", "")))
            for one in content["windows"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f'{path.name} is not {{"windows": [{{"start": "2024-01-31T09:30:00Z", "end": …, "kind": …}}, …]}} ({error})'
        ) from error


def _time_ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    past = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (past.days * 86_400 + past.seconds) * SECOND_NS + past.microseconds * 1000
