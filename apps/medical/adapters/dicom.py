"""A CT series in DICOM (PS3.3 C.8.2, CT Image) to a ``CTVolume``, or a refusal that says what is wrong."""

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
from apps.medical.adapters.hounsfield import must_be_hounsfield
from apps.medical.adapters.lossy import lossy_compression, lossy_remarks
from apps.medical.adapters.members import Member, first_few, is_harmless, members
from apps.medical.adapters.pixels import gives_stored_values, integer, read_hounsfield
from apps.medical.adapters.series import (
    Slice,
    captures_left_out,
    choose_series,
    is_capture,
    is_scout,
    must_be_slices,
    must_hold_a_volume,
    slice_thickness_mm,
)
from apps.medical.adapters.stack import Stack, stack
from apps.medical.types import MAX_THIN_SLICE_MM, PATIENT_KEYWORDS, CTVolume, Float64, SourceImage
from shared.errors import InvalidInputError
from shared.threads import compute_threads

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LONGEST_UID = 64
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_HELD_BYTES = 256 << 20
"""Of files whose content is kept from the reading of their headers; those beyond are read, and unpacked, once more."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_ALWAYS_TAKEN_BYTES, _MAX_EXPANSION, _PORTION = 16 << 20, 200, 1 << 20
_PIXELS = b"\xe0\x7f\x10\x00"
"""The tag of PixelData (7FE0,0010) in little endian."""
_CT_IMAGES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
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
    """The one CT series in ``files`` (a folder, a zip archive, DICOM files); for ``series`` see ``choose_series``.

    ``patient`` keeps whose it is with the volume, for a report; otherwise no name or number of a patient is kept.
    """
    name = files[0].name if len(files) == 1 else "the upload"
    with members(files) as found:
        slices: list[Slice] = []
        others, without_pixels, held = [], [], 0
        for member, content in _contents(found):
            images = _parse(member, content, (*_KEYWORDS, *PATIENT_KEYWORDS) if patient else _KEYWORDS)
            if images and held + len(content) <= _HELD_BYTES:
                held += len(content)
                images = [replace(image, read=partial(bytes, content)) for image in images]  # no copy
            slices.extend(images)
            if not images and content[128:132] == b"DICM":
                without_pixels.append(member)
            elif not images and not is_harmless(member.label):
                others.append(member.label)
        if not slices:
            inside = f"; it holds {first_few(others)}" if others and others != [name] else ""
            kinds = [f"{count} {kind} without images" for kind, count in _modalities(without_pixels).items()]
            inside = inside or (f"; it holds {first_few(kinds)}" if kinds else "")
            raise InvalidInputError(
                f"{name} holds no DICOM image{inside}. Hand in a zip or a folder of one chest CT series"
            )
        if others:
            raise InvalidInputError(
                f"{name} holds {first_few(others)} beside DICOM images; take out what is not of the one CT series"
            )
        slices = _without_copies(slices)
        if series is None:
            must_hold_a_volume(name, slices, partial(_modalities, without_pixels))
        images = [part for part in slices if not (is_scout(part.header) or is_capture(part.header))] or slices
        chosen, remarks = choose_series(name, images, series)
        remarks.extend(captures_left_out(chosen, slices))
        for part in chosen:
            _must_be_ct(part)
        remarks.extend(must_be_slices(name, chosen))
        if len({str(part.header.get("PatientID") or "") for part in chosen}) > 1:
            raise InvalidInputError(
                f"{name}: one series holds images of several patients (PatientID); hand in one patient's"
            )
        volume = _assemble(name, chosen, remarks)
        return replace(volume, patient=_patient(chosen[0].header)) if patient else volume


def read_headers(files: Sequence[Path]) -> list[Slice]:
    """The images in DICOM files, by their headers; none of a file that is damaged or no DICOM."""
    found: list[Slice] = []
    for file in files:
        with suppress(InvalidInputError, OSError):
            found += _parse(Member(file.name, file.read_bytes), file.read_bytes(), _KEYWORDS)
    return found


def _contents(found: Sequence[Member]) -> Iterator[tuple[Member, bytes]]:
    """Each file with its content, in order; where there are several threads the next few are unpacked meanwhile."""
    threads = compute_threads()
    if threads == 1:
        yield from ((member, member.read()) for member in found)
        return
    waiting: deque[tuple[Member, Future[bytes]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="files") as pool:
        for member in found:
            waiting.append((member, pool.submit(member.read)))
            if len(waiting) > 2 * threads:
                first, content = waiting.popleft()
                yield first, content.result()
        for first, content in waiting:
            yield first, content.result()


def _parse(member: Member, content: bytes, keywords: Sequence[str]) -> list[Slice]:
    """The images in a file, with these elements; none where it is not DICOM, or DICOM without pixels (reports)."""
    from pydicom import config, dcmread
    from pydicom.dataset import Dataset
    from pydicom.errors import InvalidDicomError

    _must_not_grow(member, content)
    # Its warnings cite values, which may name the patient, on the terminal.
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some have lost what stands before the first group.
            opened = BytesIO(content)
            header = dcmread(opened, stop_before_pixels=True, force=content[:2] in (b"\x02\0", b"\x08\0"))
            stopped_at = opened.tell()
            # Values are converted when they are first asked for.
            for keyword in keywords:
                header.get(keyword)
            for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
                getattr(header, "file_meta", {}).get(keyword)
            if "Rows" in header and "Columns" in header:
                # The dataset that was read holds the whole file.
                kept = Dataset()
                for keyword in keywords:
                    if keyword in header:
                        kept[keyword] = header[keyword]
                syntax = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
                at = stopped_at if content[stopped_at : stopped_at + 4] == _PIXELS else None
                image = Slice(member.label, member.read, hashlib.sha256(content).digest(), syntax, kept, pixels_at=at)
                return frames(image, header) if is_enhanced(header) else [image]
    except InvalidDicomError:
        return []
    except Exception as error:
        raise InvalidInputError(f"{member.label} is a damaged DICOM file ({error}); export it again") from error
    kind = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    if not is_harmless(member.label) and (not kind or kind in _CT_IMAGES):
        raise InvalidInputError(f"{member.label} is a DICOM file that ends within its header; export it again")
    return []


def _modalities(objects: Sequence[Member]) -> Counter[str]:
    """How many DICOM objects there are of each Modality; "DICOM" where it is none of the standard's short words."""
    from pydicom import dcmread

    kinds: Counter[str] = Counter()
    for member in objects:
        if not is_harmless(member.label):
            header = dcmread(BytesIO(member.read()), stop_before_pixels=True, specific_tags=["Modality"])
            stated = str(header.get("Modality") or "")
            kinds[stated if re.fullmatch("[A-Z]{2,16}", stated) else "DICOM"] += 1
    return kinds


