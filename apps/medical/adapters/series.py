"""Which images of an export are the chest CT to be read: one series, chosen openly, never several mixed."""

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
"""The least cosine between an axial image's normal and the long axis of the body."""

_LISTED = 8
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PROJECTION = re.compile(r"(.* )?(MIP|MINIP|MNIP)( .*)?|MAXIMUM|MINIMUM|PROJECTION IMAGE|VOLUME RENDERED")
"""What ImageType says of images of more than their slices; MAXIMUM and MINIMUM in enhanced CT (PS3.3 C.8.16.1.4)."""

_REFORMATTED = {"MPR", "CSA MPR", "REFORMATTED"}
_LUNG_KERNEL = re.compile(r"bl\d\d\w*|lung\w*", re.IGNORECASE)
_SHARP_KERNEL = re.compile(
    r"bl\d\d\w*|lung\w*|[bhu][5-9]\d\w*|[bhqu][a-z][5-9]\d\w*|bone\w*|edge|l|y[a-d]|fc[58]\d", re.IGNORECASE
)
"""By the names of Siemens, GE, Philips and Canon.

Siemens' have a letter for the family (body, head, ultra high, quantitative), on newer scanners a second for
the kind (l for lung, r for regular), then the resolution: sharp from 50 on (operating instructions of the SOMATOM
Sensation, "Body Kernels"; T. Zhou, Siemens CT Reconstruction Kernels, diagnosticradphys.com, 2025).
"""


@dataclass(frozen=True, slots=True)
class Slice:
    """One image: what its file is called, what reads that and its SHA-256, its transfer syntax, and its header.

    ``frame`` counts from 0 in a file of several; None in one of a single image. ``pixels_at`` is where the element of
    the pixels begins in the file; None where that is not known.
    """

    file: str
    read: Callable[[], bytes]
    digest: bytes
    syntax: str
    header: Dataset
    frame: int | None = None
    pixels_at: int | None = None


def is_scout(header: Dataset) -> bool:
    """Whether it is a localizer, which some scanners put into the series itself."""
    return "LOCALIZER" in _image_type(header)


def is_capture(header: Dataset) -> bool:
    """Whether it is a secondary capture without a place in the patient, as a screen that a workstation saved."""
    captured = str(header.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE)
    return (captured or "SCREEN SAVE" in _image_type(header)) and not header.get("ImagePositionPatient")


def captures_left_out(chosen: Sequence[Slice], slices: Sequence[Slice]) -> list[str]:
    """What is said of the captures that stand in the series that was chosen."""
    series = {part.header.get("SeriesInstanceUID") for part in chosen}
    count = sum(is_capture(part.header) and part.header.get("SeriesInstanceUID") in series for part in slices)
    if not count or any(is_capture(part.header) for part in chosen):
        return []
    return [
        f"{count} saved screen{'s' if count > 1 else ''} of the series (secondary capture, without a place) left out."
    ]


def must_be_slices(name: str, chosen: Sequence[Slice]) -> list[str]:
    """Refuses projections, whose values are no slice's; what is said of images that were reformatted from others."""
    for part in chosen:
        if kind := _projection(part.header):
            raise InvalidInputError(
                f"{name}: {_describe(chosen)} is a projection (ImageType {kind}), in which nodules can neither be told "
                "from vessels nor measured. Hand in the axial series that it was made from"
            )
    if kinds := sorted(_image_type(chosen[0].header) & _REFORMATTED):
        return [f"The series was reformatted from another (ImageType {kinds[0]}). Where there is that one, hand it in."]
    return []


def must_hold_a_volume(name: str, slices: Sequence[Slice], without_pixels: Callable[[], Mapping[str, int]]) -> None:
    """Refuses what holds no CT volume and more than one thing, with what it holds.

    ``without_pixels`` tells how many DICOM objects beside the images have none, by their modality. Of a single series
    its reader says better what is wrong with it, as of a single CT series beside scouts, saved screens and reports.
    """
    groups = list(_by_series(slices).values())
    whole = [group for group in groups if len(group) >= MIN_SLICES and not _is_beside(group)]
    if any(map(_is_volume, whole)) or (len(whole) == 1 and whole[0][0].header.get("Modality") in ("CT", None)):
        return
    objects = without_pixels()
    if len(groups) + len(objects) < 2 and not _is_beside(groups[0]):
        return
    held = [f"{_describe(group)}{', ' + why if (why := _why_no_volume(group)) else ''}" for group in groups[:_LISTED]]
    if len(groups) > _LISTED:
        held.append(f"{len(groups) - _LISTED} more series")
    held += [f"{count} {kind} without images" for kind, count in sorted(objects.items())]
    raise InvalidInputError(
        f"{name} holds no chest CT in axial slices, but {'; '.join(held)}. Hand in the axial series of the CT"
    )


