"""The voxels of the findings in the scan's own grid, as a NIfTI of labels: n is the finding of rank n."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.adapters.nifti import nifti_header
from apps.medical.types import CTVolume, Findings, Piece

LABELS, PIECES = "findings.nii.gz", "pieces.json"


def pieces_source(volume: CTVolume, findings: Findings) -> bytes | None:
    """What ``label_map`` and the DICOM segmentation are made from, as JSON; None where nothing was measured."""
    found = [
        {
            "rank": rank,
            "low_ijk": nodule.piece.low_ijk,
            "size_ijk": nodule.piece.size_ijk,
            "bits": base64.b64encode(nodule.piece.bits).decode(),
        }
        for rank, nodule in enumerate(findings.nodules, start=1)
        if nodule.piece is not None
    ]
    if not found:
        return None
    content = {
        "size_ijk": volume.size_ijk,
        "spacing_mm": volume.spacing_mm,
        "origin_lps_mm": volume.origin_lps_mm,
        "direction": volume.direction.tolist(),
        "positions_lps_mm": [image.position_lps_mm for image in volume.images],
        "pieces": found,
    }
    return json.dumps(content).encode()


def pieces(content: dict[str, Any]) -> dict[int, Piece]:
    """The pieces in what ``pieces_source`` made, by rank."""
    return {
        one["rank"]: Piece(
            low_ijk=tuple(one["low_ijk"]), size_ijk=tuple(one["size_ijk"]), bits=base64.b64decode(one["bits"])
        )
        for one in content["pieces"]
    }


def label_map(source: bytes) -> bytes:
    """The labels as a compressed NIfTI-1 file of bytes. A voxel of two findings has the label of the surer."""
    content = json.loads(source)
    header = nifti_header(
        np.uint8, content["size_ijk"], content["spacing_mm"], content["origin_lps_mm"], np.array(content["direction"])
    )
    written = io.BytesIO()
    with gzip.GzipFile(fileobj=written, mode="wb", compresslevel=1, mtime=0) as packed:
        packed.write(header)
        for plane in _planes(content["size_ijk"], pieces(content)):
            packed.write(plane.data)
    return written.getvalue()


def _planes(size_ijk: list[int], found: dict[int, Piece]) -> Iterator[NDArray[np.uint8]]:
    """The slices (rows, columns), one after the other: most are empty, and the whole would be as large as the scan."""
    columns, rows, slices = size_ijk
    empty = np.zeros((rows, columns), np.uint8)
    masks = {rank: piece.mask_ijk for rank, piece in sorted(found.items(), reverse=True)}
    for k in range(slices):
        plane = empty
        for rank, mask in masks.items():
            i, j, first = found[rank].low_ijk
            if first <= k < first + mask.shape[2]:
                plane = plane.copy() if plane is empty else plane
                plane[j : j + mask.shape[1], i : i + mask.shape[0]][mask[:, :, k - first].T] = rank
        yield plane
