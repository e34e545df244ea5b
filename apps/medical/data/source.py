"""From the files that a person handed in to one CT volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.medical.data.archive import is_harmless, some
from apps.medical.data.dicom import read_series
from apps.medical.data.images import read_image, suffix
from apps.medical.types import CTVolume
from shared.refusal import Refusal

_LONGEST_HEADER = 1 << 18


def read_volume(files: Sequence[Path], *, series: str | None = None) -> CTVolume:
    """The CT in ``files``: a NRRD, NIfTI or MetaImage file, or DICOM as files, a folder or a zip archive."""
    if not files:
        raise Refusal("no file was handed in; expected a zip of DICOM files, a NRRD, NIfTI or MetaImage file")
    for file in files:
        if not file.exists():
            raise Refusal(f"{file} does not exist")
    images = [file for file in files if file.is_file() and suffix(file)]
    if len(images) > 1:
        raise Refusal(f"{len(images)} volumes were handed in ({', '.join(f.name for f in images)}); hand in one")
    if not images:
        return read_series(files, series=series)
    (image,) = images
    others = [file.name for file in files if file != image and not (is_harmless(file.name) or _is_named(file, image))]
    if others:
        raise Refusal(f"{image.name} was handed in together with {some(others)}; hand in one CT, of one kind of file")
    return read_image(files)


def _is_named(file: Path, image: Path) -> bool:
    """Whether an image's header may name the file, as those do that keep their voxels beside them."""
    with image.open("rb") as content:
        return file.is_file() and file.name.encode() in content.read(_LONGEST_HEADER)
