"""The Numenta Anomaly Benchmark as a data set (numenta/NAB, MIT): its files and its anomaly labels.

Folder layout: ``data/<folder>/<file>.csv`` with the columns timestamp and value, and ``labels/combined_windows.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.finance.adapters import read_contents
from apps.finance.datasets.splits import series_facts, training_windows, validation_windows
from apps.finance.types import FinanceInput, LabelledSeries, Window
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.data.dataset import Dataset
    from shared.data.registry import Entry

_LABELS = "labels/combined_windows.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Nab:
    """The available files of the Numenta Anomaly Benchmark in the folder ``root``.

    Without ``root``, the 45 files that ``trivium data list nab`` names, on which the published tables rest, wherever
    they are; a clone of NAB's repository has more. The shipped models are never trained on them.
    """

    root: Path | None = None
    validation_share: float = 0.2
    stride: int = 8
    false_events_per_1000_rows: float = 0.6

    def folder(self) -> Path:
        """The benchmark's folder. Raises InvalidInputError if it is not one."""
        root = self.root if self.root is not None else _entry().require() / "finance" / "nab"
        if not (root / _LABELS).is_file():
            raise InvalidInputError(f"{root} has no {_LABELS}; give the folder of NAB's repository with --data.root")
        return root

    def names(self) -> list[str]:
        """The available files, named as in the labels: ``realTweets/Twitter_volume_AAPL.csv``."""
        root = self.folder()
        names = sorted(name for name in self._labels() if (root / "data" / name).is_file())
        if self.root is not None:
            return names
        listed = {file.path for file in _entry().files}
        return [name for name in names if f"finance/nab/data/{name}" in listed]

    def read(self, name: str) -> LabelledSeries:
        """One file with its windows."""
        windows = tuple(
            Window(start_ns=_nanoseconds(first), end_ns=_nanoseconds(last)) for first, last in self._labels()[name]
        )
        (series,) = read_contents(self.folder() / "data" / name).series
        return LabelledSeries(series=series, windows=windows)

    def cases(self) -> Iterator[LabelledSeries]:
        """Every file with its windows."""
        return (self.read(name) for name in self.names())

    def normal(self) -> list[LabelledSeries]:
        """The files; most of their rows are normal."""
        return list(self.cases())

    def labelled(self) -> list[LabelledSeries]:
        """Nothing: ``normal`` already has the labels."""
        return []

    def train(self, input: FinanceInput) -> Dataset:
        return training_windows(self.normal(), input, validation_share=self.validation_share, stride=self.stride)

    def validation(self, input: FinanceInput) -> Dataset:
        return validation_windows(self.normal(), input, validation_share=self.validation_share)

    def facts(self, input: FinanceInput) -> Mapping[str, Any]:
        """The facts printed before training."""
        return series_facts(self.normal(), input, validation_share=self.validation_share)

    def fingerprint(self) -> dict[str, Any]:
        root, names = self.folder(), self.names()
        content = hashlib.sha256()
        for name in (_LABELS, *(f"data/{name}" for name in names)):
            content.update(name.encode() + hashlib.sha256((root / name).read_bytes()).digest())
        return {
            "description": f"{len(names)} files of the Numenta Anomaly Benchmark (numenta/NAB, MIT)",
            "synthetic": False,
            "series": len(names),
            "sha256": content.hexdigest(),
        }

    def _labels(self) -> dict[str, list[list[str]]]:
        labels: dict[str, list[list[str]]] = json.loads((self.folder() / _LABELS).read_text(encoding="utf-8"))
        return labels


def _entry() -> Entry:
    from shared.data.registry import read_registry

    return read_registry(Path(__file__).parent / "registry.json")["nab"]


def _nanoseconds(text: str) -> int:
    parsed = datetime.strptime(text.split(".")[0], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return int(parsed.timestamp()) * 1_000_000_000
