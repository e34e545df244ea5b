"""How long the weights of an artifact were trained, with the trainings that they began from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def trained_for(training: Mapping[str, Any]) -> str:
    """Steps and hours of each training, the last first: ``9,600 steps in 0.6 h (cpu), after 11,200 in 1.0 h (cpu)``."""
    parts: list[str] = []
    record: Any = training
    while isinstance(record, Mapping):
        if "steps" in record:
            hours = float(record.get("seconds", 0)) / 3600
            what = "steps in" if not parts else "in"
            parts.append(f"{int(record['steps']):,} {what} {hours:.1f} h ({record.get('device', 'device unknown')})")
        elif "artifact" in record or "file" in record:
            parts.append(f"weights of {record.get('artifact', record.get('file'))}")
        record = record.get("began_from")
    return ", after ".join(parts)
