"""Enhanced CT (PS3.3 A.38): a file that holds a whole series, to slices as if each had come in a file of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apps.medical.adapters.series import Slice

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MOVED = {
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
"""Where a frame says what a single image says at its top: sequence, keyword there, keyword here (PS3.3 C.7.6.16.2)."""


def is_enhanced(header: Dataset) -> bool:
    """Whether each frame states its own place."""
    return "PerFrameFunctionalGroupsSequence" in header


def frames(image: Slice, header: Dataset) -> list[Slice]:
    """The frames of ``image``, whose whole header is ``header``. A frame's number stands for its InstanceNumber.

    What a frame does not state is absent from its header, and is refused where it is needed.
    """
    from pydicom.dataset import Dataset

    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), None)
    found = []
    for number, own in enumerate(header.PerFrameFunctionalGroupsSequence):
        values: dict[str, Any] = {"InstanceNumber": number + 1, "NumberOfFrames": 1}
        for sequence, keywords in _MOVED.items():
            items: Any = own.get(sequence) or (shared.get(sequence) if shared is not None else None) or []
            for keyword, name in keywords.items() if len(items) else ():
                if keyword in items[0]:
                    values[name] = items[0].get(keyword)
        # An element of the image's own header would be shared by all frames.
        part = Dataset()
        part.update({element.tag: element for element in image.header if element.keyword not in values})
        for name, value in values.items():
            setattr(part, name, value)
        found.append(replace(image, header=part, frame=number))
    return found
