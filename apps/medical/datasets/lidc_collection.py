"""Finds the CT series of a LIDC-IDRI download and the readers' marks in each.

Reading the headers of its 244,000 images takes minutes. So the result is cached in the user's cache, under a digest of
the names, sizes and modification times of the files.
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
from apps.medical.adapters.series import Slice, is_capture, is_scout, slice_thickness_mm
from apps.medical.adapters.stack import stack
from apps.medical.datasets.lidc_nodules import ImageGrid, PlacedMark, place
from apps.medical.datasets.lidc_xml import RADIOGRAPH, Message, read_message
from shared.data.build_cache import get_or_build, parallel_imap
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar

VERSION = 3
MIN_FOLDERS_FOR_PROCESSES = 8
"""Fewer folders are read in this process, because starting others takes longer."""

_KEYWORDS = (
    *("PatientID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSeries:
    """An annotated CT series.

    uid        SeriesInstanceUID
    patient    PatientID, or the SeriesInstanceUID if it is missing
    folders    the folders of its images, relative to the root
    slice_mm   SliceThickness, or the slice spacing if it is missing
    marks      the marks of all readers
    """

    uid: str
    patient: str
    folders: tuple[str, ...]
    slice_mm: float
    marks: tuple[PlacedMark, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """The usable series, ``notes`` on skipped files and series, and the SHA-256 of the readers' XML."""

    series: tuple[ReadSeries, ...]
    notes: Mapping[str, str]
    xml_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _SeriesImages:
    """The images of a CT series in one or more folders; ``names`` are their SOPInstanceUIDs.

    ``grid`` is None if they are not a usable volume, for ``reason``.
    """

    uid: str
    names: frozenset[str]
    patient: str
    folders: tuple[Path, ...]
    slice_mm: float
    grid: ImageGrid | None
    reason: str = ""


def read_collection(root: Path, annotations: Path | None) -> Collection:
    """Reads the CT series below ``root`` and their readers' XML, which is below ``root`` or ``annotations``.

    Raises InvalidInputError if a folder is missing, there is no CT series with usable XML, or an XML file is invalid.
    """
    for folder in (root, annotations):
        if folder is not None and not folder.is_dir():
            raise InvalidInputError(
                f"{folder} is not a folder; give the folder of the download with --data.root and, if the XML is "
                "elsewhere, its folder with --data.annotations"
            )
    root_files = {path: (size, modified) for path, size, modified in _list_files(root)}
    files = root_files
    if annotations is not None:
        files = root_files | {path: (size, modified) for path, size, modified in _list_files(annotations)}
    key = [VERSION, root.resolve().as_posix(), sorted((str(path), *status) for path, status in files.items())]
    name = f"lidc-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}"
    xml = sorted(path for path in files if path.suffix.lower() == ".xml")
    others = [path for path in root_files if path.suffix.lower() != ".xml"]
    folder = get_or_build(name, lambda new_folder: _write_collection(_build_collection(root, xml, others), new_folder))
    return _load_collection(folder)


