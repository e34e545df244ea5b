"""Scores of any detector, in the layout of NAB's result files, against the benchmark's labelled windows.

Layout (numenta/NAB): ``results/<detector>/<folder>/<detector>_<file>.csv`` with the columns timestamp, value,
anomaly_score and label, of which timestamp and anomaly_score are read; ``labels/combined_windows.json`` has for each
``<folder>/<file>.csv`` its windows of first and last timestamp. A column ``series`` holds several series in one file.
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

Moments = NDArray[np.datetime64]
Windows = Sequence[tuple[str, str]]


def score_files(files: Mapping[str, Path]) -> Table:
    """``score_detector`` of the paths that were named: scores, a file or a folder, and labels."""
    if set(files) != {"scores", "labels"}:
        raise InvalidInputError(
            "a detector is scored from --scores CSV_OR_FOLDER --labels JSON (NAB's combined_windows.json); "
            f"given: {', '.join(sorted(files)) or 'none'}"
        )
    return score_detector(files["scores"], files["labels"])


def score_detector(scores: Path, labels: Path) -> Table:
    """NAB's score under its three profiles, each at the threshold that serves it best, and what it rests on.

    Raises InvalidInputError for files that are not in the layout, for a series without labels, and for scores that are
    not finite.
    """
    known = read_windows(labels)
    read = dict(read_scores(scores, list(known)))
    if not any(known[name] for name in read):
        raise InvalidInputError(f"none of the {len(read)} series of {scores} has a labelled window in {labels.name}")
    corpus = [Scored(scores=one.scores, windows=_window_rows(one, known[name], name)) for name, one in read.items()]
    found = [score_corpus(corpus, profile) for profile in PROFILES]
    rows = [_row(score, corpus) for score in found]
    windows, length = sum(len(item.windows) for item in corpus), sum(len(item.scores) for item in corpus)
    unscored = sum(probation(len(item.scores)) for item in corpus)
    notes = [
        f"{len(read)} of {len(known)} labelled series, {windows} windows, {length:,} rows of which {unscored:,} are "
        "probation; 100 is perfect, 0 a detector that never detects.",
    ]
    if len(read) < len(known):
        notes.append("Scores of a part of the benchmark do not compare with published ones of the whole.")
    if any(item.scores.min() < 0 or item.scores.max() > 1 for item in corpus):
        notes.append("Some scores lie outside [0, 1], which NAB's own program would not take.")
    return Table(
        title=f"NAB score of {scores.name}",
        columns=("profile", "score", "threshold", "windows hit", "false detections", "false events per series"),
        rows=rows,
        notes=notes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesScores:
    """Of one series the moments (N,) of its rows, and the detector's scores (N,)."""

    moments: Moments
    scores: Floats


def read_windows(labels: Path) -> dict[str, Windows]:
    """The labelled windows by the name of the file, as in ``realTweets/Twitter_volume_AAPL.csv``."""
    try:
        content = json.loads(labels.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{labels} is not readable as JSON ({error}); give NAB's combined_windows.json"
        ) from None
    if not isinstance(content, dict) or not content:
        raise InvalidInputError(f"{labels.name} is not NAB's combined_windows.json: windows by the name of a file")
    known: dict[str, Windows] = {}
    for name, windows in content.items():
        if not isinstance(windows, list) or not all(isinstance(one, list) and len(one) == 2 for one in windows):
            raise InvalidInputError(
                f"{labels.name}: {name} is not a list of windows, each of its first and last timestamp; "
                "give combined_windows.json, not combined_labels.json"
            )
        known[str(name)] = [(str(first), str(last)) for first, last in windows]
    return known


