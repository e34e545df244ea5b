"""The headline table: published claims and figures, and ours measured here and now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.medical.datasets.synthetic import EVALUATION_SEED, phantoms
from apps.medical.metrics.diameter import mean_axial_diameter_mm
from apps.medical.metrics.froc import bootstrap, cpm, froc, point_at, sensitivity_at
from apps.medical.models import MODELS
from shared.app import Table

if TYPE_CHECKING:
    from apps.medical.predictor import NodulePredictor

ROOT = Path(__file__).parent
QUICK, WHOLE = 15, 60
"""Phantoms: some minutes on two cores, and a quarter of an hour or more."""


def reproduce(quick: bool) -> Table:
    """Runs the shipped model on phantoms and on the real scan; ``quick`` takes fewer phantoms."""
    import torch

    from apps.medical.inference.evaluation import score_scans
    from apps.medical.predictor import NodulePredictor
    from shared.data.registry import read_registry
    from shared.deploy.registry import Registry

    device = "cuda" if torch.cuda.is_available() else "cpu"
    artifact = Registry(ROOT / "weights").newest(MODELS[0])
    predictor = NodulePredictor.load([artifact], device)
    scans = QUICK if quick else WHOLE
    found = score_scans(predictor, phantoms(EVALUATION_SEED, scans))
    curve = froc(found.marks, found.truths, scans=scans)
    figures = (lambda curve: sensitivity_at(curve, 1.0), cpm)
    random = np.random.default_rng(EVALUATION_SEED)
    at_one, mean = bootstrap(found.marks, found.truths, scans=scans, figures=figures, random=random)
    true, measured, sides = np.array(found.diameters_mm).reshape(-1, 3).T
    rate, sensitivity = point_at(curve, predictor.operating_score)
    rows = [
        [
            "Sensitivity at 1 false positive per scan",
            "96.7 % (claim)",
            "95.7 % (MONAI, LUNA16, 10 folds)",
            f"{100 * sensitivity_at(curve, 1.0):.1f} % on {scans} synthetic phantoms, {len(found.truths)} nodules "
            f"(95 %: {100 * at_one.low:.0f} to {100 * at_one.high:.0f})",
        ],
        [
            f"At the operating score, {predictor.operating_score:.3f}",
            "-",
            "-",
            f"{100 * sensitivity:.1f} % at {rate:.2f} false positives a scan on the same synthetic phantoms",
        ],
        [
            "CPM",
            "-",
            "0.936 (MONAI, LUNA16, 10 folds)",
            f"{cpm(curve):.3f} on the same synthetic phantoms (95 %: {mean.low:.2f} to {mean.high:.2f})",
        ],
        [
            "Error of the mean diameter",
            "-",
            "-",
            f"{np.abs(measured - true).mean():.1f} mm, {np.mean(measured - true):+.1f} on average, {len(true)} nodules "
            f"(by the box's sides {np.abs(sides - true).mean():.1f}, {np.mean(sides - true):+.1f})",
        ],
        [
            "Seconds a scan, from voxels to findings",
            "under 0.2 (claim)",
            "7.26 end to end, 0.996 network (MONAI, A100, AMP)",
            f"{np.median(found.seconds):.2f} median on {device}",
        ],
    ]
    entry = read_registry(ROOT / "datasets" / "registry.json")["lung1"]
    root = entry.locate()
    if root is None:
        rows.append(["Rank of the real nodule (pyradiomics lung1)", "-", "-", "the scan is not on this machine"])
    else:
        place, took = real_nodule(predictor, root / "medical" / "pyradiomics_lung1")
        said = "not found" if place is None else f"{place[0]}, {place[1]:.1f} mm where its mask has {place[2]:.1f}"
        rows.append(
            ["Rank and mean diameter of the real nodule (pyradiomics lung1)", "-", "-", f"{said} ({took:.2f} s)"]
        )
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


def real_nodule(predictor: NodulePredictor, folder: Path) -> tuple[tuple[int, float, float] | None, float]:
    """Of the first finding whose centre lies in the real nodule's mask: rank from 1, mean diameter, and the mask's.

    And the seconds that all findings took.
    """
    from apps.medical.adapters.source import read_volume
    from apps.medical.inference.evaluation import find_timed

    image = read_volume([folder / "lung1_image.nrrd"])
    mask = _mask(folder / "lung1_label.nrrd")
    findings, took = find_timed(predictor, image)
    for rank, nodule in enumerate(findings, start=1):
        i, j, k = np.rint(image.to_index_ijk(nodule.centre_lps_mm)).astype(int).clip(0, np.array(image.size_ijk) - 1)
        if mask[k, j, i]:
            true = mean_axial_diameter_mm(mask.transpose(2, 1, 0), image.spacing_mm[:2])
            return (rank, nodule.mean_diameter_mm, true), took
    return None, took


def _mask(file: Path) -> NDArray[np.bool_]:
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) > 0)
