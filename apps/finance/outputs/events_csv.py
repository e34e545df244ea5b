"""The events as a table, which a spreadsheet opens: events.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from apps.finance.outputs.files import event_entry
from apps.finance.types import Detection

_COLUMNS = ("start", "end", "peak", "score", "observed", "expected", "low", "high", "direction", "channel", "since")


def events_csv(detections: Sequence[Detection], *, several: bool) -> bytes:
    """A row for each event, as ``event_entry`` has it; empty where there is no value. Of several series the first
    column names them; ``columns`` are joined by a space."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([*(["series"] if several else []), *_COLUMNS, "columns", "note"])
    for one in detections:
        for event in map(event_entry, one.anomalies):
            cells = [event.get(name) for name in _COLUMNS]
            columns = " ".join(event.get("columns", ()))
            rows.writerow([*([one.series.name] if several else []), *cells, columns, event.get("note", "")])
    return out.getvalue().encode()
