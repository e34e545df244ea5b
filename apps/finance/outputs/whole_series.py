"""Complete series with every column of their table, for servers that keep inputs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.finance.types import Series

COLUMNS = "columns.npz"


def has_other_columns(series: Sequence[Series]) -> bool:
    """Whether the table has columns that are not scored, and are therefore in no other file of the case."""
    return any(len(item.values) + len(item.words) > 1 and not item.joint for item in series)


def whole_series(series: Sequence[Series]) -> bytes:
    """Times and all columns as a NumPy archive."""
    parts = [
        {
            "name": item.name,
            "column": item.column,
            "columns": list(item.values),
            "words": list(item.words),
            "interval_ns": item.interval_ns,
        }
        for item in series
    ]
    arrays: dict[str, Any] = {"series": np.frombuffer(json.dumps(parts).encode(), np.uint8)}
    for number, item in enumerate(series):
        arrays[f"{number} times"] = item.times_ns
        arrays |= {f"{number} {column}": values for column, values in enumerate(item.values.values())}
        arrays |= {f"{number} words {column}": words.astype(str) for column, words in enumerate(item.words.values())}
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def read_whole_series(content: bytes) -> list[Series]:
    """The series that ``whole_series`` was given, without their notes."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return [
            Series(
                name=part["name"],
                times_ns=arrays[f"{number} times"],
                values={name: arrays[f"{number} {column}"] for column, name in enumerate(part["columns"])},
                words={
                    name: arrays[f"{number} words {column}"].astype(object)
                    for column, name in enumerate(part.get("words", ()))
                },
                column=part["column"],
                interval_ns=part["interval_ns"],
            )
            for number, part in enumerate(json.loads(arrays["series"].tobytes()))
        ]
