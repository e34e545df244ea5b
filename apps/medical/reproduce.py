"""The headline table: claims and published figures of others beside ours, which are measured when it runs."""

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
"""Numbers of phantoms: a few minutes on two cores, and an hour or more."""

SIZES_MM = ((3.0, 6.0), (6.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 100.0))
FOLLOWED_MM, LUNA16_SLICES_MM = 6.0, 2.5
"""Lung-RADS v2022 follows up solid nodules from this size on; LUNA16 has no scans with thicker slices."""

PEER = "MONAI, LUNA16, 10 folds"
TARGETS = (92.0, 0.88)
"""Minimum sensitivity (%) at one false positive per scan, and minimum CPM.

The model may also miss at most half as many nodules as its previous version.
"""


def reproduce(quick: bool) -> Table:
    """Runs the shipped model and its previous version on phantoms, and the shipped model on the real scan.

    ``quick`` uses fewer phantoms.
    """
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
    for scan in progress_bar(phantoms(EVALUATION_SEED, count), count, "generating and searching phantoms"):
        for found, predictor in zip(scores, predictors, strict=True):
            add_scan(found, predictor, scan)
    sensitivity, *others = _headline(scores[0], predictors[0].operating_score, device)
    rows = [sensitivity, *_by_size_kind_and_slices(scores[0]), *others]
    if len(scores) > 1:
        rows.append(_previous_model(scores[1], artifacts[1].manifest.version, scores[0]))
    rows.append(_real_scan(predictors[0]))
    return Table(
        title="Lung nodules in chest CT",
        columns=("figure", "claim", "peer, as published", "here"),
        rows=rows,
        notes=(
            "The phantoms are synthetic, as is all training data: their figures are not comparable with LUNA16's.",
            f"{count} phantoms, {len(scores[0].truths)} nodules of 3 to 80 mm; none of these chests was in training.",
            "Peer: MONAI model zoo, lung_nodule_ct_detection 0.6.8, and its tutorial's table; different hardware.",
            f"Model {artifacts[0].manifest.name} version {artifacts[0].manifest.version}.",
        ),
    )


def _headline(scores: ScanScores, operating_score: float, device: str) -> list[list[str]]:
    curve, at_one, cpm_interval = _figures(scores)
    true, measured, sides = np.array(scores.diameters_mm).reshape(-1, 3).T
    rate, sensitivity = point_at(curve, operating_score)
    return [
        [
            "Sensitivity at 1 false positive per scan",
            "96.7 % (claim)",
            f"95.7 % ({PEER})",
            f"{100 * sensitivity_at(curve, 1.0):.1f} % on {scores.scans} synthetic phantoms, {len(scores.truths)} "
            f"nodules (95 % CI {100 * at_one.low:.0f} to {100 * at_one.high:.0f}; target {TARGETS[0]:g} %)",
        ],
        [
            f"At the operating score, {operating_score:.3f}",
            "-",
            "-",
            f"{100 * sensitivity:.1f} % at {rate:.2f} false positives per scan on the same synthetic phantoms",
        ],
        [
            "CPM",
            "-",
            f"0.936 ({PEER})",
            f"{cpm(curve):.3f} on the same synthetic phantoms (95 % CI {cpm_interval.low:.2f} to "
            f"{cpm_interval.high:.2f}; target {TARGETS[1]:g})",
        ],
        [
            "Error of the mean diameter",
            "-",
            "-",
            f"{np.abs(measured - true).mean():.1f} mm, {np.mean(measured - true):+.1f} on average, {len(true)} nodules "
            f"(from the box's sides {np.abs(sides - true).mean():.1f}, {np.mean(sides - true):+.1f})",
        ],
        [
            "Seconds per scan, from voxels to findings",
            "under 0.2 (claim)",
            "7.26 end to end, 0.996 network (MONAI, A100, AMP)",
            f"{np.median(scores.seconds):.2f} median on {device}",
        ],
    ]


def _figures(scores: ScanScores) -> tuple[Froc, Interval, Interval]:
    """The FROC curve, and the 95 % intervals of the sensitivity at one false positive per scan and of the CPM."""
    figures = (lambda curve: sensitivity_at(curve, 1.0), cpm)
    random = np.random.default_rng(EVALUATION_SEED)
    at_one, cpm_interval = bootstrap(scores.marks, scores.truths, scans=scores.scans, figures=figures, random=random)
    return froc(scores.marks, scores.truths, scans=scores.scans), at_one, cpm_interval


