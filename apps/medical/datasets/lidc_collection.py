"""LIDC-IDRI as it is downloaded: which CT series lie in a folder, and what readers marked in each.

The headers of its 244,000 images take minutes to read, so that what was found is kept in the user's cache, under a
digest of the files' names, sizes and times of change.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import starmap
from pathlib import Path

from apps.medical.adapters.members import first_few
from apps.medical.adapters.series import Slice, is_capture, is_scout
from apps.medical.adapters.stack import stack
from apps.medical.datasets.lidc_nodules import ImageGrid, PlacedMark, place
from apps.medical.datasets.lidc_xml import RADIOGRAPH, Message, read_message
from shared.data.build_cache import get_or_build, made_ahead
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

VERSION = 3
FEW = 8
"""Fewer folders are read here: processes take longer to start."""

_KEYWORDS = (
    *("PatientID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSeries:
    """A CT series that was read.

    uid        its SeriesInstanceUID
    patient    its PatientID, or the series itself
    folders    that hold its images, from the root
    slice_mm   SliceThickness, or the distance of the slices where it is not stated
    marks      of all readers
    """

    uid: str
    patient: str
    folders: tuple[str, ...]
    slice_mm: float
    marks: tuple[PlacedMark, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """The series that can be used, ``notes`` on what was passed over, and the SHA-256 of the readers' XML."""

    series: tuple[ReadSeries, ...]
    notes: Mapping[str, str]
    xml_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Images:
    """The images of a CT series in a folder, or in several, by their SOPInstanceUID.

    ``grid`` is None where they are no usable volume, for the reason.
    """

    uid: str
    names: frozenset[str]
    patient: str
    folders: tuple[Path, ...]
    slice_mm: float
    grid: ImageGrid | None
    reason: str = ""


def read_collection(root: Path, annotations: Path | None) -> Collection:
    """The CT series below ``root`` that readers marked, by XML below it or below ``annotations``.

    Refuses folders without CT or without the XML of one, and XML that cannot be read, by its name.
    """
    for folder in (root, annotations):
        if folder is not None and not folder.is_dir():
            raise InvalidInputError(
                f"{folder} is no folder; name those of the download by --data.root and, where the "
                "XML lies elsewhere, --data.annotations"
            )
    listed = {path: (size, changed) for path, size, changed in _files(root)}
    files = listed if annotations is None else listed | {path: (size, at) for path, size, at in _files(annotations)}
    stated = [VERSION, root.resolve().as_posix(), sorted((str(path), *facts) for path, facts in files.items())]
    name = f"lidc-{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:20]}"
    xml = sorted(path for path in files if path.suffix.lower() == ".xml")
    others = [path for path in listed if path.suffix.lower() != ".xml"]
    home = get_or_build(name, lambda aside: _write(_collect(root, xml, others), aside))
    return _read(home)