def _must_not_grow(member: Member, content: bytes) -> None:
    """Refuses a deflated dataset (PS3.5 A.5) larger than ``_ALWAYS_TAKEN_BYTES`` and 200 times its size.

    pydicom unpacks it whole, wherever it is to stop.
    """
    start = 144 + int.from_bytes(content[140:144], "little")  # PS3.10 7.1: what stands before has this length
    if content[128:132] != b"DICM" or _DEFLATED not in content[:start]:
        return
    most = max(_ALWAYS_TAKEN_BYTES, _MAX_EXPANSION * len(content))
    unpacker, packed, size = zlib.decompressobj(-zlib.MAX_WBITS), content[start:], 0
    with suppress(zlib.error):  # whoever reads it says what is damaged
        while packed and not unpacker.eof:
            size += len(unpacker.decompress(packed, _PORTION))
            if size > most:
                raise InvalidInputError(
                    f"{member.label} would unpack to more than {_MAX_EXPANSION} times its size", status=413
                )
            packed = unpacker.unconsumed_tail


def _must_be_ct(part: Slice) -> None:
    modality = part.header.get("Modality")
    if not modality:
        raise InvalidInputError(
            f"{part.file} has no Modality tag (0008,0060), so that it cannot be known for CT; export anew"
        )
    if modality != "CT":
        raise InvalidInputError(f"{part.file} is {modality}, not CT; hand in the CT series")
    if (integer(part, "NumberOfFrames") or 1) > 1:
        raise InvalidInputError(
            f"{part.file} is a multi-frame image, but no enhanced CT; export it as single-frame CT images, or as NIfTI"
        )


def _without_copies(slices: Sequence[Slice]) -> list[Slice]:
    """Each image once: an export may hold the same file in two folders."""
    return list({(part.digest, part.frame): part for part in slices}.values())


