"""The masks of the findings in a DICOM report as a DICOM Segmentation, which a viewer displays as outlines.

Each segment is a finding of the report, with the same tracking identifiers; its frames lie on images of the CT. The
file is written by highdicom.
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
    finding_type,
    tracking,
    unique_identifier,
    versions,
    without_time,
)
from apps.medical.types import CT_IMAGES, PATIENT_KEYWORDS, CTVolume, Findings, Float64, Piece

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEGMENTATION = "findings.seg.dcm"
_SERIES_NUMBER = 9901
_CT_IMAGE, *_MULTI_FRAME = CT_IMAGES
_MAX_VERSION_LENGTH = 64
"""The maximum length of a software version (LO, PS3.5 6.2)."""


def can_be_segmented(volume: CTVolume, findings: Findings) -> bool:
    """Whether a segmentation can be made, if there is a report.

    At least one finding of the report must have been measured, the CT must state its frame of reference, and it must
    consist of single-frame CT images, or of all frames of one enhanced CT.
    """
    if "FrameOfReferenceUID" not in volume.identifiers:
        return False
    classes = {image.sop_class_uid for image in volume.images}
    frames = [image.frame for image in volume.images if image.frame is not None]
    is_single_frame = classes == {_CT_IMAGE} and not frames
    has_all_frames = sorted(frames) == list(range(len(volume.images)))
    is_multi_frame = (
        has_all_frames
        and classes <= set(_MULTI_FRAME)
        and len({image.sop_instance_uid for image in volume.images}) == 1
    )
    is_measured = any(
        nodule.piece is not None and nodule.score >= findings.operating_score for nodule in findings.nodules
    )
    return is_measured and (is_single_frame or is_multi_frame)


def segmentation(report: bytes, source: bytes) -> bytes:
    """The segmentation as a DICOM file, from the sources of the report and of the masks (``pieces_source``).

    Its UIDs are derived from its content; the SOP Instance UID also from the report's time. A finding that could not be
    measured has no segment.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    content, grid = json.loads(report), json.loads(source)
    grid["pieces"] = [piece for piece in grid["pieces"] if piece["rank"] <= len(content["findings"])]
    reported_pieces = json.dumps(grid).encode()
    identity = without_time(report) + reported_pieces
    by_rank = pieces(grid)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=ALGORITHM, family=codes.DCM.ArtificialIntelligence, version=versions(content)[:_MAX_VERSION_LENGTH]
    )
    segments = []
    for number, rank in enumerate(by_rank, start=1):
        identifier, uid = tracking(report, rank - 1)
        segments.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=identifier,
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=finding_type(content["findings"][rank - 1]["label"]),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_uid=uid,
                tracking_id=identifier,
                anatomic_regions=[codes.SCT.Lung],
            )
        )
    images, order = _images(content, grid)
    # highdicom needs an array of all voxels for each segment, which may be gigabytes. So it gets source images of 1 x 1
    # pixel, and an array that only says on which slices a segment has voxels; the real pixels are set afterwards.
    is_present = np.zeros((len(order), 1, 1, len(by_rank)), np.uint8)
    for segment, piece in enumerate(by_rank.values()):
        first = piece.low_ijk[2]
        has_voxels = piece.mask_ijk.any(axis=(0, 1))
        is_present[[order.index(first + k) for k in np.flatnonzero(has_voxels).tolist()], 0, 0, segment] = 1
    dataset = hd.seg.Segmentation(
        source_images=images,
        pixel_array=is_present,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=unique_identifier(identity + b"series"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=unique_identifier(report + reported_pieces),
        instance_number=1,
        manufacturer="Trivium",
        manufacturer_model_name=ALGORITHM,
        software_versions=versions(content)[:_MAX_VERSION_LENGTH],
        device_serial_number="none",
        content_label="LUNG_NODULES",
        content_description=SERIES,
        series_description=SERIES,
        specific_character_set="ISO_IR 192",
    )
    _set_pixels(dataset, list(by_rank.values()), grid)
    for keyword, value in content["lossy"].items():  # highdicom always states lossless (PS3.3 C.7.6.1.1.5)
        setattr(dataset, keyword, value)
    organization = unique_identifier(identity + b"dimensions")  # replaces highdicom's random UID
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return dicom_file(dataset, content)


def _images(content: Mapping[str, Any], grid: Mapping[str, Any]) -> tuple[list[Dataset], list[int]]:
    """The CT images as datasets with the attributes that highdicom reads; the slice index of each image or frame."""
    column_mm, row_mm, slice_mm = grid["spacing_mm"]
    measures = {
        "PixelSpacing": _decimals([row_mm, column_mm]),
        "SliceThickness": _decimals([slice_mm])[0],
        "SpacingBetweenSlices": _decimals([slice_mm])[0],
    }
    orientation = {"ImageOrientationPatient": _decimals(np.array(grid["direction"])[:, :2].T.ravel())}
    positions = [{"ImagePositionPatient": _decimals(position)} for position in grid["positions_lps_mm"]]
    common = {**dict.fromkeys(PATIENT_KEYWORDS, ""), **content["identifiers"], "Rows": 1, "Columns": 1}
    uids = [{"SOPClassUID": sop_class, "SOPInstanceUID": uid} for sop_class, uid, _ in content["images"]]
    frames = [frame for _, _, frame in content["images"]]
    if frames[0] is None:
        images = [
            _dataset(**common, **image_uids, **measures, **orientation, **position)
            for image_uids, position in zip(uids, positions, strict=True)
        ]
        return images, list(range(len(images)))
    order = [frames.index(frame) for frame in range(len(frames))]
    shared = _dataset(PixelMeasuresSequence=[_dataset(**measures)], PlaneOrientationSequence=[_dataset(**orientation)])
    per_frame = [_dataset(PlanePositionSequence=[_dataset(**positions[k])]) for k in order]
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": per_frame}
    return [_dataset(**common, **uids[0], NumberOfFrames=len(order), **groups)], order


def _set_pixels(dataset: Dataset, masks: Sequence[Piece], grid: Mapping[str, Any]) -> None:
    """Writes the masks into the frames that highdicom created for them, one bit per pixel."""
    columns, rows, _ = grid["size_ijk"]
    positions: Float64 = np.array(grid["positions_lps_mm"])
    bits = []
    for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        (position,) = group.PlanePositionSequence
        k = int(np.abs(positions - np.array(position.ImagePositionPatient, float)).sum(axis=1).argmin())
        piece = masks[group.FrameContentSequence[0].DimensionIndexValues[0] - 1]
        i, j = np.nonzero(piece.mask_ijk[:, :, k - piece.low_ijk[2]])
        bits.append((frame * rows + j + piece.low_ijk[1]) * columns + i + piece.low_ijk[0])
    set_bits = np.concatenate(bits)
    content = np.zeros(-(-len(bits) * rows * columns // 16) * 2, np.uint8)
    np.bitwise_or.at(content, set_bits // 8, (1 << (set_bits % 8)).astype(np.uint8))
    dataset.Rows, dataset.Columns, dataset.PixelData = rows, columns, content.tobytes()
    dataset.SegmentsOverlap = "YES" if _overlap(masks) else "NO"


def _overlap(masks: Sequence[Piece]) -> bool:
    """Whether any voxel belongs to more than one mask."""
    voxels = np.concatenate([np.argwhere(piece.mask_ijk) + piece.low_ijk for piece in masks])
    return len(np.unique(voxels, axis=0)) < len(voxels)


def _dataset(**values: Any) -> Dataset:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _decimals(values: Iterable[float]) -> list[str]:
    """Numbers as DICOM decimal strings (DS)."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]
