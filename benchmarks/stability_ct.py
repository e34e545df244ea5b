"""Whether findings are stable under small changes to a scan, such as scanners, archives and exports make.

There are eighteen changes of one scan: shifted by a voxel along each axis, another origin (twice), another storage
order (twice), resampled to 1 mm, noise of 10 to 40 HU, 30 HU more and less, blurred (twice), padded (twice). A finding
of the original scan stays if a finding with at least the operating score lies within its radius. A finding without an
original finding nearby is new.

    python -m benchmarks.stability_ct [FILE]

FILE is any readable scan; by default the real scan of the data registry, or a phantom if that is not available. The
bar: every finding stays in every change, and in five of six changes there is no new finding.
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
from apps.medical.predictor import ALL_FINDINGS, NodulePredictor
from apps.medical.types import CTVolume, Float64, Nodule
from benchmarks.report import report
from shared.app import find
from shared.data.registry import read_registry
from shared.deploy.registry import shipped

Change = tuple[str, CTVolume, Float64]
"""The description of a change, the changed scan, and the shift of its content in LPS mm."""

NO_SHIFT = np.zeros(3)
MIN_RADIUS_MM = 4.0


def main() -> None:
    """Finds nodules in the scan and in each changed scan, and reports which findings stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small phantom and every third change")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    predictor = NodulePredictor.load(shipped(find("medical")), arguments.device)
    scan, title = _scan(arguments.file, quick=arguments.quick)
    before = _operating_findings(predictor, scan)
    times_kept, num_with_new = [0] * len(before), 0
    changes = [change for index, change in enumerate(changes_of(scan)) if not arguments.quick or index % 3 == 0]
    for name, volume, shift_mm in changes:
        after = _operating_findings(predictor, volume)
        is_kept = [any(_is_same(finding, other_finding, shift_mm) for other_finding in after) for finding in before]
        num_new = sum(
            not any(_is_same(finding, other_finding, shift_mm) for finding in before) for other_finding in after
        )
        times_kept = [count + kept for count, kept in zip(times_kept, is_kept, strict=True)]
        num_with_new += num_new > 0
        print(f"{name}: {sum(is_kept)} of {len(before)} findings stay, {num_new} new", flush=True)
    figures = {
        f"finding {rank}, {finding.mean_diameter_mm:.1f} mm, score {finding.score:.3f}, stays in": float(count)
        for rank, (finding, count) in enumerate(zip(before, times_kept, strict=True), start=1)
    }
    figures |= {"changes with a new finding": float(num_with_new), "changes": float(len(changes))}
    report(
        f"findings of at least {predictor.operating_score:.3f} in {title}",
        figures,
        ratio=min(times_kept, default=0) / len(changes),
        ok=bool(before) and min(times_kept) == len(changes) and 6 * num_with_new <= len(changes),
        note="ratio: the share of the changes in which the least stable finding stays",
    )


