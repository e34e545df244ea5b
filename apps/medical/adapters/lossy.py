"""Whether images were compressed with loss, now or at any time before (PS3.3 C.7.6.1.1.5), and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.medical.adapters.series import Slice

_SYNTAX = "1.2.840.10008.1.2.4."
_LOSSY = {f"{_SYNTAX}50": "ISO_10918_1", f"{_SYNTAX}51": "ISO_10918_1"}
"""JPEG baseline and extended, and what (0028,2114) calls them."""
_PERHAPS_LOSSY = {
    f"{_SYNTAX}81": "ISO_14495_1",
    f"{_SYNTAX}91": "ISO_15444_1",
    f"{_SYNTAX}93": "ISO_15444_2",
    f"{_SYNTAX}203": "ISO_15444_15",
}
"""Near-lossless JPEG-LS, JPEG 2000, and HTJ2K: taken to have lost unless (0028,2110) says that they have not."""


def lossy_compression(slices: Sequence[Slice]) -> dict[str, str]:
    """What is to be stated of an image that is derived from these, by DICOM's keywords; empty where none has lost.

    The ratio is the greatest that is stated, the method that of the syntax or the last that is stated.
    """
    lossy = _lossy(slices)
    if not lossy:
        return {}
    ratio = max(_ratio(part) for part in lossy)
    methods = {**_LOSSY, **_PERHAPS_LOSSY}
    stated = [_last(part.header.get("LossyImageCompressionMethod")) or methods.get(part.syntax, "") for part in lossy]
    found = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": f"{ratio:g}" if ratio > 0 else "",
        "LossyImageCompressionMethod": next(filter(None, stated), ""),
    }
    return {keyword: value for keyword, value in found.items() if value}


def lossy_remarks(slices: Sequence[Slice]) -> list[str]:
    """What a reader is to be told where images were compressed with loss."""
    lossy = _lossy(slices)
    if not lossy:
        return []
    ratios = [_ratio(part) for part in lossy]
    slopes = [abs(float(part.header.RescaleSlope)) for part in lossy]
    ratio = f", up to {max(ratios):g} to 1" if max(ratios) > 1 else ""
    said = f"{len(lossy)} of {len(slices)} images were compressed with loss{ratio} (0028,2110)"
    enlarged = f"; its errors are enlarged {max(slopes):g} times by the rescale slope" if max(slopes) > 1 else ""
    return [f"{said}: densities in HU are not exact, and small or faint nodules may be gone{enlarged}."]


def _lossy(slices: Sequence[Slice]) -> list[Slice]:
    def has_lost(part: Slice) -> bool:
        stated = part.header.get("LossyImageCompression")
        return stated == "01" or part.syntax in _LOSSY or (part.syntax in _PERHAPS_LOSSY and stated != "00")

    return [part for part in slices if has_lost(part)]


def _ratio(part: Slice) -> float:
    """The greatest ratio that an image states; 0 where there is none that can be read."""
    value = part.header.get("LossyImageCompressionRatio")
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        return max((float(number) for number in values if number not in (None, "")), default=0.0)
    except (TypeError, ValueError):
        return 0.0


def _last(value: Any) -> str:
    """Of one word or several that are codes (PS3.5, CS); empty where it is none."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    word = str(values[-1] or "") if values else ""
    return word if len(word) <= 16 and word.replace("_", "").isalnum() and word.isascii() else ""
