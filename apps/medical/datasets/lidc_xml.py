"""What LIDC-IDRI's readers marked in one CT series: a file of its XML (``LidcReadMessage``).

Armato et al., Medical Physics 38(2), 2011; "LIDC XML file documentation" at The Cancer Imaging Archive. Four readers
each have a ``readingSession``. A nodule of 3 mm and more is outlined on every slice that it reaches, by the first
pixels outside of it, and rated; of a smaller one, and of what is no nodule, one point is marked. The file's order of
sessions says nothing about who a reader is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

MAX_BYTES = 16 << 20
"""All outlines of the collection written out, the largest file has 1.3 MB."""

Characteristic: TypeAlias = Literal[
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
]
CHARACTERISTICS: tuple[Characteristic, ...] = get_args(Characteristic)
CT, RADIOGRAPH = "LidcReadMessage", "IdriReadMessage"
_MAX_PIXELS = 1 << 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A closed line on the image with that SOPInstanceUID: its pixels (n, 2) as column and row from 0.

    ``included`` is false of what is cut out of the nodule.
    """

    image: str
    pixels: NDArray[np.int32]
    included: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderMark:
    """One thing that one reader marked. ``ratings`` are those of ``CHARACTERISTICS`` that the reader gave."""

    kind: Literal["nodule", "small nodule", "no nodule"]
    outlines: tuple[Outline, ...]
    ratings: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """The marks of each reader of a series, also of those without any; ``sha256`` is of what the marks say."""

    series: str
    readers: tuple[tuple[ReaderMark, ...], ...]
    sha256: str


class _WithoutDtd(ElementTree.TreeBuilder):
    """A document type may define entities, which grow when they are read; LIDC-IDRI's files have none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InvalidInputError("it has a document type (DOCTYPE), which LIDC-IDRI's files have not")


def read_message(file: Path) -> Message | str:
    """The marks in a file, or the name of its root element where that is another than ``LidcReadMessage``.

    Refuses, by its name, a file that is no XML, is larger than ``MAX_BYTES``, or lacks what a mark needs.
    """
    try:
        with file.open("rb") as content:
            text = content.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InvalidInputError(f"it has more than {MAX_BYTES >> 20} MiB, no file of readings")
        parser = ElementTree.XMLParser(target=_WithoutDtd())
        parser.feed(text)
        root: ElementTree.Element = parser.close()
        space, _, kind = root.tag.rpartition("}")
        return _message(root, f"{space}}}" if space else "") if kind == CT else kind
    except (ElementTree.ParseError, InvalidInputError, OSError, LookupError, RecursionError) as error:
        raise InvalidInputError(
            f"{file}: the readers' XML cannot be used ({error}); download it again, or take it away"
        ) from None


def _message(root: ElementTree.Element, space: str) -> Message:
    header = f"{space}ResponseHeader/{space}SeriesInstanceU"
    series = (root.findtext(f"{header}id") or root.findtext(f"{header}ID") or "").strip()
    if not series:
        raise InvalidInputError("it names no series in ResponseHeader/SeriesInstanceUid")
    readers = [tuple(_marks(session, space)) for session in root.iterfind(f"{space}readingSession")]
    if not readers:
        raise InvalidInputError("it has no readingSession")
    said = [
        [(m.kind, m.ratings, [(o.image, o.included, o.pixels.tolist()) for o in m.outlines]) for m in r]
        for r in readers
    ]
    return Message(
        series=series, readers=tuple(readers), sha256=hashlib.sha256(json.dumps([series, said]).encode()).hexdigest()
    )


def _marks(session: ElementTree.Element, space: str) -> Iterator[ReaderMark]:
    for nodule in session.iterfind(f"{space}unblindedReadNodule"):
        name = (nodule.findtext(f"{space}noduleID") or "?").strip()
        outlines = tuple(_outline(roi, f"{space}edgeMap", name, space) for roi in nodule.iterfind(f"{space}roi"))
        if not any(outline.included for outline in outlines):
            raise InvalidInputError(f"nodule {name} has no roi")
        # The ratings do not tell the sizes apart: two outlines of the collection have none, two points have some.
        outlined = any(len(outline.pixels) > 1 for outline in outlines)
        rated = nodule.find(f"{space}characteristics")
        ratings = {} if rated is None else _ratings(rated, name, space)
        yield ReaderMark(kind="nodule" if outlined else "small nodule", outlines=outlines, ratings=ratings)
    for other in session.iterfind(f"{space}nonNodule"):
        name = (other.findtext(f"{space}nonNoduleID") or "?").strip()
        yield ReaderMark(kind="no nodule", outlines=(_outline(other, f"{space}locus", name, space),), ratings={})


def _ratings(rated: ElementTree.Element, name: str, space: str) -> dict[str, int]:
    given = {one: (rated.findtext(f"{space}{one}") or "").strip() for one in CHARACTERISTICS}
    try:
        return {one: int(text) for one, text in given.items() if text}
    except ValueError:
        raise InvalidInputError(f"nodule {name} has a rating that is no whole number") from None


def _outline(roi: ElementTree.Element, points: str, name: str, space: str) -> Outline:
    image = (roi.findtext(f"{space}imageSOP_UID") or "").strip()
    x, y = f"{space}xCoord", f"{space}yCoord"
    try:
        pixels = np.array([[float(point.findtext(x, "")), float(point.findtext(y, ""))] for point in roi.iter(points)])
    except ValueError:
        raise InvalidInputError(f"mark {name} has a point without two numbers") from None
    if not image or not len(pixels):
        raise InvalidInputError(f"mark {name} lacks imageSOP_UID or points")
    if not (np.abs(pixels) < _MAX_PIXELS).all():
        raise InvalidInputError(f"mark {name} has a point that is in no image")
    stated = (roi.findtext(f"{space}inclusion") or "TRUE").strip().upper()
    return Outline(image=image, pixels=np.rint(pixels).astype(np.int32), included=stated != "FALSE")
