"""Whether the list of findings stays when a scan is changed as little as scanners, archives and exports change it.

Eighteen changes of one scan: moved by a voxel along each axis, another origin (twice), stored in another order (twice),
resampled to 1 mm, noise of 10 to 40 HU, 30 HU more and less, blurred (twice), padded (twice). A finding of the scan as
it is stays where one of at least the operating score lies within its radius; one that is nowhere near is new.

    python -m benchmarks.stability_ct [FILE]

FILE is any scan that can be read; by default the real one of the data registry, a phantom where that is not at hand.
The bar: every finding stays in each change, and in five of six there is no new one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.adapters.source import read_volume
from apps.medical.datasets.synth.phantom import volume as phantom
from apps.medical.predictor import EVERYTHING, NodulePredictor
from apps.medical.types import CTVolume, Float64, Nodule
from benchmarks.report import report
from shared.app import find
from shared.data.registry import read_registry
from shared.deploy.registry import shipped

Changed = tuple[str, CTVolume, Float64]
"""What was done, the scan after it, and by how much (LPS mm) what is in it has moved."""

STILL = np.zeros(3)
MIN_RADIUS_MM = 4.0


def main() -> None:
    """Finds nodules in the scan and in each changed one, and reports what stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small phantom and every third change")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    predictor = NodulePredictor.load(shipped(find("medical")), chosen.device)
    scan, title = _scan(chosen.file, quick=chosen.quick)
    before = _above(predictor, scan)
    stays, new = [0] * len(before), 0
    changes = [change for n, change in enumerate(changed(scan)) if not chosen.quick or n % 3 == 0]
    for name, volume, moved_mm in changes:
        after = _above(predictor, volume)
        kept = [any(_same(one, other, moved_mm) for other in after) for one in before]
        added = sum(not any(_same(one, other, moved_mm) for one in before) for other in after)
        stays = [count + is_kept for count, is_kept in zip(stays, kept, strict=True)]
        new += added > 0
        print(f"{name}: {sum(kept)} of {len(before)} findings stay, {added} new", flush=True)
    figures = {
        f"finding {rank}, {one.mean_diameter_mm:.1f} mm, score {one.score:.3f}, stays in": float(count)
        for rank, (one, count) in enumerate(zip(before, stays, strict=True), start=1)
    }
    figures |= {"changes with a new finding": float(new), "changes": float(len(changes))}
    report(
        f"findings of at least {predictor.operating_score:.3f} in {title}",
        figures,
        ratio=min(stays, default=0) / len(changes),
        ok=bool(before) and min(stays) == len(changes) and 6 * new <= len(changes),
        note="ratio: the share of the changes in which the least stable finding stays",
    )


def changed(scan: CTVolume) -> Iterator[Changed]:
    """The eighteen changes of a scan whose axes are those of LPS."""
    voxels, spacing = scan.voxels_zyx, np.array(scan.spacing_mm)
    for axis, name in enumerate(("to the left", "to the back", "to the head")):
        along = np.zeros(3)
        along[axis] = spacing[axis]
        yield f"moved by a voxel {name}", replace(scan, voxels_zyx=_moved(voxels, 2 - axis)), scan.direction @ along
    for offset in ((0.31, -0.47, 0.59), (113.3, -71.9, 342.7)):
        origin = np.array(scan.origin_lps_mm) + offset
        yield f"origin {offset}", replace(scan, origin_lps_mm=_triple(origin)), np.array(offset)
    last = np.array(scan.size_ijk) - 1
    flipped = replace(
        scan,
        voxels_zyx=np.ascontiguousarray(voxels[:, ::-1, ::-1]),
        origin_lps_mm=_triple(scan.to_lps_mm([last[0], last[1], 0])),
        direction=scan.direction * [-1, -1, 1],
    )
    yield "stored as RAS", flipped, STILL
    downwards = replace(
        scan,
        voxels_zyx=np.ascontiguousarray(voxels[::-1]),
        origin_lps_mm=_triple(scan.to_lps_mm([0, 0, last[2]])),
        direction=scan.direction * [1, 1, -1],
    )
    yield "stored from head to feet", downwards, STILL
    factors = spacing[::-1]
    whole = ndimage.zoom(voxels.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    steps = spacing * voxels.shape[::-1] / np.array(whole.shape[::-1])
    yield (
        "resampled to 1 mm",
        replace(
            scan,
            voxels_zyx=_hu(whole),
            spacing_mm=_triple(steps),
            origin_lps_mm=_triple(scan.to_lps_mm(-0.5 + steps / spacing / 2)),
        ),
        STILL,
    )
    random = np.random.default_rng(0)
    for deviation in (10, 20, 30, 40):
        noise = random.standard_normal(voxels.shape, np.float32) * deviation
        yield f"noise of {deviation} HU", replace(scan, voxels_zyx=_hu(voxels + noise)), STILL
    for shift in (-30, 30):
        yield f"{shift:+d} HU", replace(scan, voxels_zyx=_hu(voxels + np.float32(shift))), STILL
    for width in (0.5, 1.0):
        blurred = ndimage.gaussian_filter(voxels.astype(np.float32), (0, width, width))
        yield f"blurred by {width:g} pixels", replace(scan, voxels_zyx=_hu(blurred)), STILL
    for width in (7, 40):
        padded = np.pad(voxels, ((0, 0), (width, width), (width, width)), constant_values=-1024)
        origin = scan.to_lps_mm([-width, -width, 0])
        yield f"padded by {width} pixels", replace(scan, voxels_zyx=padded, origin_lps_mm=_triple(origin)), STILL


def _moved(voxels: NDArray[np.int16], axis: int) -> NDArray[np.int16]:
    """By one along an axis; the first slice is there twice."""
    index = np.maximum(np.arange(voxels.shape[axis]) - 1, 0)
    moved: NDArray[np.int16] = np.ascontiguousarray(voxels.take(index, axis=axis))
    return moved


def _hu(values: NDArray[np.floating]) -> NDArray[np.int16]:
    whole: NDArray[np.int16] = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
    return whole


def _triple(values: Float64) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _above(predictor: NodulePredictor, scan: CTVolume) -> Sequence[Nodule]:
    (findings,) = predictor.predict([replace(scan, images=())], EVERYTHING)
    return [nodule for nodule in findings.nodules if nodule.score >= findings.operating_score]


def _same(one: Nodule, other: Nodule, moved_mm: Float64) -> bool:
    apart = np.linalg.norm(np.subtract(other.centre_lps_mm, one.centre_lps_mm) - moved_mm)
    return bool(apart < max(one.mean_diameter_mm / 2, MIN_RADIUS_MM))


def _scan(file: Path | None, *, quick: bool) -> tuple[CTVolume, str]:
    if file is not None:
        return read_volume([file]), file.name
    root = read_registry(find("medical").root / "datasets" / "registry.json")["lung1"].locate()
    if root is None or quick:
        random = np.random.default_rng(9)
        made, _ = phantom(random, spacing_mm=(1.6, 1.6, 5.0), nodules=2, diameters_mm=(14.0, 20.0))
        return made, "a synthetic phantom"
    return read_volume([root / "medical" / "pyradiomics_lung1" / "lung1_image.nrrd"]), "the real CT lung1"


if __name__ == "__main__":
    main()
