"""The headline table: published claims and figures, and ours measured here and now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.medical.datasets.synthetic import EVALUATION_SEED, phantoms
from apps.medical.metrics.diameter import mean_axial_diameter_mm
from apps.medical.metrics.froc import Froc, Interval, Truth, bootstrap, cpm, froc, point_at, score_at, sensitivity_at
from apps.medical.models import MODELS
from shared.app import Table
from shared.progress_bar import progress_bar

if TYPE_CHECKING:
    from apps.medical.inference.evaluation import ScanScores
    from apps.medical.predictor import NodulePredictor

ROOT = Path(__file__).parent
QUICK, WHOLE = 15, 60
"""Phantoms: some minutes on two cores, and an hour or more."""

SIZES_MM = ((3.0, 6.0), (6.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 100.0))
FOLLOWED_MM, LUNA16_SLICES_MM = 6.0, 2.5
"""From this size on Lung-RADS v2022 follows a solid nodule; LUNA16 has no scan of thicker slices."""

PEER = "MONAI, LUNA16, 10 folds"
BARS = (92.0, 0.88)
"""Of sensitivity at one false positive a scan, in %, and of CPM; and of the former model's misses half at most."""


def reproduce(quick: bool) -> Table:
    """Runs the shipped model and the one before it on phantoms and the real scan; ``quick`` takes fewer phantoms."""
    import torch

    from apps.medical.inference.evaluation import ScanScores, add_scan
    from apps.medical.predictor import NodulePredictor
    from shared.deploy.registry import Registry

    device = "cuda" if torch.cuda.is_available() else "cpu"
    registry = Registry(ROOT / "weights")
    versions = sorted(registry.versions(MODELS[0]).items(), reverse=True)[:2]
    artifacts = [registry.open(folder) for _, folder in versions]
    second = [registry.newest(MODELS[1])] if registry.versions(MODELS[1]) else []
    predictors = [NodulePredictor.load([artifact, *second], device) for artifact in artifacts]
    scores = [ScanScores() for _ in predictors]
    count = QUICK if quick else WHOLE
    for scan in progress_bar(phantoms(EVALUATION_SEED, count), count, "painting and searching phantoms"):
        for found, predictor in zip(scores, predictors, strict=True):
            add_scan(found, predictor, scan)
    rows = _headline(scores[0], predictors[0].operating_score, device)
    rows += _by_size_kind_and_slices(scores[0])
    if len(scores) > 1:
        rows.append(_former(scores[1], artifacts[1].manifest.version, scores[0]))
    rows.append(_real(predictors[0]))
    return Table(
        title="Lung nodules in chest CT",
        columns=("figure", "claim", "peer, as published", "here"),
        rows=rows,
        notes=(
            "The phantoms are synthetic, and so is all training data: their figures do not compare with LUNA16's.",
            f"{count} phantoms, {len(scores[0].truths)} nodules of 3 to 80 mm; no chest of theirs was trained on.",
            "Peer: MONAI model zoo, lung_nodule_ct_detection 0.6.8, and its tutorial's table; other hardware.",
            f"Model {artifacts[0].manifest.name} version {artifacts[0].manifest.version}.",
        ),
    )