def read_scores(path: Path, known: Sequence[str]) -> Iterator[tuple[str, SeriesScores]]:
    """The scores of a file or of every CSV file in a folder, by the name that the labels have for the series."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*.csv")) if not file.stem.endswith("_scores")]
        if not files:
            raise InvalidInputError(f"{path} holds no CSV file; give a detector's folder of NAB's results")
    elif path.is_file():
        files = [path]
    else:
        raise InvalidInputError(f"{path}: no such file or folder")
    taken: dict[str, str] = {}
    for file in files:
        inside = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for series, scores in _series_of(file):
            name = _label_name(inside if series is None else series, known)
            if name in taken:
                raise InvalidInputError(f"{taken[name]} and {inside} are both {name}; give one detector's scores")
            taken[name] = inside
            yield name, scores


def _series_of(file: Path) -> Iterator[tuple[str | None, SeriesScores]]:
    """The series of one file: by the column ``series`` where there is one."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file.name} is not text; a CSV file was expected") from error
    rows = csv.reader(lines)
    heading = [cell.strip().lower() for cell in next(rows, [])]
    if missing := [name for name in ("timestamp", "anomaly_score") if name not in heading]:
        raise InvalidInputError(f"{file.name} lacks the columns {', '.join(missing)}; expected NAB's result layout")
    time, score = heading.index("timestamp"), heading.index("anomaly_score")
    named = heading.index("series") if "series" in heading else None
    parts: dict[str | None, tuple[list[str], list[float]]] = {}
    for number, cells in enumerate(rows, 2):
        if not cells:
            continue
        try:
            moments, scores = parts.setdefault(None if named is None else cells[named], ([], []))
            scores.append(float(cells[score]))
            moments.append(cells[time])
        except (ValueError, IndexError):
            raise InvalidInputError(f"{file.name}, row {number}: no timestamp and score: {','.join(cells)}") from None
    if not parts:
        raise InvalidInputError(f"{file.name} has no rows")
    for series, (texts, values) in parts.items():
        moments_N, scores_N = _moments(texts, file.name), np.array(values, np.float64)
        if not np.isfinite(scores_N).all():
            raise InvalidInputError(f"{file.name}, row {int(np.argmin(np.isfinite(scores_N))) + 2}: no finite score")
        if (np.diff(moments_N) < np.timedelta64(0)).any():
            raise InvalidInputError(f"{file.name} is not sorted by its timestamps")
        yield series, SeriesScores(moments=moments_N, scores=scores_N)


def _label_name(name: str, known: Sequence[str]) -> str:
    """What the labels call a series: by its folder and file, with the detector's name before it or without.

    Where the folder is not given, the file's name alone must be that of one series.
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
        fitting = [label for label in known if label.rpartition("/")[2] == candidate]
        if len(fitting) == 1:
            return fitting[0]
    raise InvalidInputError(
        f"{name} has no labels; they are of {', '.join(sorted(known)[:3])} and so on. Name the file like one of these"
    )


def _window_rows(one: SeriesScores, windows: Windows, name: str) -> Rows:
    """(W, 2) first and last row of the windows, in order of time; refuses one that holds no row."""
    bounds = []
    for first, last in windows:
        begin, end = _moments([first, last], name)
        rows = int(np.searchsorted(one.moments, begin)), int(np.searchsorted(one.moments, end, side="right")) - 1
        if rows[1] < rows[0]:
            raise InvalidInputError(
                f"{name} has no row between {first} and {last}, a labelled window; are rows missing?"
            )
        bounds.append(rows)
    return np.array(sorted(bounds), np.int64).reshape(-1, 2)


def _moments(texts: Sequence[str], where: str) -> Moments:
    try:
        return np.array([text.strip().removesuffix("Z") for text in texts], "datetime64[us]")
    except ValueError as error:
        raise InvalidInputError(f"{where}: {error}; timestamps are written as 2015-02-26 21:42:53") from None


def _row(score: Score, corpus: Sequence[Scored]) -> list[str]:
    found = count_detections(corpus, score.threshold)
    threshold = "none" if np.isinf(score.threshold) else f"{score.threshold:.12g}"
    return [
        score.profile,
        f"{score.normalised:.2f}",
        threshold,
        f"{found.hit} of {found.windows}",
        str(found.false_detections),
        f"{found.false_events_per_series:.2f}",
    ]
