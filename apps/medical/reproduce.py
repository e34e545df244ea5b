"""The headline table: published claims and figures, and ours measured here and now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.metrics.froc import Mark, Truth, bootstrap, cpm, froc, sensitivity_at
from apps.medical.types import CTVolume, Nodule
from shared.app import Table

if TYPE_CHECKING:
    from apps.medical.predictor import NodulePredictor

SEED = 411
SPACINGS_MM = ((0.8, 0.8, 1.5), (1.0, 1.0, 2.5), (0.8, 0.8, 5.0))
"""Phantoms take turns with these."""


def reproduce(quick: bool) -> Table:
    """Runs the shipped model on phantoms and on the real scan; ``quick`` takes 3 phantoms instead of 30."""
    import torch

    from apps.medical.app import app
    from shared.app import shipped
    from shared.data.registry import read_registry

    device = "cuda" if torch.cuda.is_available() else "cpu"
    (artifact,) = shipped(app)
    predictor = app.predictor([artifact], device)
    scans = [str(n) for n in range(3 if quick else 30)]
    marks, truths, seconds = phantoms(predictor, scans)
    curve = froc(marks, truths, scans=len(scans))
    at_one, mean = bootstrap(marks, truths, scans, random=np.random.default_rng(SEED))
    rows = [
        [
            "Sensitivity at 1 false positive per scan",
            "96.7 % (claim)",
            "95.7 % (MONAI, LUNA16, 10 folds)",
            f"{100 * sensitivity_at(curve, 1.0):.1f} % on {len(scans)} synthetic phantoms, {len(truths)} nodules "
            f"(95 %: {100 * at_one.low:.0f} to {100 * at_one.high:.0f})",
        ],
        [
            "CPM",
            "-",
            "0.936 (MONAI, LUNA16, 10 folds)",
            f"{cpm(curve):.3f} on the same synthetic phantoms (95 %: {mean.low:.2f} to {mean.high:.2f})",
        ],
        [
            "Seconds a scan, from voxels to findings",
            "under 0.2 (claim)",
            "7.26 end to end, 0.996 network (MONAI, A100, AMP)",
            f"{np.median(seconds):.2f} median on {device}",
        ],
    ]
    entry = read_registry(app.data_registry)["lung1"]
    root = entry.locate()
    if root is None:
        rows.append(["Rank of the real nodule (pyradiomics lung1)", "-", "-", "the scan is not on this machine"])
    else:
        rank, took = real_rank(predictor, root / "medical" / "pyradiomics_lung1")
        found = "not found" if rank is None else f"{rank}"
        rows.append(["Rank of the real nodule (pyradiomics lung1)", "-", "-", f"{found} ({took:.2f} s)"])
    return Table(
        title="Lung nodules in chest CT",
        columns=("figure", "claim", "peer, as published", "here"),
        rows=rows,
        notes=(
            "The phantoms are synthetic, and so is all training data: their figures do not compare with LUNA16's.",
            "Peer: MONAI model zoo, lung_nodule_ct_detection 0.6.8, and its tutorial's table; other hardware.",
            f"Model {artifact.manifest.name} version {artifact.manifest.version}.",
        ),
    )


def phantoms(predictor: NodulePredictor, scans: list[str]) -> tuple[list[Mark], list[Truth], list[float]]:
    """Marks and truths on whole phantoms, and the seconds that each took."""
    from apps.medical.data.synth.phantom import volume

    marks, truths, seconds = [], [], []
    for number, scan in enumerate(scans):
        made, known = volume(
            np.random.default_rng((SEED, number)),
            spacing_mm=SPACINGS_MM[number % len(SPACINGS_MM)],
            nodules=4,
            diameters_mm=(5.0, 22.0),
        )
        found, took = _find(predictor, made)
        seconds.append(took)
        marks += [Mark(scan, nodule.centre_lps_mm, nodule.score) for nodule in found]
        truths += [Truth(scan, nodule.centre_lps_mm, nodule.mean_diameter_mm) for nodule in known]
    return marks, truths, seconds


def real_rank(predictor: NodulePredictor, folder: Path) -> tuple[int | None, float]:
    """The rank, from 1, of the first finding whose centre lies in the real nodule's mask, and the seconds taken."""
    from apps.medical.data.source import read_volume

    image = read_volume([folder / "lung1_image.nrrd"])
    mask = _mask(folder / "lung1_label.nrrd")
    found, took = _find(predictor, image)
    for rank, nodule in enumerate(found, start=1):
        i, j, k = np.rint(image.to_index_ijk(nodule.centre_lps_mm)).astype(int).clip(0, np.array(image.size_ijk) - 1)
        if mask[k, j, i]:
            return rank, took
    return None, took


def _mask(file: Path) -> np.ndarray:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) > 0


def _find(predictor: NodulePredictor, scan: CTVolume) -> tuple[list[Nodule], float]:
    from apps.medical.predictor import MOST_FINDINGS, Case

    began = time.perf_counter()
    (reading,) = predictor.predict([Case(scan, 0.0, MOST_FINDINGS)])
    return reading.findings, time.perf_counter() - began