def _is_beside(group: Sequence[Slice]) -> bool:
    """Whether a series has nothing but scouts and saved screens."""
    return all(is_scout(part.header) or is_capture(part.header) for part in group)


def _why_no_volume(group: Sequence[Slice]) -> str:
    """What the images of a series are, in place of a CT in axial slices; nothing of other modalities."""
    headers = [part.header for part in group]
    if all(map(is_scout, headers)):
        return "scouts"
    if _is_beside(group):
        return "saved screens"
    if any(header.get("Modality") != "CT" for header in headers):
        return ""
    if kind := _made_of_others(headers[0]):
        return kind
    if len(group) < MIN_SLICES:
        return "too few"
    return "not in axial slices" if _heights(headers) is None else "several at one place"


def _by_series(slices: Sequence[Slice]) -> dict[tuple[str, str], list[Slice]]:
    """The images by StudyInstanceUID and SeriesInstanceUID."""
    groups: dict[tuple[str, str], list[Slice]] = {}
    for part in slices:
        key = str(part.header.get("StudyInstanceUID") or ""), str(part.header.get("SeriesInstanceUID") or "")
        groups.setdefault(key, []).append(part)
    return groups


def choose_series(name: str, slices: Sequence[Slice], series: str | None) -> tuple[list[Slice], list[str]]:
    """The slices of one CT series, and what a reader must be told of the choice.

    ``series`` names it by SeriesInstanceUID or SeriesNumber. Otherwise the only CT series is taken; of several in one
    study the thinnest axial one, and of equally thin ones that with a lung kernel, or the only sharp one. Refuses where
    that leaves a doubt.
    """
    groups = _by_series(slices)
    all_groups = list(groups.values())
    if series is not None:
        number = series.lstrip("0") or "0"
        asked = [group for (_, uid), group in groups.items() if series == uid or number == _number(group)]
        if not asked:
            raise InvalidInputError(
                f"{name} holds no series {series}; name a SeriesNumber or SeriesInstanceUID that is in it"
            )
        if len(asked) > 1:
            raise _several(name, asked)
        others = [group for group in all_groups if group is not asked[0] and len(group) >= MIN_SLICES]
        said = [_of_several("Several series were handed in, and one was named.", asked[0], others)] if others else []
        return asked[0], said + _too_few(asked[0], all_groups)
    # Key images, reports and the like lie beside the series in many exports.
    several = [group for group in all_groups if len(group) >= MIN_SLICES] or all_groups
    candidates = [group for group in several if _is_volume(group)]
    if not candidates and len(several) > 1:
        raise _several(name, several)
    chosen = _thinnest(name, candidates) if len(candidates) > 1 else (candidates or several)[0]
    others = [group for group in several if group is not chosen]
    if not others:
        return chosen, _too_few(chosen, all_groups)
    several_read = _of_several("Several series were handed in.", chosen, others)
    return chosen, [f"{several_read} To read another, name it in the option series.", *_too_few(chosen, all_groups)]


def _too_few(chosen: Sequence[Slice], groups: Sequence[Sequence[Slice]]) -> list[str]:
    """What is said of axial images that stand under another series' identifier, as where an export split a scan."""
    few = sum(len(group) for group in groups if group is not chosen and len(group) < MIN_SLICES and _is_volume(group))
    if not few:
        return []
    return [f"{few} axial CT image{'s' if few > 1 else ''} of other series, too few for a volume, left out."]


def _of_several(why: str, chosen: Sequence[Slice], others: Sequence[Sequence[Slice]]) -> str:
    left = "; ".join(_describe(group) for group in others)
    return f"{why} Read: {_describe(chosen)}. Left out: {left}."


def _thinnest(name: str, candidates: list[list[Slice]]) -> list[Slice]:
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        if len({str(group[0].header.get(keyword) or "") for group in candidates}) > 1:
            raise _several(name, candidates, f" of several {what}")
    least = min(_thickness(group) for group in candidates)
    thin = [group for group in candidates if _thickness(group) <= 1.1 * least + 0.01]
    if len(thin) == 1:
        return thin[0]
    for kernels in (_LUNG_KERNEL, _SHARP_KERNEL):
        fitting = [group for group in thin if kernels.fullmatch(_kernel(group[0].header))]
        if len(fitting) == 1:
            return fitting[0]
    raise _several(name, candidates)


