"""KITTI's label and result files, of its object and its tracking benchmark, read for scoring.

Object (readme.txt of devkit_object): a file a frame with 15 columns, type first; results have a score as the 16th.
Tracking (readme.txt of devkit_tracking): a file a sequence with the frame and the number of the track before these, 17
columns; results have a score as the 18th. Boxes are compared in the rectified camera, so that no calibration is needed.
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
    """Labels and results of the same frames. ``unit`` is what a file holds, a frame or a sequence; ``scored`` of
    ``labelled`` units play a part; ``without_results`` of these have no result file, and count as empty."""

    truth: KittiObjects
    found: KittiObjects
    unit: str
    scored: int
    labelled: int
    without_results: int


def read_folders(label_dir: Path, result_dir: Path, frames: Path | None = None) -> KittiFiles:
    """The units that have a result file, or those that the file ``frames`` names, one a line (ImageSets, seqmaps).

    Labels lie in ``label_dir``, or in the folder of labels of the benchmark's training part, where it is that.
    Raises InvalidInputError for folders without text files, files that are not in KITTI's layout, results without
    scores, results of object files beside labels of tracking, and units without labels.
    """
    labels, results = _files(_label_folder(label_dir)), _files(result_dir)
    names = sorted(results) if frames is None else _names(frames)
    if unknown := [name for name in names if name not in labels]:
        source = results[unknown[0]].name if frames is None else unknown[0]
        raise InvalidInputError(f"{source} has no label file in {label_dir}; take it out, or name other labels")
    truth, found = _Rows(scored=False), _Rows(scored=True)
    for unit, name in enumerate(names):
        truth.read(labels[name], unit)
        if name in results:
            found.read(results[name], unit)
    if truth.tracking is not None and found.tracking is not None and truth.tracking != found.tracking:
        mine, theirs = ("tracking", "object") if truth.tracking else ("object", "tracking")
        raise InvalidInputError(f"{label_dir} holds {mine} labels, but {result_dir} {theirs} results")
    number = {key: n for n, key in enumerate(sorted({*truth.frames, *found.frames}))}
    return KittiFiles(
        truth=truth.objects(number),
        found=found.objects(number),
        unit="sequence" if truth.tracking or found.tracking else "frame",
        scored=len(names),
        labelled=len(labels),
        without_results=sum(name not in results for name in names),
    )


class _Rows:
    """Rows of many files. A frame is known by its file and, in tracking, by its number there."""

    def __init__(self, *, scored: bool) -> None:
        self._scored = scored
        self.tracking: bool | None = None
        self.frames: list[tuple[int, int]] = []
        self._names: list[str] = []
        self._values: list[list[float]] = []

    def read(self, path: Path, unit: int) -> None:
        """Takes the rows of one file."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path.name} is not text; a KITTI label file was expected") from error
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if self.tracking is None:
                self.tracking = words[0].lstrip("-").isdigit()
            frame, name, values = self._parsed(path, number, words, self.tracking)
            self.frames.append((unit, frame))
            self._names.append(name)
            self._values.append(values)

    def objects(self, number: Mapping[tuple[int, int], int]) -> KittiObjects:
        """All rows in columns, the frames numbered by ``number``."""
        values: Doubles = np.array(self._values, np.float64).reshape(-1, 15)
        return KittiObjects.of_rows([number[frame] for frame in self.frames], self._names, values)

    def _parsed(self, path: Path, number: int, words: Sequence[str], tracking: bool) -> tuple[int, str, list[float]]:
        lead = 2 if tracking else 0
        columns = 15 + lead
        layout = f"frame track_id {_COLUMNS}" if tracking else _COLUMNS
        scored = len(words) == columns + 1
        if not scored and (len(words) != columns or self._scored):
            wanted = f"{columns + 1}, the last a score" if self._scored else f"{columns}, or one more with a score"
            raise InvalidInputError(f"{path.name}, line {number}: {len(words)} columns instead of {wanted} ({layout})")
        try:
            frame = int(words[0]) if tracking else 0
            values = [float(word) for word in words[lead + 1 :]]
        except ValueError as error:
            raise InvalidInputError(f"{path.name}, line {number}: {error}; columns are {layout}") from error
        if not np.isfinite(values).all():
            raise InvalidInputError(f"{path.name}, line {number}: a value is not a finite number")
        return frame, words[lead], values if scored else [*values, 0.0]


def _label_folder(folder: Path) -> Path:
    """The folder of labels in a folder of the benchmark's, beside images and calibrations; else the folder itself."""
    below = (folder / part / name for part in ("", "training") for name in ("label_2", "label_02"))
    return next((found for found in below if found.is_dir()), folder)


def _files(folder: Path) -> dict[str, Path]:
    """Text files by their names, also in folders below: batches of frames may have been answered apart."""
    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is no folder; give one that holds a text file for each frame or sequence")
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.txt")):
        if file.stem in found:
            raise InvalidInputError(f"{found[file.stem]} and {file} are both frame {file.stem}; take one of them out")
        found[file.stem] = file
    if not found:
        raise InvalidInputError(f"{folder} holds no .txt file; give a folder with one for each frame or sequence")
    return found


def _names(frames: Path) -> list[str]:
    try:
        lines = frames.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{frames} cannot be read ({error}); give a text file with one frame a line") from None
    names = sorted({line.split()[0] for line in lines if line.strip()})
    if not names:
        raise InvalidInputError(f"{frames.name} names no frame; give one a line, as KITTI's ImageSets do")
    return names
