"""Scores a predictor on annotated scans, for the operating point and for tables of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from apps.medical.metrics.froc import Mark, Truth, cpm, froc, point_at
from apps.medical.metrics.luna16 import froc_table
from apps.medical.predictor import ALL_FINDINGS, NodulePredictor
from apps.medical.types import AnnotatedScan, CTVolume, Nodule
from shared.app import DomainScore, Table
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar


@dataclass(kw_only=True, slots=True)
class ScanScores:
    """Findings and annotations of ``scans`` scans.

    seconds        from voxels to findings, for each scan
    diameters_mm   for each detected nodule: true diameter, measured diameter, mean in-plane side of its box
    labels         marks and annotations by class, with the annotations of other classes excluded
    kinds          annotations whose kind is known, with the kind
    slices_mm      slice spacing of each scan
    """

    scans: int = 0
    marks: list[Mark] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diameters_mm: list[tuple[float, float, float]] = field(default_factory=list)
    labels: dict[str, tuple[list[Mark], list[Truth]]] = field(default_factory=dict)
    kinds: list[tuple[Truth, str]] = field(default_factory=list)
    slices_mm: dict[str, float] = field(default_factory=dict)


def timed_prediction(predictor: NodulePredictor, volume: CTVolume) -> tuple[tuple[Nodule, ...], float]:
    """All findings of a scan by decreasing score, and the seconds from voxels to findings."""
    start = time.perf_counter()
    (findings,) = predictor.predict([volume], ALL_FINDINGS)
    return findings.nodules, time.perf_counter() - start


def score_scans(predictor: NodulePredictor, scans: Iterable[AnnotatedScan]) -> ScanScores:
    """The findings and annotations of all scans."""
    scores = ScanScores()
    for scan in progress_bar(scans, None, "searching scans"):
        add_scan(scores, predictor, scan)
    return scores


def add_scan(scores: ScanScores, predictor: NodulePredictor, scan: AnnotatedScan) -> None:
    """Adds the findings and annotations of a scan to ``scores``."""
    findings, seconds = timed_prediction(predictor, scan.volume)
    scores.scans += 1
    scores.seconds.append(seconds)
    scores.slices_mm[scan.name] = scan.volume.spacing_mm[2]
    scores.marks.extend(Mark(scan.name, nodule.centre_lps_mm, nodule.score) for nodule in findings)
    scores.truths.extend(_truth(scan, nodule) for nodule in scan.nodules)
    scores.kinds.extend((_truth(scan, n), kind) for n, kind in zip(scan.nodules, scan.kinds, strict=False))
    for label in {nodule.label for nodule in (*scan.nodules, *findings)}:
        marks, truths = scores.labels.setdefault(label, ([], []))
        marks += [Mark(scan.name, n.centre_lps_mm, n.score) for n in findings if n.label == label]
        truths += [_truth(scan, n, excluded=n.label != label) for n in scan.nodules]
    scores.truths.extend(_truth(scan, nodule, excluded=True) for nodule in scan.excluded)
    scores.diameters_mm.extend(_diameters(scan.nodules, findings))


def sensitivity_among(scores: ScanScores, select: Callable[[Truth, str], bool], score: float) -> tuple[int, int]:
    """How many of the selected nodules are hit by a mark that scores at least ``score``, and how many there are."""
    truths = [replace(truth, excluded=not select(truth, kind)) for truth, kind in scores.kinds]
    count = sum(not truth.excluded for truth in truths)
    if not count:
        return 0, 0
    sensitivity = point_at(froc(scores.marks, truths, scans=scores.scans), score)[1]
    return round(sensitivity * count), count


def evaluate_data_set(predictor: Any, data: Any, limit: int | None = None) -> Table:
    """LUNA16's sensitivities and CPM on the first ``limit`` validation scans of a data set.

    ``predictor`` is a NodulePredictor, ``data`` one of ``DATA_SETS``. All findings of a scan count, at most 100,
    regardless of the operating point. Raises InvalidInputError if the scans have no nodule.
    """
    scores = score_scans(predictor, islice(data.validation_scans(), limit))
    if not any(not truth.excluded for truth in scores.truths):
        raise InvalidInputError(f"none of the {scores.scans} validation scans has a nodule, so there is no sensitivity")
    description, notes = data.fingerprint(), []
    if description["synthetic"]:
        notes.append("The scans are synthetic: these figures are not comparable with LUNA16's.")
    if scores.diameters_mm:
        true, measured, _ = np.array(scores.diameters_mm).T
        error = np.abs(measured - true).mean()
        notes.append(f"Mean error of the diameter: {error:.1f} mm, on {len(true)} detected nodules.")
    notes.append(f"Median time of a scan on {predictor.device}: {np.median(scores.seconds):.2f} s.")
    labels = sorted(scores.labels)
    if len(labels) > 1:
        notes.append(
            "The table does not distinguish classes. "
            + "; ".join(_class_summary(scores, label) for label in labels)
            + "."
        )
    skipped = [f"{reason}: {count}" for reason, count in description.get("passed_over", {}).items() if count]
    if skipped:
        notes.append("; ".join(skipped) + ".")
    title = f"Nodules found: {description['description']}"
    return froc_table(title, scores.marks, scores.truths, scans=scores.scans, notes=notes)


def score(predictor: Any, data: Any, limit: int | None = None) -> tuple[DomainScore, ...]:
    """LUNA16's CPM on the first ``limit`` validation scans of a data set."""
    scores = score_scans(predictor, islice(data.validation_scans(), limit))
    nodules = sum(not truth.excluded for truth in scores.truths)
    value = cpm(froc(scores.marks, scores.truths, scans=scores.scans))
    count = f"{nodules} nodules in {scores.scans} scans"
    return (DomainScore(name="CPM", value=value, count=count, data=data.fingerprint()["description"]),)


def _truth(scan: AnnotatedScan, nodule: Nodule, *, excluded: bool = False) -> Truth:
    return Truth(scan.name, nodule.centre_lps_mm, nodule.mean_diameter_mm, excluded)


def _class_summary(scores: ScanScores, label: str) -> str:
    marks, truths = scores.labels[label]
    count = sum(not truth.excluded for truth in truths)
    if not count:
        return f"{label}: no nodule"
    return f"{label}: CPM {cpm(froc(marks, truths, scans=scores.scans)):.3f} on {count} nodules"


def _diameters(known: Sequence[Nodule], found: Sequence[Nodule]) -> Iterator[tuple[float, float, float]]:
    for nodule in known:
        for finding in found:
            if np.linalg.norm(np.subtract(finding.centre_lps_mm, nodule.centre_lps_mm)) < nodule.mean_diameter_mm / 2:
                sides = np.subtract(finding.box_lps_mm[3:5], finding.box_lps_mm[:2])
                yield nodule.mean_diameter_mm, finding.mean_diameter_mm, float(sides.mean())
                break
