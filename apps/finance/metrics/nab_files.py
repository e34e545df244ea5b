"""NAB scores of any detector's result files, against the benchmark's labelled windows.

Layout (numenta/NAB): ``results/<detector>/<folder>/<detector>_<file>.csv`` has the columns timestamp, value,
anomaly_score and label, of which timestamp and anomaly_score are read. ``labels/combined_windows.json`` has for each
``<folder>/<file>.csv`` its windows of first and last timestamp. A column ``series`` allows several series in one file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.finance.metrics.nab import PROFILES, Rows, Score, Scored, count_detections, probation, score_corpus
from apps.finance.types import Floats
from shared.app import Table
from shared.errors import InvalidInputError

Datetimes = NDArray[np.datetime64]
Windows = Sequence[tuple[str, str]]


def score_files(files: Mapping[str, Path]) -> Table:
    """``score_detector`` for the paths ``scores`` (a file or a folder) and ``labels``."""
    if set(files) != {"scores", "labels"}:
        raise InvalidInputError(
            "scoring a detector needs --scores CSV_OR_FOLDER and --labels JSON (NAB's combined_windows.json); "
            f"given: {', '.join(sorted(files)) or 'none'}"
        )
    return score_detector(files["scores"], files["labels"])


def score_detector(scores: Path, labels: Path) -> Table:
    """NAB's score under its three profiles, each at its best threshold, with the counts behind it.

    Raises InvalidInputError for files that are not in the layout, for a series without labels, and for scores that are
    not finite.
    """
    known = read_windows(labels)
    scores_by_name = dict(read_scores(scores, list(known)))
    if not any(known[name] for name in scores_by_name):
        raise InvalidInputError(
            f"none of the {len(scores_by_name)} series of {scores} has a labelled window in {labels.name}"
        )
    corpus = [
        Scored(scores=item.scores, windows=_window_rows(item, known[name], name))
        for name, item in scores_by_name.items()
    ]
    profile_scores = [score_corpus(corpus, profile) for profile in PROFILES]
    rows = [_row(score, corpus) for score in profile_scores]
    windows, length = sum(len(item.windows) for item in corpus), sum(len(item.scores) for item in corpus)
    unscored = sum(probation(len(item.scores)) for item in corpus)
    notes = [
        f"{len(scores_by_name)} of {len(known)} labelled series, {windows} windows, {length:,} rows, of which "
        f"{unscored:,} are probationary; 100 is a perfect detector, 0 one that never detects.",
    ]
    if len(scores_by_name) < len(known):
        notes.append("Scores on a part of the benchmark are not comparable with published scores on all of it.")
    if any(item.scores.min() < 0 or item.scores.max() > 1 for item in corpus):
        notes.append("Some scores are outside [0, 1], which NAB's own program would reject.")
    return Table(
        title=f"NAB score of {scores.name}",
        columns=("profile", "score", "threshold", "windows hit", "false detections", "false events per series"),
        rows=rows,
        notes=notes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesScores:
    """The times (N,) of one series' rows, and the detector's scores (N,)."""

    times: Datetimes
    scores: Floats


def read_windows(labels: Path) -> dict[str, Windows]:
    """The labelled windows by file name, such as ``realTweets/Twitter_volume_AAPL.csv``."""
    try:
        content = json.loads(labels.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{labels} cannot be read as JSON ({error}); give NAB's combined_windows.json"
        ) from None
    if not isinstance(content, dict) or not content:
        raise InvalidInputError(
            f"{labels.name} is not a mapping from file names to windows; give NAB's combined_windows.json"
        )
    known: dict[str, Windows] = {}
    for name, windows in content.items():
        if not isinstance(windows, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in windows):
            raise InvalidInputError(
                f"{labels.name}: {name} is not a list of windows, each a pair of first and last timestamp; "
                "give combined_windows.json, not combined_labels.json"
            )
        known[str(name)] = [(str(first), str(last)) for first, last in windows]
    return known


def read_scores(path: Path, known: Sequence[str]) -> Iterator[tuple[str, SeriesScores]]:
    """Yields the scores of a file, or of every CSV file in a folder, with the series' name in the labels."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*.csv")) if not file.stem.endswith("_scores")]
        if not files:
            raise InvalidInputError(f"{path} has no CSV file; give a detector's folder of NAB's results")
    elif path.is_file():
        files = [path]
    else:
        raise InvalidInputError(f"{path} does not exist; give a file, or a detector's folder of NAB's results")
    file_by_name: dict[str, str] = {}
    for file in files:
        file_name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for series, scores in _series_of(file):
            name = _label_name(file_name if series is None else series, known)
            if name in file_by_name:
                raise InvalidInputError(
                    f"{file_by_name[name]} and {file_name} both have scores of {name}; give one detector's scores"
                )
            file_by_name[name] = file_name
            yield name, scores


