"""Lung nodules in one CT: MONAI's transforms, SlidingWindowInferer and RetinaNetDetector against this project's path.

Both have the same weights, tiles, overlap and volume, in one process. Two comparisons: on the same image, where the
findings must be equal; and from voxels to findings, where MONAI computes the whole scan and ours the lungs.
The scan is the real one of the data registry where it is at hand, and a synthetic phantom elsewhere.

    python -m benchmarks.detect_ct [--quick]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from apps.medical.adapters.source import read_volume
from apps.medical.datasets.synth.phantom import volume as phantom
from apps.medical.inference.grid import cover, reorient_to_lps, resample
from apps.medical.inference.lungs import find_lungs
from apps.medical.inference.pipeline import Detections, detect
from apps.medical.predictor import EVERYTHING, NodulePredictor, open_detector
from apps.medical.types import CTVolume
from benchmarks.report import report
from shared.app import find
from shared.data.registry import read_registry
from shared.deploy.registry import shipped
from shared.precision import autocast


def main() -> None:
    """Times both and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small phantom instead of the real scan; one repeat")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    predictor = NodulePredictor.load(shipped(find("medical")), chosen.device)
    scan, title = _scan(quick=chosen.quick)
    scan = reorient_to_lps(scan)
    repeats = 1 if chosen.quick or chosen.device == "cpu" else 5
    detector = open_detector(shipped(find("medical"))[0], chosen.device)
    lungs = find_lungs(scan)
    assert lungs is not None
    grid = cover(scan, lungs.low_ijk, lungs.high_ijk, predictor.input.spacing_mm, detector.size_divisible)
    image = resample(scan, grid, predictor.input.window_hu, chosen.device)
    tiling = predictor.tiling.fitted(grid.size, detector.size_divisible)
    peer = copy.deepcopy(detector).to(memory_format=torch.contiguous_format)
    # MONAI states the overlap as a share and rounds what is left down.
    overlap = [(shared - 0.5) / size for shared, size in zip(tiling.margin, tiling.size, strict=True)]
    peer.set_sliding_window_inferer(roi_size=tiling.size, overlap=overlap, sw_batch_size=4, mode="constant")
    theirs, their_image_s = _timed(lambda: _monai_detect(peer, image, predictor.dtype), repeats, chosen.device)
    ours, our_image_s = _timed(
        lambda: detect(detector, image, tiling, network=predictor.network, dtype=predictor.dtype),
        repeats,
        chosen.device,
    )
    equal, difference = _equal(theirs, ours, predictor.dtype)

    (their_found, their_scan_s) = _timed(lambda: _monai_scan(peer, predictor, scan), repeats, chosen.device)
    (our_found, our_scan_s) = _timed(lambda: predictor.predict([scan], EVERYTHING), repeats, chosen.device)
    apart = _apart_mm(their_found, np.array([n.centre_lps_mm for n in our_found[0].nodules[:20]]))
    figures = {
        "MONAI, same image (s)": their_image_s,
        "ours, same image (s)": our_image_s,
        "ratio, same image": their_image_s / our_image_s,
        "largest difference of scores": difference,
        "MONAI, voxels to findings (s)": their_scan_s,
        "ours, voxels to findings (s)": our_scan_s,
        "distance from MONAI's best finding at a lung to ours (mm)": apart,
    }
    ratio = their_scan_s / our_scan_s
    note = f"{title}; equal findings on the same image: {'yes' if equal else 'NO'}"
    report("detect_ct", figures, ratio=ratio, ok=equal and ratio > 1 and apart < 5, note=note)


def _scan(*, quick: bool) -> tuple[CTVolume, str]:
    root = read_registry(find("medical").data_registry)["lung1"].locate()
    if root is not None and not quick:
        return read_volume([root / "medical/pyradiomics_lung1/lung1_image.nrrd"]), "real scan, pyradiomics lung1"
    made, _ = phantom(np.random.default_rng(5), spacing_mm=(1.4, 1.4, 5.0), nodules=4, diameters_mm=(10, 20))
    return made, "synthetic phantom"


def _timed(function: Callable[[], Any], repeats: int, device: str) -> tuple[Any, float]:
    """What the function returns and its best time, after a first run that does not count."""
    best = float("inf")
    for run in range(repeats + 1):
        began = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        if run:
            best = min(best, time.perf_counter() - began)
    return result, best


def _monai_detect(detector: Any, image: torch.Tensor, dtype: torch.dtype | None) -> Detections:
    with torch.no_grad(), autocast(dtype, image.device):
        found = detector(image[None, None], use_inferer=True)[0]
    return Detections(found["box"].float(), found["label_scores"].float(), found["label"])


def _monai_scan(detector: Any, predictor: NodulePredictor, scan: CTVolume) -> np.ndarray:
    """Centres (n, 3) in LPS mm of MONAI's findings, best first, by the steps of its bundle."""
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.intensity.array import ScaleIntensityRange
    from monai.transforms.spatial.array import Orientation, Spacing

    lps = np.eye(4)
    lps[:3, :3] = scan.direction * scan.spacing_mm
    lps[:3, 3] = scan.origin_lps_mm
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    voxels = torch.from_numpy(scan.voxels_zyx.transpose(2, 1, 0).astype(np.float32))[None]
    image = Orientation(axcodes="RAS", labels=None)(MetaTensor(voxels, affine=torch.as_tensor(affine)))
    image = Spacing(pixdim=predictor.input.spacing_mm, padding_mode="border")(image)
    low, high = predictor.input.window_hu
    image = ScaleIntensityRange(a_min=low, a_max=high, b_min=0, b_max=1, clip=True)(image)
    found = _monai_detect(detector, image.as_tensor()[0].to(predictor.device), predictor.dtype)
    boxes = found.boxes.double().cpu().numpy()
    centres = (boxes[:, :3] + boxes[:, 3:]) / 2 - 0.5
    world = centres @ image.affine.numpy()[:3, :3].T + image.affine.numpy()[:3, 3]
    world = world * (-1, -1, 1)
    lungs = find_lungs(scan)
    assert lungs is not None
    return world[lungs.contain(scan.to_index_ijk(world))]


def _equal(theirs: Detections, ours: Detections, dtype: torch.dtype | None) -> tuple[bool, float]:
    if len(theirs.scores) != len(ours.scores):
        return False, float("inf")
    if not len(ours.scores):
        return True, 0.0
    difference = float((theirs.scores - ours.scores).abs().max())
    voxels = float((theirs.boxes.float() - ours.boxes.float()).abs().max())
    # In bf16 MONAI decodes and suppresses boxes in bf16 as well; ours are decoded in fp32.
    return difference < (2e-2 if dtype else 1e-4) and voxels < (1.0 if dtype else 1e-2), difference


def _apart_mm(theirs: np.ndarray, ours: np.ndarray) -> float:
    if not len(theirs) or not len(ours):
        return 0.0 if len(theirs) == len(ours) else float("inf")
    return float(np.linalg.norm(ours - theirs[0], axis=1).min())


if __name__ == "__main__":
    main()
