"""The masks of the findings as a NIfTI label map on the scan's own grid; label n is the finding of rank n."""

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
    """The source of ``label_map`` and of the DICOM segmentation, as JSON; None if no finding was measured."""
    encoded = [
        {
            "rank": rank,
            "low_ijk": nodule.piece.low_ijk,
            "size_ijk": nodule.piece.size_ijk,
            "bits": base64.b64encode(nodule.piece.bits).decode(),
        }
        for rank, nodule in enumerate(findings.nodules, start=1)
        if nodule.piece is not None
    ]
    if not encoded:
        return None
    content = {
        "size_ijk": volume.size_ijk,
        "spacing_mm": volume.spacing_mm,
        "origin_lps_mm": volume.origin_lps_mm,
        "direction": volume.direction.tolist(),
        "positions_lps_mm": [image.position_lps_mm for image in volume.images],
        "pieces": encoded,
    }
    return json.dumps(content).encode()


def pieces(content: dict[str, Any]) -> dict[int, Piece]:
    """The masks of the findings by rank, from the decoded JSON of ``pieces_source``."""
    return {
        piece["rank"]: Piece(
            low_ijk=tuple(piece["low_ijk"]), size_ijk=tuple(piece["size_ijk"]), bits=base64.b64decode(piece["bits"])
        )
        for piece in content["pieces"]
    }


def label_map(source: bytes) -> bytes:
    """The label map as a compressed NIfTI-1 file of uint8. Where findings overlap, the highest score wins."""
    content = json.loads(source)
    header = nifti_header(
        np.uint8, content["size_ijk"], content["spacing_mm"], content["origin_lps_mm"], np.array(content["direction"])
    )
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=1, mtime=0) as compressed:
        compressed.write(header)
        for plane in _planes(content["size_ijk"], pieces(content)):
            compressed.write(plane.data)
    return output.getvalue()


def _planes(size_ijk: list[int], by_rank: dict[int, Piece]) -> Iterator[NDArray[np.uint8]]:
    """The slices (rows, columns) one by one, because most are empty and the whole volume is as large as the scan."""
    columns, rows, slices = size_ijk
    empty = np.zeros((rows, columns), np.uint8)
    masks = {rank: piece.mask_ijk for rank, piece in sorted(by_rank.items(), reverse=True)}
    for k in range(slices):
        plane = empty
        for rank, mask in masks.items():
            i, j, first = by_rank[rank].low_ijk
            if first <= k < first + mask.shape[2]:
                plane = plane.copy() if plane is empty else plane
                plane[j : j + mask.shape[1], i : i + mask.shape[0]][mask[:, :, k - first].T] = rank
        yield plane
