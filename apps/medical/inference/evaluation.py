"""A predictor on whole scans whose nodules are known: for an operating point, and for the figures of a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from apps.medical.metrics.froc import Mark, Truth, cpm, froc, point_at
from apps.medical.metrics.luna16 import froc_table
from apps.medical.predictor import EVERYTHING, NodulePredictor
from apps.medical.types import AnnotatedScan, CTVolume, Nodule
from shared.app import DomainScore, Table
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar


@dataclass(kw_only=True, slots=True)
class ScanScores:
    """What was found on so many ``scans``, what is there, and the seconds that each took.

    ``diameters_mm`` has the true one, the measured one and the mean of the box's sides of each nodule that was found;
    ``labels`` the marks of each class, and the nodules, those of other classes excluded; ``kinds`` the nodules whose
    sort is known, with it; ``slices_mm`` how far apart the slices of each scan are.
    """

    scans: int = 0
    marks: list[Mark] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diameters_mm: list[tuple[float, float, float]] = field(default_factory=list)
    labels: dict[str, tuple[list[Mark], list[Truth]]] = field(default_factory=dict)
    kinds: list[tuple[Truth, str]] = field(default_factory=list)
    slices_mm: dict[str, float] = field(default_factory=dict)


def find_timed(predictor: NodulePredictor, volume: CTVolume) -> tuple[tuple[Nodule, ...], float]:
    """All findings of a scan, best first, and the seconds from voxels to findings."""
    began = time.perf_counter()
    (findings,) = predictor.predict([volume], EVERYTHING)
    return findings.nodules, time.perf_counter() - began


def score_scans(predictor: NodulePredictor, scans: Iterable[AnnotatedScan]) -> ScanScores:
    """The findings on each of the scans beside what is known of it."""
    scores = ScanScores()
    for scan in progress_bar(scans, None, "searching scans"):
        add_scan(scores, predictor, scan)
    return scores


def add_scan(scores: ScanScores, predictor: NodulePredictor, scan: AnnotatedScan) -> None:
    """Adds what is found on a scan, and what is known of it."""
    found, took = find_timed(predictor, scan.volume)
    scores.scans += 1
    scores.seconds.append(took)
    scores.slices_mm[scan.name] = scan.volume.spacing_mm[2]
    scores.marks.extend(Mark(scan.name, nodule.centre_lps_mm, nodule.score) for nodule in found)
    scores.truths.extend(_truth(scan, nodule) for nodule in scan.nodules)
    scores.kinds.extend((_truth(scan, n), kind) for n, kind in zip(scan.nodules, scan.kinds, strict=False))
    for label in {nodule.label for nodule in (*scan.nodules, *found)}:
        marks, truths = scores.labels.setdefault(label, ([], []))
        marks += [Mark(scan.name, n.centre_lps_mm, n.score) for n in found if n.label == label]
        truths += [_truth(scan, n, excluded=n.label != label) for n in scan.nodules]
    scores.truths.extend(_truth(scan, nodule, excluded=True) for nodule in scan.excluded)
    scores.diameters_mm.extend(_diameters(scan.nodules, found))


def sensitivity_among(scores: ScanScores, chosen: Callable[[Truth, str], bool], score: float) -> tuple[int, int]:
    """How many of the chosen nodules have a mark of at least ``score``, and how many there are."""
    truths = [replace(truth, excluded=not chosen(truth, kind)) for truth, kind in scores.kinds]
    count = sum(not truth.excluded for truth in truths)
    if not count:
        return 0, 0
    found = point_at(froc(scores.marks, truths, scans=scores.scans), score)[1]
    return round(found * count), count


def evaluate_data_set(predictor: Any, data: Any, limit: int | None = None) -> Table:
    """LUNA16's sensitivities and CPM on the whole validation scans of a data set, the first ``limit`` of them.

    ``predictor`` is a NodulePredictor, ``data`` one of ``DATA_SETS``. Of each scan all findings count, at most 100,
    whatever the operating point.
    """
    scores = score_scans(predictor, islice(data.validation_scans(), limit))
    if not any(not truth.excluded for truth in scores.truths):
        raise InvalidInputError(f"none of the {scores.scans} validation scans has a nodule: no sensitivity can be told")
    description, notes = data.fingerprint(), []
    if description["synthetic"]:
        notes.append("The scans are synthetic: these figures do not compare with LUNA16's.")
    if scores.diameters_mm:
        true, measured, _ = np.array(scores.diameters_mm).T
        error = np.abs(measured - true).mean()
        notes.append(f"Mean error of the diameter: {error:.1f} mm, on {len(true)} nodules that were found.")
    notes.append(f"Median time of a scan on {predictor.device}: {np.median(scores.seconds):.2f} s.")
    labels = sorted(scores.labels)
    if len(labels) > 1:
        notes.append(
            "Above, classes are not told apart. " + "; ".join(_of_class(scores, label) for label in labels) + "."
        )
    passed_over = [f"{what}: {count}" for what, count in description.get("passed_over", {}).items() if count]
    if passed_over:
        notes.append("; ".join(passed_over) + ".")
    title = f"Nodules found: {description['description']}"
    return froc_table(title, scores.marks, scores.truths, scans=scores.scans, notes=notes)


def score(predictor: Any, data: Any, limit: int | None = None) -> tuple[DomainScore, ...]:
    """LUNA16's CPM on the validation scans of a data set, the first ``limit`` of them."""
    scores = score_scans(predictor, islice(data.validation_scans(), limit))
    nodules = sum(not truth.excluded for truth in scores.truths)
    value = cpm(froc(scores.marks, scores.truths, scans=scores.scans))
    count = f"{nodules} nodules in {scores.scans} scans"
    return (DomainScore(name="CPM", value=value, count=count, data=data.fingerprint()["description"]),)


def _truth(scan: AnnotatedScan, nodule: Nodule, *, excluded: bool = False) -> Truth:
    return Truth(scan.name, nodule.centre_lps_mm, nodule.mean_diameter_mm, excluded)


def _of_class(scores: ScanScores, label: str) -> str:
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
