"""Reads the files that a user provided as one CT volume, whatever their format."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from apps.medical.adapters.dicom import read_series
from apps.medical.adapters.images import image_suffix, read_image
from apps.medical.adapters.members import first_few, is_harmless
from apps.medical.types import CTVolume
from shared.data.archive import open_archive, unpacked
from shared.errors import InvalidInputError

_MAX_HEADER_BYTES = 1 << 18


def read_volume(files: Sequence[Path], *, series: str | None = None, patient: bool = False) -> CTVolume:
    """The one CT in ``files``, folders or a zip archive: a NRRD, NIfTI or MetaImage file, or a DICOM series.

    For ``series`` and ``patient`` see ``read_series``. Raises ``InvalidInputError``.
    """
    if not files:
        raise InvalidInputError("no file was provided; expected a zip of DICOM files, a NRRD, NIfTI or MetaImage file")
    for file in files:
        if not file.exists():
            raise InvalidInputError(f"{file} does not exist")
    if len(files) == 1 and _is_zip_of_images(files[0]):
        with unpacked(files[0]) as folder:
            return read_volume([folder], series=series, patient=patient)
    labelled = [(path, label) for file in files for path, label in _files(file)]
    images = [path for path, _ in labelled if image_suffix(path)]
    if not images:
        return read_series(files, series=series, patient=patient)
    if len(images) > 1:
        raise InvalidInputError(
            f"{len(images)} volumes were provided ({first_few([f.name for f in images])}); provide only one"
        )
    (image,) = images
    others = [file for file, label in labelled if file != image and not is_harmless(label)]
    data_files = [file for file in others if _is_named(file, image)]
    unrelated = [file.name for file in others if file not in data_files]
    is_data_renamed = not data_files and all(name.lower().endswith("raw") for name in unrelated)
    if unrelated and not is_data_renamed:
        raise InvalidInputError(
            f"{image.name} was provided together with {first_few(unrelated)}; provide one CT in a single format"
        )
    if series is not None:
        raise InvalidInputError(f"{image.name} has no series to choose from; leave out the option `series`")
    return read_image([image, *data_files])


def _files(file: Path) -> list[tuple[Path, str]]:
    """The file, or all files in the folder ``file``, each with its path relative to that folder."""
    if not file.is_dir():
        return [(file, file.name)]
    return [(path, path.relative_to(file).as_posix()) for path in sorted(file.rglob("*")) if path.is_file()]


def _is_named(file: Path, image: Path) -> bool:
    """Whether the header of ``image`` mentions the name of ``file``, as a detached header names its data file."""
    with image.open("rb") as content:
        return file.name.encode() in content.read(_MAX_HEADER_BYTES)


def _is_zip_of_images(file: Path) -> bool:
    if not (file.is_file() and zipfile.is_zipfile(file)):
        return False
    with open_archive(file) as inside:
        names = [member.name for member in inside if not is_harmless(member.name or "?")]
    return any(image_suffix(Path(name)) for name in names) and all(
        image_suffix(Path(n)) or n.lower().endswith("raw") for n in names
    )
