"""Lossy compression of images, now or at any earlier time (PS3.3 C.7.6.1.1.5): detection, attributes and remarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.medical.adapters.series import Slice

_SYNTAX = "1.2.840.10008.1.2.4."
_LOSSY = {f"{_SYNTAX}50": "ISO_10918_1", f"{_SYNTAX}51": "ISO_10918_1"}
"""JPEG baseline and extended, with their defined terms in LossyImageCompressionMethod (0028,2114)."""
_POSSIBLY_LOSSY = {
    f"{_SYNTAX}81": "ISO_14495_1",
    f"{_SYNTAX}91": "ISO_15444_1",
    f"{_SYNTAX}93": "ISO_15444_2",
    f"{_SYNTAX}203": "ISO_15444_15",
}
"""Near-lossless JPEG-LS, JPEG 2000 and HTJ2K: assumed lossy unless LossyImageCompression (0028,2110) is 00."""


def lossy_compression(slices: Sequence[Slice]) -> dict[str, str]:
    """The attributes of lossy compression of an image derived from these, by keyword; empty if none was lossy.

    The ratio is the largest that an image states. The method comes from the first lossy image that has one: the last
    method that it states, or else that of its transfer syntax.
    """
    lossy = _lossy(slices)
    if not lossy:
        return {}
    ratio = max(_ratio(part) for part in lossy)
    methods = {**_LOSSY, **_POSSIBLY_LOSSY}
    stated = [_last(part.header.get("LossyImageCompressionMethod")) or methods.get(part.syntax, "") for part in lossy]
    attributes = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": f"{ratio:g}" if ratio > 0 else "",
        "LossyImageCompressionMethod": next(filter(None, stated), ""),
    }
    return {keyword: value for keyword, value in attributes.items() if value}


def lossy_remarks(slices: Sequence[Slice]) -> list[str]:
    """The remark on images that were lossy compressed; empty if none was."""
    lossy = _lossy(slices)
    if not lossy:
        return []
    ratios = [_ratio(part) for part in lossy]
    slopes = [abs(float(part.header.RescaleSlope)) for part in lossy]
    ratio = f", up to {max(ratios):g} to 1" if max(ratios) > 1 else ""
    compressed = f"{len(lossy)} of {len(slices)} images were lossy compressed{ratio} (0028,2110)"
    amplified = f"; the rescale slope multiplies the errors by {max(slopes):g}" if max(slopes) > 1 else ""
    return [f"{compressed}: densities in HU are not exact, and small or faint nodules may be lost{amplified}."]


def _lossy(slices: Sequence[Slice]) -> list[Slice]:
    def is_lossy(part: Slice) -> bool:
        stated = part.header.get("LossyImageCompression")
        return stated == "01" or part.syntax in _LOSSY or (part.syntax in _POSSIBLY_LOSSY and stated != "00")

    return [part for part in slices if is_lossy(part)]


def _ratio(part: Slice) -> float:
    """The largest compression ratio that an image states; 0 if it states none that can be read."""
    value = part.header.get("LossyImageCompressionRatio")
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        return max((float(number) for number in values if number not in (None, "")), default=0.0)
    except (TypeError, ValueError):
        return 0.0


def _last(value: Any) -> str:
    """The last value of an attribute with one or more code strings (CS, PS3.5 6.2); empty if it is not valid."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    word = str(values[-1] or "") if values else ""
    return word if len(word) <= 16 and word.replace("_", "").isalnum() and word.isascii() else ""