def _assemble(name: str, slices: list[Slice], remarks: Sequence[str]) -> CTVolume:
    """Sorts slices along their normal and stacks them."""
    grid = stack(name, slices)
    columns, rows, _ = grid.size_ijk
    voxels = np.empty((len(slices), rows, columns), np.int16)
    scales = {(str(part.header.get("RescaleSlope")), str(part.header.get("RescaleIntercept"))) for part in slices}
    if len(scales) > 1 and any(part.frame is not None and not gives_stored_values(part) for part in slices):
        raise InvalidInputError(f"{name} is compressed, and its frames differ in their scale; decompress it first")
    read_hounsfield(grid.slices, voxels)
    must_be_hounsfield(name, voxels)
    header = grid.slices[0].header
    return CTVolume(
        voxels_zyx=voxels,
        spacing_mm=grid.spacing_mm,
        origin_lps_mm=_triple(grid.positions_lps_mm[0]),
        direction=grid.direction,
        identifiers={key: uid for key in _IDENTIFIERS if (uid := _uid(header, key))},
        images=tuple(_source(part, place) for part, place in zip(grid.slices, grid.positions_lps_mm, strict=True)),
        lossy=lossy_compression(slices),
        remarks=(*remarks, *_skipped(grid.slices), *_thick(grid), *_malformed(slices), *lossy_remarks(slices)),
    )


def _thick(grid: Stack) -> list[str]:
    """What is to be said of images that overlap and are thick each, as the means over slabs are that viewers export."""
    thickness, apart = max(slice_thickness_mm(part.header) for part in grid.slices), grid.spacing_mm[2]
    if thickness <= MAX_THIN_SLICE_MM or thickness <= 1.2 * apart:
        return []
    return [
        f"Each image is {thickness:g} mm thick, and they lie {apart:.3g} mm apart (SliceThickness): nodules smaller "
        "than an image is thick may be missed, and sizes are uncertain. Where there is a thin series, hand it in."
    ]


def _skipped(slices: Sequence[Slice]) -> list[str]:
    """What is to be said where InstanceNumber leaves some out between all slices, as where every second one was sent.

    Their distance is even then, and tells nothing. Between even slices a single number that is left out means nothing.
    """
    numbers = [integer(part, "InstanceNumber") for part in slices]
    told = [number for number in numbers if number is not None]
    steps = [after - before for before, after in pairwise(told)]
    if len(told) < len(numbers) or min(map(abs, steps)) < 2 or min(steps) < 0 < max(steps):
        return []
    whole = max(told) - min(told) + 1
    return [
        f"Slices are missing: of the {whole} images that InstanceNumber counts from {min(told)} to {max(told)}, "
        f"{len(told)} were handed in. Hand in the complete series: nodules between them may be missed."
    ]


def _uid(header: Dataset, keyword: str) -> str:
    """A unique identifier; empty where there is none, or what stands there is none and might be a name.

    Leading zeros, against the standard (PS3.5 9.1), are left: an archive knows the study by what its images say.
    """
    value = str(header.get(keyword) or "")
    return value if len(value) <= _LONGEST_UID and re.fullmatch(r"[0-9]+(\.[0-9]+)*", value) else ""


def _malformed(slices: Sequence[Slice]) -> list[str]:
    """What is to be said of identifiers that are none."""
    keywords = [*_IDENTIFIERS, "SOPInstanceUID"]
    bad = [k for k in keywords if any(part.header.get(k) and not _uid(part.header, k) for part in slices)]
    if not bad:
        return []
    return [
        f"{' and '.join(bad)} of the images left out (no unique identifier of DICOM: digits and dots, at most 64 "
        "characters): files for the PACS that need it are not made. Have the system that made the images mend it."
    ]


def _patient(header: Dataset) -> dict[str, str]:
    """Of an element with several values, against the standard, the first."""
    values = {keyword: header.get(keyword) or "" for keyword in PATIENT_KEYWORDS}
    return {
        keyword: str(value[0] if isinstance(value, MutableSequence) else value) for keyword, value in values.items()
    }


def _source(part: Slice, position: Float64) -> SourceImage:
    return SourceImage(
        instance_number=integer(part, "InstanceNumber"),
        sop_instance_uid=_uid(part.header, "SOPInstanceUID"),
        position_lps_mm=_triple(position),
        sop_class_uid=str(part.header.get("SOPClassUID") or ""),
        frame=part.frame,
    )


def _triple(vector: Float64) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
