"""MONAI's data list with boxes around nodules: a JSON file in the layout that ``load_decathlon_datalist`` reads.

It has entries ``{"image": "a.nii.gz", "box": [[x, y, z, width, height, depth], ...], "label": [0, ...]}`` in the lists
``training`` and ``validation``; boxes are centre and size in mm (``cccwhd``), as in the lists for LUNA16 of MONAI's
detection tutorial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError

_PARTS = ("training", "validation")
_BOX = 6


def read_datalist(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number from 1 and cells (scan, x, y, z, diameter, class, split) of every box, as of a table's rows.

    The diameter is the mean of width and height. An image without a box has one row, of scan and split alone; split is
    left out where there is no ``validation``. Refuses, with the entry, what is no such list.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or not any(isinstance(content.get(part), list) for part in _PARTS):
        raise InvalidInputError(f'{file.name} is no data list of MONAI: it has no list "training" or "validation"')
    is_split = bool(content.get("validation"))
    number = 0
    for part in _PARTS:
        for entry in content.get(part) or []:
            number += 1
            where = f"{file.name}, entry {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise InvalidInputError(f'{where} names no file in "image"')
            row = {"scan": entry["image"], **({"split": part} if is_split else {})}
            boxes = entry.get("box")
            if not isinstance(boxes, list):
                raise InvalidInputError(f'{where} has no list "box", as [[x, y, z, width, height, depth], ...] in mm')
            labels = entry.get("label") or [0] * len(boxes)
            if not isinstance(labels, list) or len(labels) != len(boxes):
                raise InvalidInputError(f'{where} has not as many numbers in "label" as boxes in "box"')
            if not boxes:
                yield number, row
            for box, label in zip(boxes, labels, strict=True):
                yield number, {**row, **_cells(box, where), "class": str(label)}


def _cells(box: Any, where: str) -> dict[str, str]:
    try:
        x, y, z, width, height, depth = map(float, box)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{where}: a box is not of {_BOX} numbers") from None
    if not all(map(math.isfinite, (x, y, z))) or not all(0 < side < math.inf for side in (width, height, depth)):
        raise InvalidInputError(f"{where}: {box} is no centre and size above 0 mm (cccwhd)")
    return {"x": repr(x), "y": repr(y), "z": repr(z), "diameter": repr((width + height) / 2)}