def best_reconstruction(groups: Sequence[Sequence[Slice]], kernels: Sequence[str] = ()) -> int:
    """The index of the series that is to be read, of one study's, where one must be taken without asking.

    Of CT volumes in axial slices one with a kernel of ``kernels`` (ConvolutionKernel, without case), then the thinnest,
    of equally thin ones that with a lung kernel, then a sharp one, then that of the most images. Without a volume the
    first.
    """
    # What is left out of a series when it is read tells nothing against it.
    groups = [[one for one in group if not (is_scout(one.header) or is_capture(one.header))] for group in groups]
    volumes = [n for n, group in enumerate(groups) if len(group) >= MIN_SLICES and _is_volume(group)]
    asked = {kernel.lower() for kernel in kernels}
    volumes = [n for n in volumes if _kernel(groups[n][0].header).lower() in asked] or volumes
    if not volumes:
        return 0
    least = min(_thickness(groups[n]) for n in volumes)
    thin = [n for n in volumes if _thickness(groups[n]) <= 1.1 * least + 0.01]

    def order(number: int) -> tuple[bool, bool, int]:
        kernel = _kernel(groups[number][0].header)
        return not _LUNG_KERNEL.fullmatch(kernel), not _SHARP_KERNEL.fullmatch(kernel), -len(groups[number])

    return min(thin, key=order)


def _several(name: str, groups: Sequence[Sequence[Slice]], more: str = "") -> InvalidInputError:
    numbers = [_number(group) for group in groups]
    listed = "; ".join(
        _describe(group) + (f" {group[0].header.get('SeriesInstanceUID')}" if numbers.count(number) > 1 else "")
        for group, number in zip(groups[:_LISTED], numbers, strict=False)
    )
    if len(groups) > _LISTED:
        listed += f"; and {len(groups) - _LISTED} more"
    return InvalidInputError(
        f"{name} holds {len(groups)} series{more}: {listed}. Hand in one of them, or name it in the option `series`"
    )


def _is_volume(group: Sequence[Slice]) -> bool:
    """Whether it can be a CT in axial slices: no other modality, no projection, each image at a place of its own."""
    headers = [part.header for part in group]
    if any(header.get("Modality") != "CT" or is_scout(header) or _made_of_others(header) for header in headers):
        return False
    heights = _heights(headers)
    return heights is not None and len(np.unique(heights.round(2))) > len(heights) / 2


def _heights(headers: Sequence[Dataset]) -> Float64 | None:
    """Where the images lie along the body, mm; None where they do not say, or are not axial."""
    try:
        turned = np.array([[float(v) for v in header.ImageOrientationPatient] for header in headers])
        places = np.array([[float(v) for v in header.ImagePositionPatient] for header in headers])
        normals = np.cross(turned[:, :3], turned[:, 3:])
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    return None if not np.abs(normals[:, 2]).min() >= AXIAL else np.asarray(places[:, 2], np.float64)


def _thickness(group: Sequence[Slice]) -> float:
    """The larger of the slices' thickness and their distance, mm."""
    heights = _heights([part.header for part in group])
    assert heights is not None
    return max(float(np.median(np.diff(np.unique(heights)))), slice_thickness_mm(group[0].header))


def slice_thickness_mm(header: Dataset) -> float:
    """SliceThickness of an image in mm; 0 where it is not stated."""
    value = header.get("SliceThickness")
    return float(value) if isinstance(value, float | int) else 0.0


def _kernel(header: Dataset) -> str:
    kernel = header.get("ConvolutionKernel") or ""
    return str(kernel if isinstance(kernel, str) else next(iter(kernel), "")).strip()


def _image_type(header: Dataset) -> set[str]:
    value = header.get("ImageType") or []
    return {str(part).upper() for part in ([value] if isinstance(value, str) else value)}


def _projection(header: Dataset) -> str:
    """What ImageType calls the projection; empty where it is none."""
    return next((part for part in sorted(_image_type(header)) if _PROJECTION.fullmatch(part)), "")


def _made_of_others(header: Dataset) -> str:
    """What ImageType calls a projection or a multiplanar reformation; empty where it is neither."""
    return _projection(header) or next(iter(sorted(_image_type(header) & {"MPR", "CSA MPR"})), "")


def _number(group: Sequence[Slice]) -> str:
    value = group[0].header.get("SeriesNumber")
    return "?" if value is None else str(value)


def _describe(group: Sequence[Slice]) -> str:
    """The series in words. Its SeriesDescription is left out: free text, which may name the patient, and words stay."""
    header = group[0].header
    thickness, kernel = slice_thickness_mm(header), _kernel(header)
    facts = [
        str(header.get("Modality") or "?"),
        *([f"{thickness:g} mm"] if thickness else []),
        *([f"kernel {kernel}"] if kernel else []),
        f"{len(group)} images",
    ]
    return f"series {_number(group)} ({', '.join(facts)})"
