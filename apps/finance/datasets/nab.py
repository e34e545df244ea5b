"""The Numenta Anomaly Benchmark's files and labels (numenta/NAB, MIT). For evaluation alone, never for training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from apps.finance.adapters.csv import read_csv
from apps.finance.types import Floats, LabelledSeries, Series, Times, Window, iso_utc

FOLDERS = 7
"""The number of data folders in the whole benchmark."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """The benchmark in the folder ``root``, which holds ``data`` and ``labels``: what of it is there."""

    root: Path

    def names(self) -> list[str]:
        """The files that are there, as in the labels: ``realTweets/Twitter_volume_AAPL.csv``."""
        labels = json.loads((self.root / "labels" / "combined_windows.json").read_text(encoding="utf-8"))
        return sorted(name for name in labels if (self.root / "data" / name).is_file())

    def read(self, name: str) -> LabelledSeries:
        """One file with its windows."""
        labels = json.loads((self.root / "labels" / "combined_windows.json").read_text(encoding="utf-8"))
        windows = tuple(Window(start_ns=_nanoseconds(first), end_ns=_nanoseconds(last)) for first, last in labels[name])
        series = read_csv(self.root / "data" / name)
        return LabelledSeries(series=series, windows=windows)

    def __iter__(self) -> Iterator[LabelledSeries]:
        return (self.read(name) for name in self.names())


def window_rows(times_ns: Times, windows: tuple[Window, ...]) -> np.ndarray:
    """(W, 2) first and last row of each window, inclusive."""
    bounds = [
        (int(np.searchsorted(times_ns, window.start_ns)), int(np.searchsorted(times_ns, window.end_ns, "right")) - 1)
        for window in windows
    ]
    return np.asarray(bounds, np.int64).reshape(-1, 2)


def detector_csv(series: Series, scores: Floats, windows: tuple[Window, ...] = ()) -> str:
    """NAB's layout of a detector's output: timestamp, value, anomaly_score, label."""
    label = np.zeros(len(series), np.int64)
    for first, last in window_rows(series.times_ns, windows).tolist():
        label[first : last + 1] = 1
    lines = ["timestamp,value,anomaly_score,label"]
    rows = zip(series.times_ns.tolist(), series.target.tolist(), scores.tolist(), label.tolist(), strict=True)
    for time, value, score, mark in rows:
        moment = iso_utc(time).replace("T", " ").removesuffix("Z")
        lines.append(f"{moment},{value!r},{score:.6g},{mark}")
    return "\n".join(lines) + "\n"


def _nanoseconds(text: str) -> int:
    moment = datetime.strptime(text.split(".")[0], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000
