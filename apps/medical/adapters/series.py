"""Chooses the one series of an export that is read as the chest CT. Series are never mixed, and remarks say what was
chosen and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.types import Float64
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MIN_SLICES = 3
AXIAL = 0.8
"""The minimum cosine between an axial image's normal and the long axis of the body."""

_MAX_SERIES_SHOWN = 8
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PROJECTION = re.compile(r"(.* )?(MIP|MINIP|MNIP)( .*)?|MAXIMUM|MINIMUM|PROJECTION IMAGE|VOLUME RENDERED")
"""ImageType values of projections over several slices; MAXIMUM and MINIMUM in enhanced CT (PS3.3 C.8.16.1.4)."""

_REFORMATTED = {"MPR", "CSA MPR", "REFORMATTED"}
_LUNG_KERNEL = re.compile(r"bl\d\d\w*|lung\w*", re.IGNORECASE)
_SHARP_KERNEL = re.compile(
    r"bl\d\d\w*|lung\w*|[bhu][5-9]\d\w*|[bhqu][a-z][5-9]\d\w*|bone\w*|edge|l|y[a-d]|fc[58]\d", re.IGNORECASE
)
"""Kernel names of Siemens, GE, Philips and Canon.

Siemens names start with a letter for the family (body, head, ultra high, quantitative), on newer scanners a second one
for the type (l for lung, r for regular), then the resolution: 50 and above are sharp (operating instructions of the
SOMATOM Sensation, "Body Kernels"; T. Zhou, Siemens CT Reconstruction Kernels, diagnosticradphys.com, 2025).
"""


@dataclass(frozen=True, slots=True)
class Slice:
    """One image of a series.

    file       name of its file, for messages
    read       reads the content of the file
    digest     SHA-256 of the file
    syntax     transfer syntax UID
    header     the header's elements that are used
    frame      index in a multi-frame file, from 0; None for a single-frame file
    pixels_at  offset of the PixelData element in the file; None if unknown
    """

    file: str
    read: Callable[[], bytes]
    digest: bytes
    syntax: str
    header: Dataset
    frame: int | None = None
    pixels_at: int | None = None


def is_scout(header: Dataset) -> bool:
    """Whether the image is a localizer, which some scanners put into the CT series itself."""
    return "LOCALIZER" in _image_type(header)


def is_capture(header: Dataset) -> bool:
    """Whether the image is a secondary capture without a patient position, such as a screenshot of a workstation."""
    captured = str(header.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE)
    return (captured or "SCREEN SAVE" in _image_type(header)) and not header.get("ImagePositionPatient")


def captures_remarks(chosen: Sequence[Slice], slices: Sequence[Slice]) -> list[str]:
    """The remark on secondary captures in the chosen series, which are not read; empty if there are none."""
    series = {part.header.get("SeriesInstanceUID") for part in chosen}
    count = sum(is_capture(part.header) and part.header.get("SeriesInstanceUID") in series for part in slices)
    if not count or any(is_capture(part.header) for part in chosen):
        return []
    return [
        f"{count} screenshot{'s' if count > 1 else ''} in the series (secondary capture without a position) left out."
    ]


def reject_projections(name: str, chosen: Sequence[Slice]) -> list[str]:
    """Raises ``InvalidInputError`` for projections over several slices. Returns the remark on reformatted images."""
    for part in chosen:
        if kind := _projection(part.header):
            raise InvalidInputError(
                f"{name}: {_describe(chosen)} is a projection (ImageType {kind}), in which nodules can neither be "
                "distinguished from vessels nor measured. Provide the axial series that it was made from"
            )
    if kinds := sorted(_image_type(chosen[0].header) & _REFORMATTED):
        return [
            f"The series was reformatted from another (ImageType {kinds[0]}). If you have the original, provide it."
        ]
    return []


def require_volume(name: str, slices: Sequence[Slice], without_pixels: Callable[[], Mapping[str, int]]) -> None:
    """Raises ``InvalidInputError``, listing the contents, if there are several objects but no CT volume.

    ``without_pixels`` returns the number of DICOM objects without pixels, by modality. A single series, or a single CT
    series beside scouts, screenshots and reports, raises no error here, because the reader's own is more specific.
    """
    groups = list(_by_series(slices).values())
    candidates = [group for group in groups if len(group) >= MIN_SLICES and not _is_auxiliary(group)]
    if any(map(_is_volume, candidates)) or (
        len(candidates) == 1 and candidates[0][0].header.get("Modality") in ("CT", None)
    ):
        return
    objects = without_pixels()
    if len(groups) + len(objects) < 2 and not _is_auxiliary(groups[0]):
        return
    contents = [
        f"{_describe(group)}{', ' + reason if (reason := _reason_no_volume(group)) else ''}"
        for group in groups[:_MAX_SERIES_SHOWN]
    ]
    if len(groups) > _MAX_SERIES_SHOWN:
        contents.append(f"{len(groups) - _MAX_SERIES_SHOWN} more series")
    contents += [f"{count} {kind} without images" for kind, count in sorted(objects.items())]
    raise InvalidInputError(
        f"{name} holds no chest CT in axial slices, but {'; '.join(contents)}. Provide the axial series of the CT"
    )