def _files(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, size and time of change of every file that is not hidden."""
    for home, _, names in os.walk(folder):
        for name in names:
            if not name.startswith("."):
                path = Path(home, name)
                with suppress(FileNotFoundError):  # a link that leads nowhere
                    status = path.stat()
                    yield path, status.st_size, status.st_mtime_ns


def _write(collection: Collection, folder: Path) -> None:
    (folder / "collection.json").write_text(json.dumps(asdict(collection)), encoding="utf-8")


@lru_cache(maxsize=2)
def _read(folder: Path) -> Collection:
    stated = json.loads((folder / "collection.json").read_text(encoding="utf-8"))
    series = [
        ReadSeries(
            **{
                **one,
                "folders": tuple(one["folders"]),
                "marks": tuple(PlacedMark(**{**m, "centre_lps_mm": tuple(m["centre_lps_mm"])}) for m in one["marks"]),
            }
        )
        for one in stated["series"]
    ]
    return Collection(series=tuple(series), notes=stated["notes"], xml_sha256=stated["xml_sha256"])


def _collect(root: Path, xml: Sequence[Path], others: Sequence[Path]) -> Collection:
    messages, kinds, several = _messages(xml)
    if not messages and not several:
        raise InvalidInputError(
            f"{root} holds no XML of LIDC-IDRI's readers (LidcReadMessage); name its folder with --data.annotations"
        )
    by_folder: dict[Path, list[Path]] = {}
    for path in others:
        by_folder.setdefault(path.parent, []).append(path)
    calls = sorted(by_folder.items())
    run = made_ahead if len(calls) >= FEW else starmap
    held: dict[str, list[_Images]] = {}
    for found in progress_bar(run(_read_folder, calls), len(calls), "reading headers"):
        for images in found:
            held.setdefault(images.uid, []).append(images)
    if not held:
        raise InvalidInputError(f"{root} holds no CT images in DICOM; --data.root is the folder of the download")
    usable, unusable = [], [f"{uid} (several XML files that differ)" for uid in sorted(several & held.keys())]
    for uid, (message, file) in sorted(messages.items()):
        if uid not in held:
            continue
        made = _marked(message, held[uid], root)
        if isinstance(made, ReadSeries):
            usable.append(made)
        else:
            unusable.append(f"{uid} ({file.name}: {made})")
    if not usable:
        raise InvalidInputError(
            f"{root} holds no CT series that readers marked and that can be used: "
            f"{first_few(unusable) if unusable else 'the XML is of other series'}"
        )
    astray = [file.name for uid, (_, file) in messages.items() if uid not in held]
    notes = {
        "CT series without XML": _count([uid for uid in held if uid not in messages and uid not in several]),
        "XML without its CT series": _count(astray),
        "XML of radiographs": str(kinds.pop(RADIOGRAPH, 0)),
        "other XML": str(sum(kinds.values())),
        "series left out": _count(unusable),
    }
    digest = hashlib.sha256("".join(sorted(message.sha256 for message, _ in messages.values())).encode()).hexdigest()
    return Collection(series=tuple(usable), notes=notes, xml_sha256=digest)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)}: {first_few(names)}" if names else "0"


def _messages(xml: Sequence[Path]) -> tuple[dict[str, tuple[Message, Path]], Counter[str], set[str]]:
    """The readers' marks by series with their file, other kinds of XML, and series of which two files differ."""
    messages: dict[str, tuple[Message, Path]] = {}
    kinds: Counter[str] = Counter()
    several = set()
    for file in progress_bar(xml, len(xml), "reading XML"):
        read = read_message(file)
        if isinstance(read, str):
            kinds[read] += 1
        elif messages.setdefault(read.series, (read, file))[0].sha256 != read.sha256:
            several.add(read.series)
    return {uid: read for uid, read in messages.items() if uid not in several}, kinds, several


def _marked(message: Message, images: Sequence[_Images], root: Path) -> ReadSeries | str:
    """The series with its readers' marks, or why it cannot be used."""
    # Of what was downloaded again, after a break too, the folder that has all of the others.
    one = max(images, key=lambda found: len(found.names))
    if not all(found.names <= one.names for found in images):
        one = _joined(images)
    if one.grid is None:
        return one.reason
    try:
        marks = [place(mark, reader, one.grid) for reader, found in enumerate(message.readers) for mark in found]
    except InvalidInputError as error:
        return str(error)
    return ReadSeries(
        uid=one.uid,
        patient=one.patient or one.uid,
        folders=tuple(folder.relative_to(root).as_posix() for folder in one.folders),
        slice_mm=one.slice_mm,
        marks=tuple(marks),
    )


def _read_folder(folder: Path, files: Sequence[Path]) -> list[_Images]:
    """The CT series in a folder, by their headers."""
    return [_images(uid, (folder,), slices) for uid, slices in _series(files).items() if uid]


def _joined(images: Sequence[_Images]) -> _Images:
    """A series whose images lie in several folders; a file that is in two of them counts once, as when it is read."""
    folders = tuple(found.folders[0] for found in images)
    files = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    slices = _series(files)[images[0].uid]
    return _images(
        images[0].uid, folders, list({hashlib.sha256(part.read()).digest(): part for part in slices}.values())
    )


def _series(files: Sequence[Path]) -> dict[str, list[Slice]]:
    """The CT images among the files, by their SeriesInstanceUID."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    groups: dict[str, list[Slice]] = {}
    for file in sorted(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they cite values
                header = dcmread(file, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
                part = Slice(file.name, file.read_bytes, b"", "", header)
                if header.get("Modality") != "CT" or is_scout(header) or is_capture(header):
                    continue
        except (InvalidDicomError, OSError, EOFError, ValueError):
            continue
        groups.setdefault(str(header.get("SeriesInstanceUID") or ""), []).append(part)
    return groups


def _images(uid: str, folders: tuple[Path, ...], slices: list[Slice]) -> _Images:
    header = slices[0].header
    patient, stated = str(header.get("PatientID") or ""), header.get("SliceThickness")
    thickness = float(stated) if isinstance(stated, float | int) else 0.0
    names = frozenset(str(part.header.get("SOPInstanceUID") or "") for part in slices)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = stack(folders[0].name, slices)
    except InvalidInputError as error:
        return _Images(
            uid=uid, names=names, patient=patient, folders=folders, slice_mm=thickness, grid=None, reason=str(error)
        )
    grid = ImageGrid(
        places={
            str(part.header.get("SOPInstanceUID") or ""): at.tolist()
            for part, at in zip(made.slices, made.positions_lps_mm, strict=True)
        },
        spacing_mm=made.spacing_mm,
        direction=made.direction,
        size=made.size_ijk[:2],
    )
    slice_mm = thickness or made.spacing_mm[2]
    return _Images(uid=uid, names=names, patient=patient, folders=folders, slice_mm=slice_mm, grid=grid)
