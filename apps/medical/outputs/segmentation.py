"""The findings of a DICOM report as a DICOM Segmentation: the voxels that were measured, which a viewer outlines.

A segment is a finding of the report, with the same tracking identifiers; its frames lie on the images of the CT.
Written by highdicom.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.outputs.labels import pieces
from apps.medical.outputs.report import (
    ALGORITHM,
    SERIES,
    dicom_file,
    kind,
    tracking,
    unique_identifier,
    untimed,
    versions,
)
from apps.medical.types import PATIENT_KEYWORDS, CTVolume, Findings, Float64, Piece

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEGMENTATION = "findings.seg.dcm"
_SERIES_NUMBER = 9901
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_MULTI_FRAME = (f"{_CT_IMAGE}.1", f"{_CT_IMAGE}.2")
"""Enhanced CT, and what was converted to it."""
_LONG = 64
"""The most characters of a version (PS3.5, LO)."""


def can_be_segmented(volume: CTVolume, findings: Findings) -> bool:
    """Whether there is a segmentation of findings of which there is a report.

    Something that stands in it was measured; the CT states its frame of reference; and it is single CT images, or one
    enhanced CT with all its frames.
    """
    if "FrameOfReferenceUID" not in volume.identifiers:
        return False
    classes = {image.sop_class_uid for image in volume.images}
    frames = [image.frame for image in volume.images if image.frame is not None]
    single = classes == {_CT_IMAGE} and not frames
    whole = sorted(frames) == list(range(len(volume.images)))
    multi = whole and classes <= set(_MULTI_FRAME) and len({image.sop_instance_uid for image in volume.images}) == 1
    measured = any(one.piece is not None and one.score >= findings.operating_score for one in findings.nodules)
    return measured and (single or multi)


def segmentation(report: bytes, source: bytes) -> bytes:
    """The segmentation as a DICOM file, from the report's source and that of the pieces.

    Its identifiers follow from what it shows, its own from the report's time too. A finding of which nothing could be
    measured has no segment.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    said, grid = json.loads(report), json.loads(source)
    grid["pieces"] = [one for one in grid["pieces"] if one["rank"] <= len(said["findings"])]
    shown = json.dumps(grid).encode()
    identity = untimed(report) + shown
    found = pieces(grid)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=ALGORITHM, family=codes.DCM.ArtificialIntelligence, version=versions(said)[:_LONG]
    )
    segments = []
    for number, rank in enumerate(found, start=1):
        identifier, uid = tracking(report, rank - 1)
        segments.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=identifier,
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=kind(said["findings"][rank - 1]["label"]),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_uid=uid,
                tracking_id=identifier,
                anatomic_regions=[codes.SCT.Lung],
            )
        )
    images, order = _images(said, grid)
    # highdicom takes a voxel of every slice for every segment, which may be gigabytes. So it is given one in place of
    # each slice, of images of one pixel, and the pixels are put in afterwards.
    present = np.zeros((len(order), 1, 1, len(found)), np.uint8)
    for segment, piece in enumerate(found.values()):
        first = piece.low_ijk[2]
        inside = piece.mask_ijk.any(axis=(0, 1))
        present[[order.index(first + k) for k in np.flatnonzero(inside).tolist()], 0, 0, segment] = 1
    made = hd.seg.Segmentation(
        source_images=images,
        pixel_array=present,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=unique_identifier(identity + b"series"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=unique_identifier(report + shown),
        instance_number=1,
        manufacturer="Trivium",
        manufacturer_model_name=ALGORITHM,
        software_versions=versions(said)[:_LONG],
        device_serial_number="none",
        content_label="LUNG_NODULES",
        content_description=SERIES,
        series_description=SERIES,
        specific_character_set="ISO_IR 192",
    )
    _put_pixels(made, list(found.values()), grid)
    for keyword, value in said["lossy"].items():  # highdicom says that nothing was lost (PS3.3 C.7.6.1.1.5)
        setattr(made, keyword, value)
    organization = unique_identifier(identity + b"dimensions")  # highdicom draws one
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return dicom_file(made, said)


def _images(said: Mapping[str, Any], grid: Mapping[str, Any]) -> tuple[list[Dataset], list[int]]:
    """The CT's images as datasets with what a segmentation takes from them; and which slice each image or frame is."""
    across, down, between = grid["spacing_mm"]
    measures = {
        "PixelSpacing": _decimals([down, across]),
        "SliceThickness": _decimals([between])[0],
        "SpacingBetweenSlices": _decimals([between])[0],
    }
    turned = {"ImageOrientationPatient": _decimals(np.array(grid["direction"])[:, :2].T.ravel())}
    places = [{"ImagePositionPatient": _decimals(position)} for position in grid["positions_lps_mm"]]
    common = {**dict.fromkeys(PATIENT_KEYWORDS, ""), **said["identifiers"], "Rows": 1, "Columns": 1}
    names = [{"SOPClassUID": sop_class, "SOPInstanceUID": uid} for sop_class, uid, _ in said["images"]]
    frames = [frame for _, _, frame in said["images"]]
    if frames[0] is None:
        images = [
            _dataset(**common, **name, **measures, **turned, **place) for name, place in zip(names, places, strict=True)
        ]
        return images, list(range(len(images)))
    order = [frames.index(frame) for frame in range(len(frames))]
    shared = _dataset(PixelMeasuresSequence=[_dataset(**measures)], PlaneOrientationSequence=[_dataset(**turned)])
    own = [_dataset(PlanePositionSequence=[_dataset(**places[k])]) for k in order]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    return [_dataset(**common, **names[0], NumberOfFrames=len(order), **groups)], order


def _put_pixels(made: Dataset, found: Sequence[Piece], grid: Mapping[str, Any]) -> None:
    """The pieces into the frames that were made for them, one after the other, a bit a pixel."""
    columns, rows, _ = grid["size_ijk"]
    places: Float64 = np.array(grid["positions_lps_mm"])
    bits = []
    for frame, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        (position,) = group.PlanePositionSequence
        k = int(np.abs(places - np.array(position.ImagePositionPatient, float)).sum(axis=1).argmin())
        piece = found[group.FrameContentSequence[0].DimensionIndexValues[0] - 1]
        i, j = np.nonzero(piece.mask_ijk[:, :, k - piece.low_ijk[2]])
        bits.append((frame * rows + j + piece.low_ijk[1]) * columns + i + piece.low_ijk[0])
    at = np.concatenate(bits)
    content = np.zeros(-(-len(bits) * rows * columns // 16) * 2, np.uint8)
    np.bitwise_or.at(content, at // 8, (1 << (at % 8)).astype(np.uint8))
    made.Rows, made.Columns, made.PixelData = rows, columns, content.tobytes()
    made.SegmentsOverlap = "YES" if _overlap(found) else "NO"


def _overlap(found: Sequence[Piece]) -> bool:
    """Whether a voxel is of two pieces."""
    voxels = np.concatenate([np.argwhere(piece.mask_ijk) + piece.low_ijk for piece in found])
    return len(np.unique(voxels, axis=0)) < len(voxels)


def _dataset(**values: Any) -> Dataset:
    from pydicom.dataset import Dataset

    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def _decimals(values: Iterable[float]) -> list[str]:
    """Numbers as DICOM's decimal strings."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]
