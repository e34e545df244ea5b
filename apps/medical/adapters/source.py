"""From the files that a person handed in to one CT volume."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from apps.medical.adapters.dicom import read_series
from apps.medical.adapters.images import read_image, suffix
from apps.medical.adapters.members import first_few, is_harmless
from apps.medical.types import CTVolume
from shared.data.archive import open_archive, unpacked
from shared.errors import InvalidInputError

_MAX_HEADER_BYTES = 1 << 18


def read_volume(files: Sequence[Path], *, series: str | None = None, patient: bool = False) -> CTVolume:
    """The CT in ``files``, a folder or a zip archive: a NRRD, NIfTI or MetaImage file, or a series of DICOM.

    For ``patient`` see ``read_series``.
    """
    if not files:
        raise InvalidInputError("no file was handed in; expected a zip of DICOM files, a NRRD, NIfTI or MetaImage file")
    for file in files:
        if not file.exists():
            raise InvalidInputError(f"{file} does not exist")
    if len(files) == 1 and _is_zip_of_images(files[0]):
        with unpacked(files[0]) as folder:
            return read_volume([folder], series=series, patient=patient)
    given = [(path, label) for file in files for path, label in _files(file)]
    images = [path for path, _ in given if suffix(path)]
    if not images:
        return read_series(files, series=series, patient=patient)
    if len(images) > 1:
        raise InvalidInputError(
            f"{len(images)} volumes were handed in ({first_few([f.name for f in images])}); hand in one"
        )
    (image,) = images
    others = [file for file, label in given if file != image and not is_harmless(label)]
    beside = [file for file in others if _is_named(file, image)]
    strange = [file.name for file in others if file not in beside]
    renamed = not beside and all(name.lower().endswith("raw") for name in strange)
    if strange and not renamed:
        raise InvalidInputError(
            f"{image.name} was handed in together with {first_few(strange)}; hand in one CT, of one kind of file"
        )
    if series is not None:
        raise InvalidInputError(f"{image.name} holds no series to choose from; leave out the option `series`")
    return read_image([image, *beside])


def _files(file: Path) -> list[tuple[Path, str]]:
    """A file, or all files in a folder, each with its path from there."""
    if not file.is_dir():
        return [(file, file.name)]
    return [(path, path.relative_to(file).as_posix()) for path in sorted(file.rglob("*")) if path.is_file()]


def _is_named(file: Path, image: Path) -> bool:
    """Whether an image's header may name the file, as those do that keep their voxels beside them."""
    with image.open("rb") as content:
        return file.name.encode() in content.read(_MAX_HEADER_BYTES)


def _is_zip_of_images(file: Path) -> bool:
    if not (file.is_file() and zipfile.is_zipfile(file)):
        return False
    with open_archive(file) as inside:
        names = [member.name for member in inside if not is_harmless(member.name or "?")]
    return any(suffix(Path(name)) for name in names) and all(
        suffix(Path(n)) or n.lower().endswith("raw") for n in names
    )