def _is_auxiliary(group: Sequence[Slice]) -> bool:
    """Whether a series has only scouts and screenshots."""
    return all(is_scout(part.header) or is_capture(part.header) for part in group)


def _reason_no_volume(group: Sequence[Slice]) -> str:
    """Why a series is not a CT in axial slices, in a few words; empty for other modalities."""
    headers = [part.header for part in group]
    if all(map(is_scout, headers)):
        return "scouts"
    if _is_auxiliary(group):
        return "screenshots"
    if any(header.get("Modality") != "CT" for header in headers):
        return ""
    if kind := _derived_type(headers[0]):
        return kind
    if len(group) < MIN_SLICES:
        return "too few images"
    return "not in axial slices" if _heights(headers) is None else "several images at one position"


def _by_series(slices: Sequence[Slice]) -> dict[tuple[str, str], list[Slice]]:
    """The images grouped by StudyInstanceUID and SeriesInstanceUID."""
    groups: dict[tuple[str, str], list[Slice]] = {}
    for part in slices:
        key = str(part.header.get("StudyInstanceUID") or ""), str(part.header.get("SeriesInstanceUID") or "")
        groups.setdefault(key, []).append(part)
    return groups


def choose_series(name: str, slices: Sequence[Slice], series: str | None) -> tuple[list[Slice], list[str]]:
    """The slices of one CT series, and the remarks on the choice.

    ``series`` is the SeriesInstanceUID or SeriesNumber to read. If it is None, the only CT series is read; of several
    in one study, the thinnest axial one; of equally thin ones, the only one with a lung kernel, or else the only one
    with a sharp kernel. Raises ``InvalidInputError`` if the choice is ambiguous.
    """
    groups = _by_series(slices)
    all_groups = list(groups.values())
    if series is not None:
        number = series.lstrip("0") or "0"
        requested = [group for (_, uid), group in groups.items() if series == uid or number == _number(group)]
        if not requested:
            raise InvalidInputError(
                f"{name} holds no series {series}; give the SeriesNumber or SeriesInstanceUID of a series in it"
            )
        if len(requested) > 1:
            raise _ambiguous_series(name, requested)
        others = [group for group in all_groups if group is not requested[0] and len(group) >= MIN_SLICES]
        remarks = (
            [_choice_remark("Several series were provided, and one was requested.", requested[0], others)]
            if others
            else []
        )
        return requested[0], remarks + _stray_images_remarks(requested[0], all_groups)
    # Many exports contain key images, reports and the like beside the series.
    stacks = [group for group in all_groups if len(group) >= MIN_SLICES] or all_groups
    candidates = [group for group in stacks if _is_volume(group)]
    if not candidates and len(stacks) > 1:
        raise _ambiguous_series(name, stacks)
    chosen = _thinnest(name, candidates) if len(candidates) > 1 else (candidates or stacks)[0]
    others = [group for group in stacks if group is not chosen]
    if not others:
        return chosen, _stray_images_remarks(chosen, all_groups)
    remark = _choice_remark("Several series were provided.", chosen, others)
    return chosen, [
        f"{remark} To read another, give it in the option series.",
        *_stray_images_remarks(chosen, all_groups),
    ]


def _stray_images_remarks(chosen: Sequence[Slice], groups: Sequence[Sequence[Slice]]) -> list[str]:
    """The remark on axial images in other series that are too short, as when an export splits a scan; may be empty."""
    count = sum(len(group) for group in groups if group is not chosen and len(group) < MIN_SLICES and _is_volume(group))
    if not count:
        return []
    return [f"{count} axial CT image{'s' if count > 1 else ''} of other series, too few for a volume, left out."]


def _choice_remark(situation: str, chosen: Sequence[Slice], others: Sequence[Sequence[Slice]]) -> str:
    left_out = "; ".join(_describe(group) for group in others)
    return f"{situation} Read: {_describe(chosen)}. Left out: {left_out}."


def _thinnest(name: str, candidates: list[list[Slice]]) -> list[Slice]:
    """The one thinnest candidate, by kernel if several are equally thin. Raises ``InvalidInputError`` if ambiguous."""
    for keyword, subjects in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        if len({str(group[0].header.get(keyword) or "") for group in candidates}) > 1:
            raise _ambiguous_series(name, candidates, f" of several {subjects}")
    minimum = min(_thickness(group) for group in candidates)
    thin = [group for group in candidates if _thickness(group) <= 1.1 * minimum + 0.01]
    if len(thin) == 1:
        return thin[0]
    for kernels in (_LUNG_KERNEL, _SHARP_KERNEL):
        matching = [group for group in thin if kernels.fullmatch(_kernel(group[0].header))]
        if len(matching) == 1:
            return matching[0]
    raise _ambiguous_series(name, candidates)


