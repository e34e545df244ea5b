"""What each detector contributes: each alone, all without it, and others added, at equal numbers of false events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from apps.finance.inference.calibration import ScoredRows, initial_threshold, reported_scores
from apps.finance.inference.conformal import REPORTED
from apps.finance.inference.detectors import ANCHORS, CANDIDATES, DETECTORS
from apps.finance.inference.detectors.detector import Detector, ForecastedSeries, Ranking
from apps.finance.inference.scoring import FULL_SCORE_IMPROBABILITY, WEIGHTS, Calibration, combine
from apps.finance.metrics.nab import STANDARD, Rows, count_detections, score_corpus
from apps.finance.metrics.vus import vus_pr
from apps.finance.types import Floats

Channels = Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationResult:
    """Windows hit at several numbers of false events a series, NAB's standard score at the last, and mean VUS-PR."""

    name: str
    hits: tuple[int, ...]
    standard: float
    vus_pr: float


def all_channels(forecasted: ForecastedSeries, calibration: Calibration, *, anchors: bool) -> dict[str, Floats]:
    """-log10 p of every detector, (N,); the slow ones only if ``anchors``."""
    ranking = Ranking(prior_rows=calibration.prior_rows, tail=calibration.tail, memory=calibration.memory)
    table: dict[str, Detector] = {**DETECTORS, **CANDIDATES, **(ANCHORS if anchors else {})}
    return {
        name: detector.configured(calibration.prior.get(name, ()), ranking).score(forecasted)
        for name, detector in table.items()
    }


def ablate(
    channels: Sequence[Channels],
    windows: Sequence[Rows],
    calibration: Calibration,
    false_events: Sequence[float],
    peers: Sequence[Channels] = (),
) -> list[AblationResult]:
    """The result of each combination of detectors, at thresholds that give ``false_events`` false events a series.

    Each combination's threshold is found on the scored series themselves, so that all are compared alike, and stays
    fixed. ``peers`` has for each series the scores of other detectors by name.
    """
    scores_by_name = {
        name: [combination(series_channels) for series_channels in channels]
        for name, combination in _combinations(sorted(channels[0])).items()
    }
    scores_by_name |= {
        name: [series_channels[name] for series_channels in peers] for name in (peers[0] if peers else {})
    }
    return [_measure(name, scores, windows, calibration, false_events) for name, scores in scores_by_name.items()]


def _combinations(available: Sequence[str]) -> dict[str, _Combination]:
    """The compared combinations of the available detectors, by the name that the table shows."""
    members = tuple(name for name in DETECTORS if WEIGHTS.get(name, 1.0))
    combinations: dict[str, _Combination] = {"all, weighted root mean square (shipped)": _Combination(members)}
    combinations["all, each counts once"] = _Combination(members, weights={})
    combinations["all, mean"] = _Combination(members, power=1.0)
    combinations["all, largest"] = _Combination(members, power=np.inf)
    combinations |= {
        f"without {name}": _Combination(tuple(member for member in members if member != name)) for name in members
    }
    others = [name for name in (*DETECTORS, *CANDIDATES, *ANCHORS) if name in available and name not in members]
    combinations |= {f"with {name}": _Combination((*members, name), weights={**WEIGHTS, name: 1.0}) for name in others}
    combinations["with the Transformer (surprise and drift)"] = _Combination((*members, "surprise", "drift"))
    combinations["the Transformer alone (surprise and drift)"] = _Combination(("surprise", "drift"))
    combinations |= {f"{name} alone": _Combination((name,), weights={}) for name in (*members, *others)}
    if all(name in available for name in ANCHORS):
        combinations["PaAno with PAI's two scores"] = _Combination(tuple(ANCHORS), weights={})
    combinations["random"] = _Combination(())
    return combinations


@dataclass(frozen=True, slots=True)
class _Combination:
    """The combined score of these detectors; without any, a random score, exponential like -log10 p of normal rows."""

    names: tuple[str, ...]
    power: float = 2.0
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)

    def __call__(self, channels: Channels) -> Floats:
        if not self.names:
            length = len(next(iter(channels.values())))
            drawn = np.random.default_rng(length).exponential(1 / np.log(10), length) / FULL_SCORE_IMPROBABILITY
            return np.asarray(np.clip(drawn, 0, 1))
        chosen = {name: channels[name] for name in self.names}
        return combine(chosen, self.power, self.weights)


def _measure(
    name: str,
    scores: Sequence[Floats],
    windows: Sequence[Rows],
    calibration: Calibration,
    false_events: Sequence[float],
) -> AblationResult:
    """Hits, standard score and VUS-PR of one combination's scores, at thresholds with equal numbers of false events."""
    scored: ScoredRows = list(zip(scores, windows, strict=True))
    fixed, rate = calibration.control(fixed=1.0), calibration.events_per_1000_rows
    hits: list[int] = []
    standard = 0.0
    for number in false_events:
        start = initial_threshold(scored, fixed, rate, allowed=number * len(scored))
        corpus = reported_scores(scored, replace(fixed, start=start), rate)
        hits.append(count_detections(corpus, REPORTED).hit)
        standard = score_corpus(corpus, STANDARD, REPORTED).normalised
    vus_values = [vus_pr(series_scores, rows) for series_scores, rows in scored if len(rows)]
    return AblationResult(name=name, hits=tuple(hits), standard=standard, vus_pr=float(np.mean(vus_values)))