def _by_size_kind_and_slices(scores: ScanScores) -> list[list[str]]:
    """Rows with the sensitivity in each group of nodules, at the score with one false positive per scan over all."""
    from apps.medical.inference.evaluation import sensitivity_among

    score = score_at(froc(scores.marks, scores.truths, scans=scores.scans), 1.0)
    groups: list[tuple[str, Callable[[Truth, str], bool]]] = [
        (f"{low:g} to {high:g} mm" if high < 100 else f"{low:g} mm and more", _of_size(low, high))
        for low, high in SIZES_MM
    ]
    groups += [(kind, _of_kind(kind)) for kind in sorted({kind for _, kind in scores.kinds})]
    groups += [
        (f"in slices {mm:g} mm apart", _in_slices(scores, mm, mm)) for mm in sorted({*scores.slices_mm.values()})
    ]
    groups.append(
        (
            f"{FOLLOWED_MM:g} mm and more in slices up to {LUNA16_SLICES_MM:g} mm",
            _in_slices(scores, 0, LUNA16_SLICES_MM, FOLLOWED_MM),
        )
    )
    rows = []
    for name, is_in_group in groups:
        hits, count = sensitivity_among(scores, is_in_group, score)
        if count:
            low, high = wilson_interval(hits, count)
            figure = f"{100 * hits / count:.0f} %, {hits} of {count} (95 % CI {100 * low:.0f} to {100 * high:.0f})"
            rows.append([f"Sensitivity at that score: {name}", "-", "-", figure])
    return rows


def _of_size(low: float, high: float) -> Callable[[Truth, str], bool]:
    return lambda truth, _: low <= truth.diameter_mm < high


def _of_kind(kind: str) -> Callable[[Truth, str], bool]:
    return lambda _, nodule_kind: nodule_kind == kind


def _in_slices(scores: ScanScores, low: float, high: float, min_mm: float = 0.0) -> Callable[[Truth, str], bool]:
    return lambda truth, _: low <= scores.slices_mm[truth.scan] <= high and truth.diameter_mm >= min_mm


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    z = 1.96
    proportion, spread = hits / count, np.sqrt(hits / count * (1 - hits / count) / count + z**2 / (4 * count**2))
    middle, scale = proportion + z**2 / (2 * count), 1 + z**2 / count
    return float((middle - z * spread) / scale), float((middle + z * spread) / scale)


def _previous_model(previous: ScanScores, version: int, current: ScanScores) -> list[str]:
    curve, at_one, cpm_interval = _figures(previous)
    previous_misses, current_misses = (
        1 - sensitivity_at(froc(scores.marks, scores.truths, scans=scores.scans), 1.0) for scores in (previous, current)
    )
    return [
        f"The previous model, version {version}, on the same phantoms",
        "-",
        "-",
        f"{100 * sensitivity_at(curve, 1.0):.1f} % at 1 false positive per scan (95 % CI {100 * at_one.low:.0f} to "
        f"{100 * at_one.high:.0f}), CPM {cpm(curve):.3f} (95 % CI {cpm_interval.low:.2f} to {cpm_interval.high:.2f}); "
        f"the current model misses {100 * current_misses / max(previous_misses, 1e-9):.0f} % as many (target: at most "
        "50)",
    ]


def _real_scan(predictor: NodulePredictor) -> list[str]:
    from shared.data.registry import read_registry

    name = "Rank and mean diameter of the real nodule (pyradiomics lung1)"
    root = read_registry(ROOT / "datasets" / "registry.json")["lung1"].locate()
    if root is None:
        return [name, "-", "-", "the scan is not on this machine; `trivium data list lung1` says where to get it"]
    match, seconds = find_real_nodule(predictor, root / "medical" / "pyradiomics_lung1")
    figure = "not found" if match is None else f"{match[0]}, {match[1]:.1f} mm where its mask has {match[2]:.1f}"
    return [name, "-", "-", f"{figure} ({seconds:.2f} s)"]


def find_real_nodule(predictor: NodulePredictor, folder: Path) -> tuple[tuple[int, float, float] | None, float]:
    """Searches the real scan for the first finding whose centre lies in the mask of its nodule.

    Returns that finding's rank (from 1), its mean diameter and that of the mask (mm), or None if there is no such
    finding; and the seconds that the prediction took.
    """
    from apps.medical.adapters.source import read_volume
    from apps.medical.inference.evaluation import timed_prediction

    image = read_volume([folder / "lung1_image.nrrd"])
    mask = _mask(folder / "lung1_label.nrrd")
    findings, seconds = timed_prediction(predictor, image)
    for rank, nodule in enumerate(findings, start=1):
        i, j, k = np.rint(image.to_index_ijk(nodule.centre_lps_mm)).astype(int).clip(0, np.array(image.size_ijk) - 1)
        if mask[k, j, i]:
            true = mean_axial_diameter_mm(mask.transpose(2, 1, 0), image.spacing_mm[:2])
            return (rank, nodule.mean_diameter_mm, true), seconds
    return None, seconds


def _mask(file: Path) -> NDArray[np.bool_]:
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) > 0)
