"""Reads label and result files of KITTI's object and tracking benchmarks for scoring.

Object (readme.txt of devkit_object): one file per frame with 15 columns, the type first; results have the score as the
16th. Tracking (readme.txt of devkit_tracking): one file per sequence; the frame and the track precede these, 17 columns
in all, and results have the score as the 18th. Boxes are compared in the rectified camera frame, so that no calibration
is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.driving.metrics.kitti_objects import KittiObjects
from apps.driving.metrics.overlap import Doubles
from shared.errors import InvalidInputError

_COLUMNS = "type truncated occluded alpha left top right bottom height width length x y z rotation_y"


@dataclass(frozen=True, kw_only=True, slots=True)
class KittiFiles:
    """Labels and results of the same frames. ``unit`` is what a file holds, "frame" or "sequence"; ``scored`` of the
    ``labelled`` units are scored; ``without_results`` of these have no result file and count as empty."""

    truth: KittiObjects
    detections: KittiObjects
    unit: str
    scored: int
    labelled: int
    without_results: int


def read_folders(label_dir: Path, result_dir: Path, frames: Path | None = None) -> KittiFiles:
    """Reads the units listed in the file ``frames``, one a line (ImageSets, seqmaps); without it those with a result
    file.

    ``label_dir`` holds the label files, or is a folder of the benchmark that contains them. Raises InvalidInputError
    for folders without text files, files that are not in KITTI's layout, results without scores, a mix of object and
    tracking files, and units without labels.
    """
    labels, results = _files(_label_folder(label_dir)), _files(result_dir)
    names = sorted(results) if frames is None else _listed_names(frames)
    if unknown := [name for name in names if name not in labels]:
        source = results[unknown[0]].name if frames is None else unknown[0]
        raise InvalidInputError(
            f"{source} has no label file in {label_dir}; remove it, or give the folder with its labels"
        )
    truth, detections = _Rows(scored=False), _Rows(scored=True)
    for unit, name in enumerate(names):
        truth.read(labels[name], unit)
        if name in results:
            detections.read(results[name], unit)
    if truth.tracking is not None and detections.tracking is not None and truth.tracking != detections.tracking:
        label_kind, result_kind = ("tracking", "object") if truth.tracking else ("object", "tracking")
        raise InvalidInputError(f"{label_dir} holds {label_kind} labels, but {result_dir} {result_kind} results")
    number = {key: n for n, key in enumerate(sorted({*truth.frames, *detections.frames}))}
    return KittiFiles(
        truth=truth.objects(number),
        detections=detections.objects(number),
        unit="sequence" if truth.tracking or detections.tracking else "frame",
        scored=len(names),
        labelled=len(labels),
        without_results=sum(name not in results for name in names),
    )


class _Rows:
    """Rows of many files. A frame is identified by its file and, in tracking, by its number in the file."""

    def __init__(self, *, scored: bool) -> None:
        self._scored = scored
        self.tracking: bool | None = None
        self.frames: list[tuple[int, int]] = []
        self._class_names: list[str] = []
        self._values: list[list[float]] = []

    def read(self, path: Path, unit: int) -> None:
        """Adds the rows of one file."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path.name} is not text; expected a KITTI label file") from error
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if self.tracking is None:
                self.tracking = words[0].lstrip("-").isdigit()
            frame, name, values = self._parsed(path, number, words, self.tracking)
            self.frames.append((unit, frame))
            self._class_names.append(name)
            self._values.append(values)

    def objects(self, number: Mapping[tuple[int, int], int]) -> KittiObjects:
        """All rows in columns; ``number`` maps each frame to its index."""
        values: Doubles = np.array(self._values, np.float64).reshape(-1, 15)
        return KittiObjects.of_rows([number[frame] for frame in self.frames], self._class_names, values)

    def _parsed(self, path: Path, number: int, words: Sequence[str], tracking: bool) -> tuple[int, str, list[float]]:
        first_column = 2 if tracking else 0
        columns = 15 + first_column
        layout = f"frame track_id {_COLUMNS}" if tracking else _COLUMNS
        has_score = len(words) == columns + 1
        if not has_score and (len(words) != columns or self._scored):
            expected = f"{columns + 1}, the last a score" if self._scored else f"{columns}, or one more with a score"
            raise InvalidInputError(
                f"{path.name}, line {number}: {len(words)} columns instead of {expected} ({layout})"
            )
        try:
            frame = int(words[0]) if tracking else 0
            values = [float(word) for word in words[first_column + 1 :]]
        except ValueError as error:
            raise InvalidInputError(f"{path.name}, line {number}: {error}; columns are {layout}") from error
        if not np.isfinite(values).all():
            raise InvalidInputError(f"{path.name}, line {number}: a value is not a finite number")
        return frame, words[first_column], values if has_score else [*values, 0.0]


def _label_folder(folder: Path) -> Path:
    """The folder of labels in a benchmark folder, which also holds images and calibrations; else the folder itself."""
    candidates = (folder / part / name for part in ("", "training") for name in ("label_2", "label_02"))
    return next((candidate for candidate in candidates if candidate.is_dir()), folder)


def _files(folder: Path) -> dict[str, Path]:
    """Text files by their stems, also in subfolders: results may have been written in several batches."""
    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is not a folder; give one with a text file for each frame or sequence")
    files_by_stem: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.txt")):
        if file.stem in files_by_stem:
            raise InvalidInputError(
                f"{files_by_stem[file.stem]} and {file} are both frame {file.stem}; remove one of them"
            )
        files_by_stem[file.stem] = file
    if not files_by_stem:
        raise InvalidInputError(f"{folder} contains no .txt file; give a folder with one for each frame or sequence")
    return files_by_stem


def _listed_names(frames: Path) -> list[str]:
    try:
        lines = frames.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{frames} cannot be read ({error}); give a text file with one frame a line") from None
    names = sorted({line.split()[0] for line in lines if line.strip()})
    if not names:
        raise InvalidInputError(f"{frames.name} lists no frames; list one a line, as KITTI's ImageSets do")
    return names