def _headline(found: ScanScores, operating_score: float, device: str) -> list[list[str]]:
    curve, at_one, mean = _figures(found)
    true, measured, sides = np.array(found.diameters_mm).reshape(-1, 3).T
    rate, sensitivity = point_at(curve, operating_score)
    return [
        [
            "Sensitivity at 1 false positive per scan",
            "96.7 % (claim)",
            f"95.7 % ({PEER})",
            f"{100 * sensitivity_at(curve, 1.0):.1f} % on {found.scans} synthetic phantoms, {len(found.truths)} "
            f"nodules (95 %: {100 * at_one.low:.0f} to {100 * at_one.high:.0f}; the bar is {BARS[0]:g})",
        ],
        [
            f"At the operating score, {operating_score:.3f}",
            "-",
            "-",
            f"{100 * sensitivity:.1f} % at {rate:.2f} false positives a scan on the same synthetic phantoms",
        ],
        [
            "CPM",
            "-",
            f"0.936 ({PEER})",
            f"{cpm(curve):.3f} on the same synthetic phantoms (95 %: {mean.low:.2f} to {mean.high:.2f}; the bar is "
            f"{BARS[1]:g})",
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


def _figures(found: ScanScores) -> tuple[Froc, Interval, Interval]:
    """The curve, and the intervals of the sensitivity at one false positive a scan and of the CPM."""
    figures = (lambda curve: sensitivity_at(curve, 1.0), cpm)
    random = np.random.default_rng(EVALUATION_SEED)
    at_one, mean = bootstrap(found.marks, found.truths, scans=found.scans, figures=figures, random=random)
    return froc(found.marks, found.truths, scans=found.scans), at_one, mean


def _by_size_kind_and_slices(found: ScanScores) -> list[list[str]]:
    """What is found of each group at the score that has one false positive a scan over all."""
    from apps.medical.inference.evaluation import sensitivity_among

    score = score_at(froc(found.marks, found.truths, scans=found.scans), 1.0)
    groups: list[tuple[str, Callable[[Truth, str], bool]]] = [
        (f"{low:g} to {high:g} mm" if high < 100 else f"{low:g} mm and more", _of_size(low, high))
        for low, high in SIZES_MM
    ]
    groups += [(kind, _of_kind(kind)) for kind in sorted({kind for _, kind in found.kinds})]
    groups += [(f"in slices {mm:g} mm apart", _in_slices(found, mm, mm)) for mm in sorted({*found.slices_mm.values()})]
    groups.append(
        (
            f"{FOLLOWED_MM:g} mm and more in slices up to {LUNA16_SLICES_MM:g} mm",
            _in_slices(found, 0, LUNA16_SLICES_MM, FOLLOWED_MM),
        )
    )
    rows = []
    for name, chosen in groups:
        hits, count = sensitivity_among(found, chosen, score)
        if count:
            low, high = wilson_interval(hits, count)
            said = f"{100 * hits / count:.0f} %, {hits} of {count} (95 %: {100 * low:.0f} to {100 * high:.0f})"
            rows.append([f"... of these, {name}", "-", "-", said])
    return rows


def _of_size(low: float, high: float) -> Callable[[Truth, str], bool]:
    return lambda truth, _: low <= truth.diameter_mm < high


def _of_kind(kind: str) -> Callable[[Truth, str], bool]:
    return lambda _, this: this == kind


def _in_slices(found: ScanScores, low: float, high: float, least_mm: float = 0.0) -> Callable[[Truth, str], bool]:
    return lambda truth, _: low <= found.slices_mm[truth.scan] <= high and truth.diameter_mm >= least_mm


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    z = 1.96
    share, spread = hits / count, np.sqrt(hits / count * (1 - hits / count) / count + z**2 / (4 * count**2))
    middle, scale = share + z**2 / (2 * count), 1 + z**2 / count
    return float((middle - z * spread) / scale), float((middle + z * spread) / scale)


def _former(found: ScanScores, version: int, present: ScanScores) -> list[str]:
    curve, at_one, mean = _figures(found)
    theirs, ours = (1 - sensitivity_at(froc(one.marks, one.truths, scans=one.scans), 1.0) for one in (found, present))
    return [
        f"The model before it, version {version}, on the same phantoms",
        "-",
        "-",
        f"{100 * sensitivity_at(curve, 1.0):.1f} % at 1 false positive a scan (95 %: {100 * at_one.low:.0f} to "
        f"{100 * at_one.high:.0f}), CPM {cpm(curve):.3f} (95 %: {mean.low:.2f} to {mean.high:.2f}); the present one "
        f"misses {100 * ours / max(theirs, 1e-9):.0f} % of what it misses (the bar is 50)",
    ]


def _real(predictor: NodulePredictor) -> list[str]:
    from shared.data.registry import read_registry

    name = "Rank and mean diameter of the real nodule (pyradiomics lung1)"
    root = read_registry(ROOT / "datasets" / "registry.json")["lung1"].locate()
    if root is None:
        return [name, "-", "-", "the scan is not on this machine"]
    place, took = real_nodule(predictor, root / "medical" / "pyradiomics_lung1")
    said = "not found" if place is None else f"{place[0]}, {place[1]:.1f} mm where its mask has {place[2]:.1f}"
    return [name, "-", "-", f"{said} ({took:.2f} s)"]


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
