"""The events as a spreadsheet table: events.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from apps.finance.outputs.files import event_entry
from apps.finance.types import Detection
from shared.text_cell import text_cell

_COLUMNS = ("start", "end", "peak", "score", "observed", "expected", "low", "high", "direction", "channel", "since")
_MEASURED = ("size", "deviations")


def events_csv(detections: Sequence[Detection], *, several: bool) -> bytes:
    """One row per event, as in ``event_entry``; empty cells for missing values. For several series the first column
    names them; ``columns`` are joined by spaces. Texts from the user's file are escaped so that they are not formulas
    (``text_cell``)."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([*(["series"] if several else []), *_COLUMNS, "columns", "note", *_MEASURED, "reason"])
    for detection in detections:
        for event in map(event_entry, detection.anomalies):
            cells = [event.get(name) for name in _COLUMNS]
            columns = text_cell(" ".join(event.get("columns", ())))
            name = [text_cell(detection.series.name)] if several else []
            measured = [event.get(name) for name in _MEASURED]
            rows.writerow([*name, *cells, columns, event.get("note", ""), *measured, text_cell(event["reason"])])
    return out.getvalue().encode()
