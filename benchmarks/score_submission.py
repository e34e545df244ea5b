"""1,000 bootstrap samples of a LUNA16 submission over 888 scans: a new curve for each sample, against ours.

The peer is the challenge's procedure, implemented here from its description: the candidates of the drawn scans are
joined, and scikit-learn's ``roc_curve`` of them is evaluated at the seven rates. Ours weights the scans in one sorted
list. Both use the same draws, so that their figures must agree. The submission is synthetic (its marks are drawn around
LUNA16's real annotations), with about 35 marks per scan.

    python -m benchmarks.score_submission [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_curve

from apps.medical.datasets.luna16_files import read_scans, read_truths
from apps.medical.metrics.froc import OPERATING_POINTS, Mark, Matches, bootstrap_of, match, sensitivity_at
from benchmarks.report import report

SAMPLES = 1000
MAX_SECONDS = 2.0


def main() -> None:
    """Runs the comparison and prints it; ``--quick`` draws a twentieth of the peer's samples and scales its time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the peer draws 50 samples, and its time is scaled")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("TRIVIUM_DATA", "")) / "medical" / "luna16_annotations"
    if not folder.is_dir():
        raise SystemExit("LUNA16's annotations are not here: set TRIVIUM_DATA to the folder that holds the samples")
    truths = read_truths(folder / "annotations.csv", folder / "annotations_excluded.csv")
    scans = read_scans(folder / "seriesuids.csv")
    start = time.perf_counter()
    matches = match(synthetic_marks(truths, scans), truths, scans=len(scans))
    matching = time.perf_counter() - start
    figures = [partial(sensitivity_at, false_positives_per_scan=rate) for rate in OPERATING_POINTS]
    start = time.perf_counter()
    ours = bootstrap_of(matches, figures=figures, random=np.random.default_rng(1), samples=SAMPLES)
    ours_s = time.perf_counter() - start
    samples = SAMPLES // 20 if arguments.quick else SAMPLES
    start = time.perf_counter()
    peer_sensitivities = peer(matches, np.random.default_rng(1), samples)
    peer_s = (time.perf_counter() - start) * SAMPLES / samples
    if arguments.quick:
        ours = bootstrap_of(matches, figures=figures, random=np.random.default_rng(1), samples=samples)
    difference = float(np.abs(peer_sensitivities.mean(axis=0) - [interval.mean for interval in ours]).max())
    report(
        "score_submission",
        {
            "marks that count": len(matches.hit_scores_H) + len(matches.false_scores_F),
            "matching s": matching,
            "ours s": ours_s,
            "peer s": peer_s,
            "largest difference of a mean sensitivity": difference,
        },
        ratio=peer_s / ours_s,
        ok=difference < 1e-9 and ours_s < MAX_SECONDS,
        note=f"{SAMPLES} samples of {len(scans)} scans, {len(OPERATING_POINTS)} rates"
        + (f"; the peer's time is scaled from {samples} samples" if arguments.quick else ""),
    )


def peer(matches: Matches, random: np.random.Generator, samples: int) -> np.ndarray:
    """(samples, 7) sensitivities, from a separate curve of the joined candidates of each sample."""
    scans = len(matches.nodules_S)
    candidates = [
        np.stack(
            [
                np.concatenate(
                    [
                        np.ones((hits := matches.hit_scans_H == scan).sum()),
                        np.zeros((false := matches.false_scans_F == scan).sum()),
                    ]
                ),
                np.concatenate([matches.hit_scores_H[hits], matches.false_scores_F[false]]),
            ]
        )
        for scan in range(scans)
    ]
    values = np.empty((samples, len(OPERATING_POINTS)))
    for sample in range(samples):
        drawn_scans = random.integers(scans, size=scans)
        labels, scores = np.concatenate([candidates[scan] for scan in drawn_scans], axis=1)
        detected, nodules = labels.sum(), matches.nodules_S[drawn_scans].sum()
        fpr, tpr, _ = roc_curve(labels, scores)
        values[sample] = np.interp(OPERATING_POINTS, fpr * (len(labels) - detected) / scans, tpr * detected / nodules)
    return values


def synthetic_marks(truths: list, scans: list[str]) -> list[Mark]:
    """Marks on most nodules and some excluded findings, and up to 70 false marks on each scan."""
    random = np.random.default_rng(0)
    marks = []
    for truth in truths:
        if random.random() < (0.1 if truth.excluded else 0.95):
            marks.append(Mark(truth.scan, truth.centre_mm, float(random.beta(4, 2))))
    for scan in scans:
        for _ in range(random.integers(70)):
            x, y, z = random.uniform(-200, 200, 3).tolist()
            marks.append(Mark(scan, (x, y, z), float(random.beta(1, 5))))
    return marks


if __name__ == "__main__":
    main()
