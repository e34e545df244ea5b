"""Reads one XML file of LIDC-IDRI (``LidcReadMessage``): the readers' marks in one CT series.

Armato et al., Medical Physics 38(2), 2011; "LIDC XML file documentation" at The Cancer Imaging Archive. Four readers
each have a ``readingSession``. A nodule of at least 3 mm is rated, and outlined on every slice that it reaches by the
first pixels outside it. A smaller nodule or a non-nodule is marked by one point. The order of the sessions in a file
does not identify the readers.
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
"""The maximum size of a file. The largest one of the collection has 1.3 MB."""

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
_MAX_COORDINATE = 1 << 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A closed line on the image with this SOPInstanceUID: pixels (N, 2) as column and row from 0.

    ``included`` is False for an area that is not part of the nodule.
    """

    image: str
    pixels: NDArray[np.int32]
    included: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderMark:
    """One mark of one reader. ``ratings`` has the reader's ratings of ``CHARACTERISTICS``, as far as given."""

    kind: Literal["nodule", "small nodule", "no nodule"]
    outlines: tuple[Outline, ...]
    ratings: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """The marks of every reader of a series, which may be empty; ``sha256`` is that of series and marks."""

    series: str
    readers: tuple[tuple[ReaderMark, ...], ...]
    sha256: str


class _NoDoctypeBuilder(ElementTree.TreeBuilder):
    """Rejects document types: they can define entities that expand without limit. LIDC-IDRI's files have none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InvalidInputError("it has a document type (DOCTYPE), unlike LIDC-IDRI's files")


def read_message(file: Path) -> Message | str:
    """The marks in a file, or the name of its root element if that is not ``LidcReadMessage``.

    Raises InvalidInputError, with the file's name, if it is not XML, exceeds ``MAX_BYTES``, or lacks required data.
    """
    try:
        with file.open("rb") as content:
            text = content.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InvalidInputError(f"it has more than {MAX_BYTES >> 20} MiB, too many for a file of readings")
        parser = ElementTree.XMLParser(target=_NoDoctypeBuilder())
        parser.feed(text)
        root: ElementTree.Element = parser.close()
        namespace, _, kind = root.tag.rpartition("}")
        return _parse_message(root, f"{namespace}}}" if namespace else "") if kind == CT else kind
    except (ElementTree.ParseError, InvalidInputError, OSError, LookupError, RecursionError) as error:
        raise InvalidInputError(
            f"{file}: the readers' XML cannot be used ({error}); download it again or remove it"
        ) from None


def _parse_message(root: ElementTree.Element, namespace: str) -> Message:
    header = f"{namespace}ResponseHeader/{namespace}SeriesInstanceU"
    series = (root.findtext(f"{header}id") or root.findtext(f"{header}ID") or "").strip()
    if not series:
        raise InvalidInputError("it names no series in ResponseHeader/SeriesInstanceUid")
    readers = [tuple(_parse_marks(session, namespace)) for session in root.iterfind(f"{namespace}readingSession")]
    if not readers:
        raise InvalidInputError("it has no readingSession")
    content = [
        [(m.kind, m.ratings, [(o.image, o.included, o.pixels.tolist()) for o in m.outlines]) for m in r]
        for r in readers
    ]
    return Message(
        series=series, readers=tuple(readers), sha256=hashlib.sha256(json.dumps([series, content]).encode()).hexdigest()
    )


def _parse_marks(session: ElementTree.Element, namespace: str) -> Iterator[ReaderMark]:
    for nodule in session.iterfind(f"{namespace}unblindedReadNodule"):
        name = (nodule.findtext(f"{namespace}noduleID") or "?").strip()
        outlines = tuple(
            _parse_outline(roi, f"{namespace}edgeMap", name, namespace) for roi in nodule.iterfind(f"{namespace}roi")
        )
        if not any(outline.included for outline in outlines):
            raise InvalidInputError(f"nodule {name} has no roi")
        # The presence of ratings does not indicate the size: in the collection two outlines have none, two points some.
        is_outlined = any(len(outline.pixels) > 1 for outline in outlines)
        element = nodule.find(f"{namespace}characteristics")
        ratings = {} if element is None else _parse_ratings(element, name, namespace)
        yield ReaderMark(kind="nodule" if is_outlined else "small nodule", outlines=outlines, ratings=ratings)
    for non_nodule in session.iterfind(f"{namespace}nonNodule"):
        name = (non_nodule.findtext(f"{namespace}nonNoduleID") or "?").strip()
        yield ReaderMark(
            kind="no nodule", outlines=(_parse_outline(non_nodule, f"{namespace}locus", name, namespace),), ratings={}
        )


def _parse_ratings(element: ElementTree.Element, name: str, namespace: str) -> dict[str, int]:
    texts = {rating: (element.findtext(f"{namespace}{rating}") or "").strip() for rating in CHARACTERISTICS}
    try:
        return {rating: int(text) for rating, text in texts.items() if text}
    except ValueError:
        raise InvalidInputError(f"nodule {name} has a rating that is not a whole number") from None


def _parse_outline(roi: ElementTree.Element, points: str, name: str, namespace: str) -> Outline:
    image = (roi.findtext(f"{namespace}imageSOP_UID") or "").strip()
    x, y = f"{namespace}xCoord", f"{namespace}yCoord"
    try:
        pixels = np.array([[float(point.findtext(x, "")), float(point.findtext(y, ""))] for point in roi.iter(points)])
    except ValueError:
        raise InvalidInputError(f"mark {name} has a point without two numbers") from None
    if not image or not len(pixels):
        raise InvalidInputError(f"mark {name} lacks imageSOP_UID or points")
    if not (np.abs(pixels) < _MAX_COORDINATE).all():
        raise InvalidInputError(f"mark {name} has a point outside any image")
    stated = (roi.findtext(f"{namespace}inclusion") or "TRUE").strip().upper()
    return Outline(image=image, pixels=np.rint(pixels).astype(np.int32), included=stated != "FALSE")