def best_reconstruction(groups: Sequence[Sequence[Slice]], kernels: Sequence[str] = ()) -> int:
    """The index of the series of a study to read when nobody can be asked.

    Only CT volumes in axial slices are considered. Series with a kernel in ``kernels`` (ConvolutionKernel, ignoring
    case) come first, then the thinnest, then those with a lung kernel, then a sharp kernel, then the most images.
    Returns 0 if there is no such volume.
    """
    # Scouts and captures within a series are left out when it is read, so they do not count against it.
    groups = [[part for part in group if not (is_scout(part.header) or is_capture(part.header))] for group in groups]
    volumes = [n for n, group in enumerate(groups) if len(group) >= MIN_SLICES and _is_volume(group)]
    preferred = {kernel.lower() for kernel in kernels}
    volumes = [n for n in volumes if _kernel(groups[n][0].header).lower() in preferred] or volumes
    if not volumes:
        return 0
    minimum = min(_thickness(groups[n]) for n in volumes)
    thin = [n for n in volumes if _thickness(groups[n]) <= 1.1 * minimum + 0.01]

    def sort_key(index: int) -> tuple[bool, bool, int]:
        kernel = _kernel(groups[index][0].header)
        return not _LUNG_KERNEL.fullmatch(kernel), not _SHARP_KERNEL.fullmatch(kernel), -len(groups[index])

    return min(thin, key=sort_key)


def _ambiguous_series(name: str, groups: Sequence[Sequence[Slice]], qualifier: str = "") -> InvalidInputError:
    """The error that lists the series from which the user must choose one."""
    numbers = [_number(group) for group in groups]
    descriptions = "; ".join(
        _describe(group) + (f" {group[0].header.get('SeriesInstanceUID')}" if numbers.count(number) > 1 else "")
        for group, number in zip(groups[:_MAX_SERIES_SHOWN], numbers, strict=False)
    )
    if len(groups) > _MAX_SERIES_SHOWN:
        descriptions += f"; and {len(groups) - _MAX_SERIES_SHOWN} more"
    return InvalidInputError(
        f"{name} holds {len(groups)} series{qualifier}: {descriptions}. Provide one of them, or give it in the option "
        "`series`"
    )


def _is_volume(group: Sequence[Slice]) -> bool:
    """Whether a series can be a CT in axial slices: only CT images, no projections, and mostly distinct positions."""
    headers = [part.header for part in group]
    if any(header.get("Modality") != "CT" or is_scout(header) or _derived_type(header) for header in headers):
        return False
    heights = _heights(headers)
    return heights is not None and len(np.unique(heights.round(2))) > len(heights) / 2


def _heights(headers: Sequence[Dataset]) -> Float64 | None:
    """The z positions of the images (mm, LPS); None if one has no position or orientation, or is not axial."""
    try:
        orientations = np.array([[float(v) for v in header.ImageOrientationPatient] for header in headers])
        positions = np.array([[float(v) for v in header.ImagePositionPatient] for header in headers])
        normals = np.cross(orientations[:, :3], orientations[:, 3:])
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    return None if not np.abs(normals[:, 2]).min() >= AXIAL else np.asarray(positions[:, 2], np.float64)


def _thickness(group: Sequence[Slice]) -> float:
    """The slice thickness or the slice spacing, whichever is larger, in mm."""
    heights = _heights([part.header for part in group])
    assert heights is not None
    return max(float(np.median(np.diff(np.unique(heights)))), slice_thickness_mm(group[0].header))


def slice_thickness_mm(header: Dataset) -> float:
    """SliceThickness of an image in mm; 0 if it is not stated."""
    value = header.get("SliceThickness")
    return float(value) if isinstance(value, float | int) else 0.0


def _kernel(header: Dataset) -> str:
    kernel = header.get("ConvolutionKernel") or ""
    return str(kernel if isinstance(kernel, str) else next(iter(kernel), "")).strip()


def _image_type(header: Dataset) -> set[str]:
    value = header.get("ImageType") or []
    return {str(part).upper() for part in ([value] if isinstance(value, str) else value)}


def _projection(header: Dataset) -> str:
    """The ImageType value that marks the image as a projection; empty if there is none."""
    return next((part for part in sorted(_image_type(header)) if _PROJECTION.fullmatch(part)), "")


def _derived_type(header: Dataset) -> str:
    """The ImageType value that marks a projection or a multiplanar reformation; empty if there is none."""
    return _projection(header) or next(iter(sorted(_image_type(header) & {"MPR", "CSA MPR"})), "")


def _number(group: Sequence[Slice]) -> str:
    value = group[0].header.get("SeriesNumber")
    return "?" if value is None else str(value)


def _describe(group: Sequence[Slice]) -> str:
    """The series in a few words, without SeriesDescription: free text may name the patient, and messages are kept."""
    header = group[0].header
    thickness, kernel = slice_thickness_mm(header), _kernel(header)
    facts = [
        str(header.get("Modality") or "?"),
        *([f"{thickness:g} mm"] if thickness else []),
        *([f"kernel {kernel}"] if kernel else []),
        f"{len(group)} images",
    ]
    return f"series {_number(group)} ({', '.join(facts)})"