def _series_of(file: Path) -> Iterator[tuple[str | None, SeriesScores]]:
    """Yields the series of one file, separated by the column ``series`` if there is one."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file.name} is not a text file; give a CSV file") from error
    rows = csv.reader(lines)
    heading = [cell.strip().lower() for cell in next(rows, [])]
    if missing := [name for name in ("timestamp", "anomaly_score") if name not in heading]:
        raise InvalidInputError(
            f"{file.name} lacks the columns {', '.join(missing)}; give a file in the layout of NAB's results"
        )
    time_column, score_column = heading.index("timestamp"), heading.index("anomaly_score")
    series_column = heading.index("series") if "series" in heading else None
    parts: dict[str | None, tuple[list[str], list[float]]] = {}
    for number, cells in enumerate(rows, 2):
        if not cells:
            continue
        try:
            times, scores = parts.setdefault(None if series_column is None else cells[series_column], ([], []))
            scores.append(float(cells[score_column]))
            times.append(cells[time_column])
        except (ValueError, IndexError):
            raise InvalidInputError(
                f"{file.name}, row {number} has no valid timestamp and score: {','.join(cells)}"
            ) from None
    if not parts:
        raise InvalidInputError(f"{file.name} has no rows")
    for series, (texts, values) in parts.items():
        times_N, scores_N = _parse_times(texts, file.name), np.array(values, np.float64)
        if not np.isfinite(scores_N).all():
            raise InvalidInputError(
                f"{file.name}, row {int(np.argmin(np.isfinite(scores_N))) + 2} has a score that is not finite"
            )
        if (np.diff(times_N) < np.timedelta64(0)).any():
            raise InvalidInputError(f"{file.name} is not sorted by timestamp; sort its rows")
        yield series, SeriesScores(times=times_N, scores=scores_N)


def _label_name(name: str, known: Sequence[str]) -> str:
    """A series' name in the labels: folder and file, with or without the detector's name as a prefix of the file.

    If the folder is not given, the file name must match exactly one series.
    """
    folder, _, file = name.rpartition("/")
    file = file if file.endswith(".csv") else f"{file}.csv"
    words = file.split("_")
    candidates = ["_".join(words[first:]) for first in range(len(words))]
    inner = folder.rpartition("/")[2]
    for candidate in candidates:
        if f"{inner}/{candidate}" in known:
            return f"{inner}/{candidate}"
    for candidate in candidates:
        matches = [label for label in known if label.rpartition("/")[2] == candidate]
        if len(matches) == 1:
            return matches[0]
    raise InvalidInputError(
        f"{name} has no labels; name the file like one of the labelled files, such as {', '.join(sorted(known)[:3])}"
    )


def _window_rows(series: SeriesScores, windows: Windows, name: str) -> Rows:
    """(W, 2) first and last row of the windows, in time order. Raises InvalidInputError if a window has no row."""
    bounds = []
    for first, last in windows:
        begin, end = _parse_times([first, last], name)
        rows = int(np.searchsorted(series.times, begin)), int(np.searchsorted(series.times, end, side="right")) - 1
        if rows[1] < rows[0]:
            raise InvalidInputError(
                f"{name} has no row in the labelled window from {first} to {last}; add the missing rows"
            )
        bounds.append(rows)
    return np.array(sorted(bounds), np.int64).reshape(-1, 2)


def _parse_times(texts: Sequence[str], source: str) -> Datetimes:
    try:
        return np.array([text.strip().removesuffix("Z") for text in texts], "datetime64[us]")
    except ValueError as error:
        raise InvalidInputError(f"{source}: {error}; write timestamps as 2015-02-26 21:42:53") from None


def _row(score: Score, corpus: Sequence[Scored]) -> list[str]:
    detections = count_detections(corpus, score.threshold)
    threshold = "none" if np.isinf(score.threshold) else f"{score.threshold:.12g}"
    return [
        score.profile,
        f"{score.normalised:.2f}",
        threshold,
        f"{detections.hit} of {detections.windows}",
        str(detections.false_detections),
        f"{detections.false_events_per_series:.2f}",
    ]