def _list_files(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, size and modification time of every file that is not hidden."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if not name.startswith("."):
                path = Path(parent, name)
                with suppress(FileNotFoundError):  # a broken link
                    status = path.stat()
                    yield path, status.st_size, status.st_mtime_ns


def _write_collection(collection: Collection, folder: Path) -> None:
    (folder / "collection.json").write_text(json.dumps(asdict(collection)), encoding="utf-8")


@lru_cache(maxsize=2)
def _load_collection(folder: Path) -> Collection:
    content = json.loads((folder / "collection.json").read_text(encoding="utf-8"))
    series = [
        ReadSeries(
            **{
                **entry,
                "folders": tuple(entry["folders"]),
                "marks": tuple(PlacedMark(**{**m, "centre_lps_mm": tuple(m["centre_lps_mm"])}) for m in entry["marks"]),
            }
        )
        for entry in content["series"]
    ]
    return Collection(series=tuple(series), notes=content["notes"], xml_sha256=content["xml_sha256"])


def _build_collection(root: Path, xml: Sequence[Path], others: Sequence[Path]) -> Collection:
    messages, kinds, conflicting = _read_messages(xml)
    if not messages and not conflicting:
        raise InvalidInputError(
            f"{root} holds no XML of LIDC-IDRI's readers (LidcReadMessage); give its folder with --data.annotations"
        )
    by_folder: dict[Path, list[Path]] = {}
    for path in others:
        by_folder.setdefault(path.parent, []).append(path)
    calls = sorted(by_folder.items())
    run = parallel_imap if len(calls) >= MIN_FOLDERS_FOR_PROCESSES else starmap
    images_by_uid: dict[str, list[_SeriesImages]] = {}
    for folder_images in progress_bar(run(_read_folder, calls), len(calls), "reading headers"):
        for images in folder_images:
            images_by_uid.setdefault(images.uid, []).append(images)
    if not images_by_uid:
        raise InvalidInputError(f"{root} holds no CT images in DICOM; give the folder of the download with --data.root")
    usable = []
    unusable = [f"{uid} (several XML files that differ)" for uid in sorted(conflicting & images_by_uid.keys())]
    for uid, (message, file) in sorted(messages.items()):
        if uid not in images_by_uid:
            continue
        series = _annotate(message, images_by_uid[uid], root)
        if isinstance(series, ReadSeries):
            usable.append(series)
        else:
            unusable.append(f"{uid} ({file.name}: {series})")
    if not usable:
        raise InvalidInputError(
            f"{root} holds no usable CT series with readers' marks: "
            f"{first_few(unusable) if unusable else 'the XML is of other series'}"
        )
    without_images = [file.name for uid, (_, file) in messages.items() if uid not in images_by_uid]
    without_xml = [uid for uid in images_by_uid if uid not in messages and uid not in conflicting]
    notes = {
        "CT series without XML": _count_and_names(without_xml),
        "XML without its CT series": _count_and_names(without_images),
        "XML of radiographs": str(kinds.pop(RADIOGRAPH, 0)),
        "other XML": str(sum(kinds.values())),
        "series left out": _count_and_names(unusable),
    }
    digest = hashlib.sha256("".join(sorted(message.sha256 for message, _ in messages.values())).encode()).hexdigest()
    return Collection(series=tuple(usable), notes=notes, xml_sha256=digest)


def _count_and_names(names: Sequence[str]) -> str:
    return f"{len(names)}: {first_few(names)}" if names else "0"


def _read_messages(xml: Sequence[Path]) -> tuple[dict[str, tuple[Message, Path]], Counter[str], set[str]]:
    """Reads the XML files.

    Returns the readers' marks and their file by series, the number of files of each other kind, and the series for
    which two files differ.
    """
    messages: dict[str, tuple[Message, Path]] = {}
    kinds: Counter[str] = Counter()
    conflicting = set()
    for file in progress_bar(xml, len(xml), "reading XML"):
        message = read_message(file)
        if isinstance(message, str):
            kinds[message] += 1
        elif messages.setdefault(message.series, (message, file))[0].sha256 != message.sha256:
            conflicting.add(message.series)
    return {uid: entry for uid, entry in messages.items() if uid not in conflicting}, kinds, conflicting


def _annotate(message: Message, images: Sequence[_SeriesImages], root: Path) -> ReadSeries | str:
    """The series with its readers' marks, or the reason why it is unusable."""
    # After a repeated or interrupted download one folder may contain all images of the others.
    best = max(images, key=lambda folder: len(folder.names))
    if not all(folder.names <= best.names for folder in images):
        best = _merge_folders(images)
    if best.grid is None:
        return best.reason
    try:
        marks = [
            place(mark, reader, best.grid)
            for reader, reader_marks in enumerate(message.readers)
            for mark in reader_marks
        ]
    except InvalidInputError as error:
        return str(error)
    return ReadSeries(
        uid=best.uid,
        patient=best.patient or best.uid,
        folders=tuple(folder.relative_to(root).as_posix() for folder in best.folders),
        slice_mm=best.slice_mm,
        marks=tuple(marks),
    )


def _read_folder(folder: Path, files: Sequence[Path]) -> list[_SeriesImages]:
    """Reads the headers of the CT series in a folder."""
    return [_series_images(uid, (folder,), slices) for uid, slices in _slices_by_series(files).items() if uid]


def _merge_folders(images: Sequence[_SeriesImages]) -> _SeriesImages:
    """A series with images in several folders. An image that is in two of them counts once, as when it is read."""
    folders = tuple(part.folders[0] for part in images)
    files = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    slices = _slices_by_series(files)[images[0].uid]
    return _series_images(
        images[0].uid, folders, list({hashlib.sha256(part.read()).digest(): part for part in slices}.values())
    )


def _slices_by_series(files: Sequence[Path]) -> dict[str, list[Slice]]:
    """The CT images among the files, by their SeriesInstanceUID."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    groups: dict[str, list[Slice]] = {}
    for file in sorted(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's warnings quote header values
                header = dcmread(file, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
                part = Slice(file.name, file.read_bytes, b"", "", header)
                if header.get("Modality") != "CT" or is_scout(header) or is_capture(header):
                    continue
        except (InvalidDicomError, OSError, EOFError, ValueError):
            continue
        groups.setdefault(str(header.get("SeriesInstanceUID") or ""), []).append(part)
    return groups


def _series_images(uid: str, folders: tuple[Path, ...], slices: list[Slice]) -> _SeriesImages:
    """The images of a series, with their grid if they stack to a usable volume."""
    header = slices[0].header
    patient, thickness = str(header.get("PatientID") or ""), slice_thickness_mm(header)
    names = frozenset(str(part.header.get("SOPInstanceUID") or "") for part in slices)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stacked = stack(folders[0].name, slices)
    except InvalidInputError as error:
        return _SeriesImages(
            uid=uid, names=names, patient=patient, folders=folders, slice_mm=thickness, grid=None, reason=str(error)
        )
    grid = ImageGrid(
        places={
            str(part.header.get("SOPInstanceUID") or ""): at.tolist()
            for part, at in zip(stacked.slices, stacked.positions_lps_mm, strict=True)
        },
        spacing_mm=stacked.spacing_mm,
        direction=stacked.direction,
        size=stacked.size_ijk[:2],
    )
    slice_mm = thickness or stacked.spacing_mm[2]
    return _SeriesImages(uid=uid, names=names, patient=patient, folders=folders, slice_mm=slice_mm, grid=grid)
