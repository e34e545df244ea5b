"""Reads a MONAI data list with boxes around nodules: a JSON file as ``load_decathlon_datalist`` reads it.

The lists ``training`` and ``validation`` have entries of the form
``{"image": "a.nii.gz", "box": [[x, y, z, width, height, depth], ...], "label": [0, ...]}``. A box is its centre and
size in mm (``cccwhd``), as in the lists for LUNA16 of MONAI's detection tutorial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError

_PARTS = ("training", "validation")
_BOX_LENGTH = 6


def read_datalist(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields each box as a table row: entry number from 1, and cells (scan, x, y, z, diameter, class, split).

    The diameter is the mean of width and height. An image without boxes has one row with only scan and split. The split
    is omitted if there is no ``validation`` list. Raises InvalidInputError, with the entry, if the file is invalid.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not any(isinstance(content.get(part), list) for part in _PARTS):
        raise InvalidInputError(f'{file.name} is not a MONAI data list: it has no list "training" or "validation"')
    is_split = bool(content.get("validation"))
    number = 0
    for part in _PARTS:
        for entry in content.get(part) or []:
            number += 1
            location = f"{file.name}, entry {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise InvalidInputError(f'{location} names no file in "image"')
            row = {"scan": entry["image"], **({"split": part} if is_split else {})}
            boxes = entry.get("box")
            if not isinstance(boxes, list):
                raise InvalidInputError(
                    f'{location} has no list "box"; expected [[x, y, z, width, height, depth], ...] in mm'
                )
            labels = entry.get("label") or [0] * len(boxes)
            if not isinstance(labels, list) or len(labels) != len(boxes):
                raise InvalidInputError(f'{location}: "label" does not have one number for each box in "box"')
            if not boxes:
                yield number, row
            for box, label in zip(boxes, labels, strict=True):
                yield number, {**row, **_cells(box, location), "class": str(label)}


def _cells(box: Any, location: str) -> dict[str, str]:
    """The cells of one box; ``location`` names its entry in errors."""
    try:
        x, y, z, width, height, depth = map(float, box)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{location}: a box does not consist of {_BOX_LENGTH} numbers") from None
    if not all(map(math.isfinite, (x, y, z))) or not all(0 < side < math.inf for side in (width, height, depth)):
        raise InvalidInputError(f"{location}: {box} is not a centre and a size above 0 mm (cccwhd)")
    return {"x": repr(x), "y": repr(y), "z": repr(z), "diameter": repr((width + height) / 2)}