def changes_of(scan: CTVolume) -> Iterator[Change]:
    """Yields the eighteen changes of a scan whose axes are those of LPS."""
    voxels, spacing = scan.voxels_zyx, np.array(scan.spacing_mm)
    for axis, name in enumerate(("to the left", "to the back", "to the head")):
        step = np.zeros(3)
        step[axis] = spacing[axis]
        yield (
            f"moved by a voxel {name}",
            replace(scan, voxels_zyx=_shift_by_one(voxels, 2 - axis)),
            scan.direction @ step,
        )
    for offset in ((0.31, -0.47, 0.59), (113.3, -71.9, 342.7)):
        origin = np.array(scan.origin_lps_mm) + offset
        yield f"origin {offset}", replace(scan, origin_lps_mm=_to_tuple(origin)), np.array(offset)
    last = np.array(scan.size_ijk) - 1
    flipped = replace(
        scan,
        voxels_zyx=np.ascontiguousarray(voxels[:, ::-1, ::-1]),
        origin_lps_mm=_to_tuple(scan.to_lps_mm([last[0], last[1], 0])),
        direction=scan.direction * [-1, -1, 1],
    )
    yield "stored as RAS", flipped, NO_SHIFT
    downwards = replace(
        scan,
        voxels_zyx=np.ascontiguousarray(voxels[::-1]),
        origin_lps_mm=_to_tuple(scan.to_lps_mm([0, 0, last[2]])),
        direction=scan.direction * [1, 1, -1],
    )
    yield "stored from head to feet", downwards, NO_SHIFT
    factors = spacing[::-1]
    resampled = ndimage.zoom(voxels.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    new_spacing = spacing * voxels.shape[::-1] / np.array(resampled.shape[::-1])
    yield (
        "resampled to 1 mm",
        replace(
            scan,
            voxels_zyx=_hu(resampled),
            spacing_mm=_to_tuple(new_spacing),
            origin_lps_mm=_to_tuple(scan.to_lps_mm(-0.5 + new_spacing / spacing / 2)),
        ),
        NO_SHIFT,
    )
    random = np.random.default_rng(0)
    for deviation in (10, 20, 30, 40):
        noise = random.standard_normal(voxels.shape, np.float32) * deviation
        yield f"noise of {deviation} HU", replace(scan, voxels_zyx=_hu(voxels + noise)), NO_SHIFT
    for shift in (-30, 30):
        yield f"{shift:+d} HU", replace(scan, voxels_zyx=_hu(voxels + np.float32(shift))), NO_SHIFT
    for width in (0.5, 1.0):
        blurred = ndimage.gaussian_filter(voxels.astype(np.float32), (0, width, width))
        yield f"blurred by {width:g} pixels", replace(scan, voxels_zyx=_hu(blurred)), NO_SHIFT
    for width in (7, 40):
        padded = np.pad(voxels, ((0, 0), (width, width), (width, width)), constant_values=-1024)
        origin = scan.to_lps_mm([-width, -width, 0])
        yield f"padded by {width} pixels", replace(scan, voxels_zyx=padded, origin_lps_mm=_to_tuple(origin)), NO_SHIFT


def _shift_by_one(voxels: NDArray[np.int16], axis: int) -> NDArray[np.int16]:
    """Shifts the voxels by one along an axis, repeating the first slice."""
    index = np.maximum(np.arange(voxels.shape[axis]) - 1, 0)
    shifted: NDArray[np.int16] = np.ascontiguousarray(voxels.take(index, axis=axis))
    return shifted


def _hu(values: NDArray[np.floating]) -> NDArray[np.int16]:
    rounded: NDArray[np.int16] = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
    return rounded


def _to_tuple(values: Float64) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _operating_findings(predictor: NodulePredictor, scan: CTVolume) -> Sequence[Nodule]:
    (findings,) = predictor.predict([replace(scan, images=())], ALL_FINDINGS)
    return [nodule for nodule in findings.nodules if nodule.score >= findings.operating_score]


def _is_same(finding: Nodule, other_finding: Nodule, shift_mm: Float64) -> bool:
    distance_mm = np.linalg.norm(np.subtract(other_finding.centre_lps_mm, finding.centre_lps_mm) - shift_mm)
    return bool(distance_mm < max(finding.mean_diameter_mm / 2, MIN_RADIUS_MM))


def _scan(file: Path | None, *, quick: bool) -> tuple[CTVolume, str]:
    if file is not None:
        return read_volume([file]), file.name
    root = read_registry(find("medical").root / "datasets" / "registry.json")["lung1"].locate()
    if root is None or quick:
        random = np.random.default_rng(9)
        generated, _ = phantom(random, spacing_mm=(1.6, 1.6, 5.0), nodules=2, diameters_mm=(14.0, 20.0))
        return generated, "a synthetic phantom"
    return read_volume([root / "medical" / "pyradiomics_lung1" / "lung1_image.nrrd"]), "the real CT lung1"


if __name__ == "__main__":
    main()
