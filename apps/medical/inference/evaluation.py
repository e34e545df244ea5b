"""The detector on whole phantoms that it has not learnt from: for its operating point and for the headline table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from apps.medical.metrics.froc import Mark, Truth
from apps.medical.predictor import MOST_FINDINGS, Case, NodulePredictor
from apps.medical.types import CTVolume, Nodule

SPACINGS_MM = ((0.8, 0.8, 1.5), (1.0, 1.0, 2.5), (0.8, 0.8, 5.0))
"""Phantoms take turns with these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found on so many ``scans``, what is there, and the seconds that each took.

    ``diameters_mm`` has the true one, the measured one and the mean of the box's sides of each nodule that was found.
    """

    scans: int
    marks: list[Mark] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diameters_mm: list[tuple[float, float, float]] = field(default_factory=list)


def phantom(seed: int, number: int) -> tuple[CTVolume, list[Nodule]]:
    """Phantom ``number`` of a series: four nodules of 5 to 22 mm, as spread among solid and others as LIDC's."""
    from apps.medical.datasets.synth.phantom import volume

    spacing = SPACINGS_MM[number % len(SPACINGS_MM)]
    return volume(np.random.default_rng((seed, number)), spacing_mm=spacing, nodules=4, diameters_mm=(5.0, 22.0))


def find(predictor: NodulePredictor, scan: CTVolume) -> tuple[list[Nodule], float]:
    """All findings of a scan, best first, and the seconds from voxels to findings."""
    began = time.perf_counter()
    (reading,) = predictor.predict([Case(scan, 0.0, MOST_FINDINGS)])
    return reading.findings, time.perf_counter() - began


def on_phantoms(predictor: NodulePredictor, *, seed: int, scans: int) -> Findings:
    """The findings on the first ``scans`` phantoms of a series."""
    findings = Findings(scans=scans)
    for number in range(scans):
        made, known = phantom(seed, number)
        found, took = find(predictor, made)
        scan = str(number)
        findings.seconds.append(took)
        findings.marks.extend(Mark(scan, nodule.centre_lps_mm, nodule.score) for nodule in found)
        findings.diameters_mm.extend(_diameters(known, found))
        findings.truths.extend(Truth(scan, nodule.centre_lps_mm, nodule.mean_diameter_mm) for nodule in known)
    return findings


def _diameters(known: list[Nodule], found: list[Nodule]) -> Iterator[tuple[float, float, float]]:
    for nodule in known:
        for finding in found:
            if np.linalg.norm(np.subtract(finding.centre_lps_mm, nodule.centre_lps_mm)) < nodule.mean_diameter_mm / 2:
                sides = np.subtract(finding.box_lps_mm[3:5], finding.box_lps_mm[:2])
                yield nodule.mean_diameter_mm, finding.mean_diameter_mm, float(sides.mean())
                break
