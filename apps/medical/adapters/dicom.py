"""Reads a DICOM CT series (PS3.3 C.8.2, CT Image) as a ``CTVolume``, or raises an error that says what is wrong."""

from __future__ import annotations

import hashlib
import re
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Iterator, MutableSequence, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.adapters.enhanced import frames, is_enhanced
from apps.medical.adapters.hounsfield import require_hounsfield
from apps.medical.adapters.lossy import lossy_compression, lossy_remarks
from apps.medical.adapters.members import Member, first_few, is_harmless, members
from apps.medical.adapters.pixels import gives_stored_values, integer, read_hounsfield
from apps.medical.adapters.series import (
    Slice,
    captures_remarks,
    choose_series,
    is_capture,
    is_scout,
    reject_projections,
    require_volume,
    slice_thickness_mm,
)
from apps.medical.adapters.stack import Stack, stack
from apps.medical.types import CT_IMAGES, MAX_THIN_SLICE_MM, PATIENT_KEYWORDS, CTVolume, Float64, SourceImage, triple
from shared.errors import InvalidInputError
from shared.threads import compute_threads

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_UID_LENGTH = 64
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_MAX_CACHED_BYTES = 256 << 20
"""The maximum size of file contents that are kept in memory between reading headers and reading pixels."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_ALLOWED_BYTES, _MAX_EXPANSION, _CHUNK_BYTES = 16 << 20, 200, 1 << 20
"""Limits for deflated datasets, see ``_limit_expansion``."""
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
"""The tag of PixelData (7FE0,0010), little-endian."""
_KEYWORDS = (
    *("Modality", "SOPClassUID", "SOPInstanceUID", "PatientID", "ImageType", "ConvolutionKernel", "SeriesNumber"),
    *("InstanceNumber", "NumberOfFrames", "SliceThickness", *_IDENTIFIERS),
    *(
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "Columns",
        "PhotometricInterpretation",
    ),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"),
    *("RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


def read_series(files: Sequence[Path], *, series: str | None = None, patient: bool = False) -> CTVolume:
    """The one CT series in ``files`` (folders, zip archives, DICOM files). For ``series`` see ``choose_series``.

    If ``patient``, the volume keeps the patient's attributes, for a report; otherwise it keeps no name or ID of the
    patient. Raises ``InvalidInputError`` if there is no such series, or it is damaged, incomplete or no chest CT.
    """
    name = files[0].name if len(files) == 1 else "the upload"
    with members(files) as found:
        slices: list[Slice] = []
        others, without_pixels, cached_bytes = [], [], 0
        for member, content in _contents(found):
            images = _parse(member, content, (*_KEYWORDS, *PATIENT_KEYWORDS) if patient else _KEYWORDS)
            if images and cached_bytes + len(content) <= _MAX_CACHED_BYTES:
                cached_bytes += len(content)
                images = [replace(image, read=partial(bytes, content)) for image in images]  # no copy
            slices.extend(images)
            if not images and content[128:132] == b"DICM":
                without_pixels.append(member)
            elif not images and not is_harmless(member.label):
                others.append(member.label)
        if not slices:
            content_note = f"; it holds {first_few(others)}" if others and others != [name] else ""
            kinds = [f"{count} {kind} without images" for kind, count in _modalities(without_pixels).items()]
            content_note = content_note or (f"; it holds {first_few(kinds)}" if kinds else "")
            raise InvalidInputError(
                f"{name} holds no DICOM image{content_note}. Provide a zip or a folder of one chest CT series"
            )
        if others:
            raise InvalidInputError(
                f"{name} holds {first_few(others)} beside DICOM images; remove files that are not of the CT series"
            )
        slices = _without_duplicates(slices)
        if series is None:
            require_volume(name, slices, partial(_modalities, without_pixels))
        images = [part for part in slices if not (is_scout(part.header) or is_capture(part.header))] or slices
        chosen, remarks = choose_series(name, images, series)
        remarks.extend(captures_remarks(chosen, slices))
        for part in chosen:
            _require_ct(part)
        remarks.extend(reject_projections(name, chosen))
        if len({str(part.header.get("PatientID") or "") for part in chosen}) > 1:
            raise InvalidInputError(
                f"{name}: one series holds images of several patients (PatientID); provide those of one patient"
            )
        volume = _assemble(name, chosen, remarks)
        return replace(volume, patient=_patient(chosen[0].header)) if patient else volume


def read_headers(files: Sequence[Path]) -> list[Slice]:
    """The images in DICOM files, with their headers. Files that are damaged or not DICOM are skipped."""
    found: list[Slice] = []
    for file in files:
        with suppress(InvalidInputError, OSError):
            found += _parse(Member(file.name, file.read_bytes), file.read_bytes(), _KEYWORDS)
    return found


def _contents(found: Sequence[Member]) -> Iterator[tuple[Member, bytes]]:
    """Each file with its content, in order. With several threads the next few files are read ahead."""
    threads = compute_threads()
    if threads == 1:
        yield from ((member, member.read()) for member in found)
        return
    pending: deque[tuple[Member, Future[bytes]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="files") as pool:
        for member in found:
            pending.append((member, pool.submit(member.read)))
            if len(pending) > 2 * threads:
                first, content = pending.popleft()
                yield first, content.result()
        for first, content in pending:
            yield first, content.result()


def _parse(member: Member, content: bytes, keywords: Sequence[str]) -> list[Slice]:
    """The images in a file, with the elements ``keywords``; none if it is not DICOM, or has no pixels (as a report).

    Raises ``InvalidInputError`` if a DICOM file is damaged.
    """
    from pydicom import config, dcmread
    from pydicom.dataset import Dataset
    from pydicom.errors import InvalidDicomError

    _limit_expansion(member, content)
    # pydicom's warnings print values, which may include the patient's name.
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some files lack the preamble before the first group.
            stream = BytesIO(content)
            header = dcmread(stream, stop_before_pixels=True, force=content[:2] in (b"\x02\0", b"\x08\0"))
            header_end = stream.tell()
            # pydicom converts a value, and may fail, when it is first accessed.
            for keyword in keywords:
                header.get(keyword)
            for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
                getattr(header, "file_meta", {}).get(keyword)
            if "Rows" in header and "Columns" in header:
                # The dataset returned by dcmread keeps the whole file in memory.
                kept = Dataset()
                for keyword in keywords:
                    if keyword in header:
                        kept[keyword] = header[keyword]
                syntax = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
                at = header_end if content[header_end : header_end + 4] == _PIXEL_DATA_TAG else None
                image = Slice(member.label, member.read, hashlib.sha256(content).digest(), syntax, kept, pixels_at=at)
                return frames(image, header) if is_enhanced(header) else [image]
    except InvalidDicomError:
        return []
    except Exception as error:
        raise InvalidInputError(f"{member.label} is a damaged DICOM file ({error}); export it again") from error
    kind = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    if not is_harmless(member.label) and (not kind or kind in CT_IMAGES):
        raise InvalidInputError(f"{member.label} is a DICOM file that ends within the header; export it again")
    return []


def _modalities(objects: Sequence[Member]) -> Counter[str]:
    """The number of DICOM objects by Modality; "DICOM" stands for a Modality other than 2 to 16 capital letters."""
    from pydicom import dcmread

    kinds: Counter[str] = Counter()
    for member in objects:
        if not is_harmless(member.label):
            header = dcmread(BytesIO(member.read()), stop_before_pixels=True, specific_tags=["Modality"])
            stated = str(header.get("Modality") or "")
            kinds[stated if re.fullmatch("[A-Z]{2,16}", stated) else "DICOM"] += 1
    return kinds


def _limit_expansion(member: Member, content: bytes) -> None:
    """Raises ``InvalidInputError`` (413) for a deflated dataset (PS3.5 A.5) that would expand too much.

    It may expand to ``_ALLOWED_BYTES`` or 200 times its size, whichever is larger. pydicom always inflates the whole
    dataset, even when it stops reading early.
    """
    start = 144 + int.from_bytes(content[140:144], "little")  # the end of the file meta information (PS3.10 7.1)
    if content[128:132] != b"DICM" or _DEFLATED not in content[:start]:
        return
    max_size = max(_ALLOWED_BYTES, _MAX_EXPANSION * len(content))
    decompressor, compressed, size = zlib.decompressobj(-zlib.MAX_WBITS), content[start:], 0
    with suppress(zlib.error):  # dcmread reports the damage
        while compressed and not decompressor.eof:
            size += len(decompressor.decompress(compressed, _CHUNK_BYTES))
            if size > max_size:
                raise InvalidInputError(
                    f"{member.label} would decompress to more than {_MAX_EXPANSION} times its size", status=413
                )
            compressed = decompressor.unconsumed_tail


def _require_ct(part: Slice) -> None:
    modality = part.header.get("Modality")
    if not modality:
        raise InvalidInputError(
            f"{part.file} has no Modality (0008,0060), so it cannot be identified as CT; export it again"
        )
    if modality != "CT":
        raise InvalidInputError(f"{part.file} is {modality}, not CT; provide the CT series")
    if (integer(part, "NumberOfFrames") or 1) > 1:
        raise InvalidInputError(
            f"{part.file} is a multi-frame image, but not enhanced CT; export it as single-frame CT images or as NIfTI"
        )


def _without_duplicates(slices: Sequence[Slice]) -> list[Slice]:
    """Each image once: an export may contain it in two folders, with another file header if two systems wrote it."""
    kept: list[Slice] = []
    first_by_image: dict[tuple[str, ...], Slice] = {}
    for part in {(part.digest, part.frame): part for part in slices}.values():
        # The position is compared because some systems give all images of a series the same SOPInstanceUID.
        keywords = ("SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept")
        first = first_by_image.setdefault(tuple(str(part.header.get(keyword)) for keyword in keywords), part)
        if first is part or not _has_same_pixels(first, part):
            kept.append(part)
    return kept


def _has_same_pixels(first: Slice, second: Slice) -> bool:
    """Whether the PixelData of two single-frame files are the same bytes."""
    starts = first.pixels_at, second.pixels_at
    if None in starts or (first.frame, second.frame) != (None, None) or first.syntax != second.syntax:
        return False
    return first.read()[starts[0] :] == second.read()[starts[1] :]


def _assemble(name: str, slices: list[Slice], remarks: Sequence[str]) -> CTVolume:
    """Sorts the slices along their normal, reads their pixels and stacks them."""
    grid = stack(name, slices)
    columns, rows, _ = grid.size_ijk
    voxels = np.empty((len(slices), rows, columns), np.int16)
    scales = {(str(part.header.get("RescaleSlope")), str(part.header.get("RescaleIntercept"))) for part in slices}
    if len(scales) > 1 and any(part.frame is not None and not gives_stored_values(part) for part in slices):
        raise InvalidInputError(
            f"{name} is compressed, and its frames have different rescale slopes or intercepts; decompress it first"
        )
    read_hounsfield(grid.slices, voxels)
    require_hounsfield(name, voxels)
    header = grid.slices[0].header
    return CTVolume(
        voxels_zyx=voxels,
        spacing_mm=grid.spacing_mm,
        origin_lps_mm=triple(grid.positions_lps_mm[0].tolist()),
        direction=grid.direction,
        identifiers={key: uid for key in _IDENTIFIERS if (uid := _uid(header, key))},
        images=tuple(
            _source_image(part, position) for part, position in zip(grid.slices, grid.positions_lps_mm, strict=True)
        ),
        lossy=lossy_compression(slices),
        remarks=(
            *remarks,
            *_missing_numbers_remarks(grid.slices),
            *_thick_slices_remarks(grid),
            *_invalid_uid_remarks(slices),
            *lossy_remarks(slices),
        ),
    )


def _thick_slices_remarks(grid: Stack) -> list[str]:
    """The remark on thick images that overlap, such as the slab averages that viewers export; empty for others."""
    thickness, spacing = max(slice_thickness_mm(part.header) for part in grid.slices), grid.spacing_mm[2]
    if thickness <= MAX_THIN_SLICE_MM or thickness <= 1.2 * spacing:
        return []
    return [
        f"Images are {thickness:g} mm thick (SliceThickness) and {spacing:.3g} mm apart: nodules smaller than the "
        "thickness may be missed, and sizes are uncertain. If there is a thin series, provide it instead."
    ]


def _missing_numbers_remarks(slices: Sequence[Slice]) -> list[str]:
    """The remark if InstanceNumber skips numbers between all slices, as when only every second one was sent.

    Such slices are evenly spaced, so their positions do not show it. A single gap in the numbers of evenly spaced
    slices means nothing.
    """
    stated = [integer(part, "InstanceNumber") for part in slices]
    numbers = [number for number in stated if number is not None]
    steps = [after - before for before, after in pairwise(numbers)]
    if len(numbers) < len(stated) or min(map(abs, steps)) < 2 or min(steps) < 0 < max(steps):
        return []
    expected = max(numbers) - min(numbers) + 1
    return [
        f"Slices are missing: InstanceNumber runs from {min(numbers)} to {max(numbers)}, which is {expected} images, "
        f"but {len(numbers)} were provided. Provide the complete series: nodules between them may be missed."
    ]


def _uid(header: Dataset, keyword: str) -> str:
    """A unique identifier; empty if it is missing or malformed, because other text might be a name.

    Leading zeros are kept although the standard forbids them (PS3.5 9.1), because the archive matches the study by the
    identifier in its images.
    """
    value = str(header.get(keyword) or "")
    return value if len(value) <= _MAX_UID_LENGTH and re.fullmatch(r"[0-9]+(\.[0-9]+)*", value) else ""


def _invalid_uid_remarks(slices: Sequence[Slice]) -> list[str]:
    """The remark on identifiers that are not valid DICOM UIDs; empty if all are valid."""
    keywords = [*_IDENTIFIERS, "SOPInstanceUID"]
    invalid = [k for k in keywords if any(part.header.get(k) and not _uid(part.header, k) for part in slices)]
    if not invalid:
        return []
    return [
        f"{' and '.join(invalid)} of the images ignored (not a valid DICOM UID: digits and dots, at most 64 "
        "characters): files for the PACS that need it are not made. Correct it on the system that created the images."
    ]


def _patient(header: Dataset) -> dict[str, str]:
    """The patient's attributes by keyword. Of several values, which the standard does not allow, the first is used."""
    values = {keyword: header.get(keyword) or "" for keyword in PATIENT_KEYWORDS}
    return {
        keyword: str(value[0] if isinstance(value, MutableSequence) else value) for keyword, value in values.items()
    }


def _source_image(part: Slice, position: Float64) -> SourceImage:
    return SourceImage(
        instance_number=integer(part, "InstanceNumber"),
        sop_instance_uid=_uid(part.header, "SOPInstanceUID"),
        position_lps_mm=triple(position.tolist()),
        sop_class_uid=str(part.header.get("SOPClassUID") or ""),
        frame=part.frame,
    )
