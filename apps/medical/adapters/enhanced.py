"""Splits an enhanced CT file (PS3.3 A.38), which holds a whole series, into slices like those of single-frame files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apps.medical.adapters.series import Slice

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_FRAME_ATTRIBUTES = {
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
        "RescaleType": "RescaleType",
    },
    "CTImageFrameTypeSequence": {"FrameType": "ImageType"},
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
}
"""Functional group sequence, then the keyword of each frame attribute in it and its keyword in a single-frame image.

PS3.3 C.7.6.16.2.
"""


def is_enhanced(header: Dataset) -> bool:
    """Whether the image has per-frame functional groups, as enhanced CT has."""
    return "PerFrameFunctionalGroupsSequence" in header


def frames(image: Slice, header: Dataset) -> list[Slice]:
    """The frames of ``image``, whose complete header is ``header``. The frame number is used as InstanceNumber.

    An attribute that a frame lacks is absent from its header; the code that needs it raises ``InvalidInputError``.
    """
    from pydicom.dataset import Dataset

    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), None)
    found = []
    for number, groups in enumerate(header.PerFrameFunctionalGroupsSequence):
        values: dict[str, Any] = {"InstanceNumber": number + 1, "NumberOfFrames": 1}
        for sequence, keywords in _FRAME_ATTRIBUTES.items():
            items: Any = groups.get(sequence) or (shared.get(sequence) if shared is not None else None) or []
            for keyword, name in keywords.items() if len(items) else ():
                if keyword in items[0]:
                    values[name] = items[0].get(keyword)
        # Elements are set on a copy, because all frames share the header of the image.
        frame_header = Dataset()
        frame_header.update({element.tag: element for element in image.header if element.keyword not in values})
        for name, value in values.items():
            setattr(frame_header, name, value)
        found.append(replace(image, header=frame_header, frame=number))
    return found
