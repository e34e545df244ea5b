"""What each detector adds: each alone, all without it, and others beside them, at equal numbers of false events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from apps.finance.inference.calibration import ScoredRows, budget_start, reported_scores
from apps.finance.inference.conformal import REPORTED
from apps.finance.inference.detectors import ANCHORS, CANDIDATES, DETECTORS
from apps.finance.inference.detectors.detector import Detector, ForecastedSeries, Ranking
from apps.finance.inference.scoring import FULL, WEIGHTS, Calibration, combine
from apps.finance.metrics.nab import STANDARD, Rows, count_detections, score_corpus
from apps.finance.metrics.vus import vus_pr
from apps.finance.types import Floats

Channels = Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablated:
    """Windows hit at some numbers of false events a series, NAB's standard score at the last, and mean VUS-PR."""

    name: str
    hits: tuple[int, ...]
    standard: float
    vus_pr: float


def all_channels(one: ForecastedSeries, calibration: Calibration, *, anchors: bool) -> dict[str, Floats]:
    """-log10 p of every detector that there is, (N,); of the slow ones where ``anchors``."""
    ranking = Ranking(prior_rows=calibration.prior_rows, tail=calibration.tail, memory=calibration.memory)
    table: dict[str, Detector] = {**DETECTORS, **CANDIDATES, **(ANCHORS if anchors else {})}
    return {
        name: detector.configured(calibration.prior.get(name, ()), ranking).score(one)
        for name, detector in table.items()
    }


def ablate(
    channels: Sequence[Channels],
    windows: Sequence[Rows],
    calibration: Calibration,
    false_events: Sequence[float],
    peers: Sequence[Channels] = (),
) -> list[Ablated]:
    """Each way to score the series, at thresholds that give each so many ``false_events`` a series.

    The threshold of each is found on the series that it is scored on, so that all are compared alike, and stays.
    ``peers`` has the scores of other detectors by name, of each series.
    """
    ways = {name: [way(one) for one in channels] for name, way in _ways(sorted(channels[0])).items()}
    ways |= {name: [one[name] for one in peers] for name in (peers[0] if peers else {})}
    return [_measure(name, scores, windows, calibration, false_events) for name, scores in ways.items()]


def _ways(there: Sequence[str]) -> dict[str, _Way]:
    members = tuple(name for name in DETECTORS if WEIGHTS.get(name, 1.0))
    ways: dict[str, _Way] = {"all, weighted root mean square (shipped)": _Way(members)}
    ways["all, each counts once"] = _Way(members, weights={})
    ways["all, mean"] = _Way(members, power=1.0)
    ways["all, largest"] = _Way(members, power=np.inf)
    ways |= {f"without {name}": _Way(tuple(one for one in members if one != name)) for name in members}
    others = [name for name in (*DETECTORS, *CANDIDATES, *ANCHORS) if name in there and name not in members]
    ways |= {f"with {name}": _Way((*members, name), weights={**WEIGHTS, name: 1.0}) for name in others}
    ways["with the Transformer (surprise and drift)"] = _Way((*members, "surprise", "drift"))
    ways["the Transformer alone (surprise and drift)"] = _Way(("surprise", "drift"))
    ways |= {f"{name} alone": _Way((name,), weights={}) for name in (*members, *others)}
    if all(name in there for name in ANCHORS):
        ways["PaAno with PAI's two scores"] = _Way(tuple(ANCHORS), weights={})
    ways["random"] = _Way(())
    return ways


@dataclass(frozen=True, slots=True)
class _Way:
    """The score by these detectors; of none a random one, exponential as -log10 p of normal rows is."""

    names: tuple[str, ...]
    power: float = 2.0
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)

    def __call__(self, channels: Channels) -> Floats:
        if not self.names:
            length = len(next(iter(channels.values())))
            drawn = np.random.default_rng(length).exponential(1 / np.log(10), length) / FULL
            return np.asarray(np.clip(drawn, 0, 1))
        chosen = {name: channels[name] for name in self.names}
        return combine(chosen, self.power, self.weights)


def _measure(
    name: str,
    scores: Sequence[Floats],
    windows: Sequence[Rows],
    calibration: Calibration,
    false_events: Sequence[float],
) -> Ablated:
    scored: ScoredRows = list(zip(scores, windows, strict=True))
    fixed, rate = calibration.control(fixed=1.0), calibration.events_per_1000_rows
    hits: list[int] = []
    standard = 0.0
    for number in false_events:
        start = budget_start(scored, fixed, rate, allowed=number * len(scored))
        corpus = reported_scores(scored, replace(fixed, start=start), rate)
        hits.append(count_detections(corpus, REPORTED).hit)
        standard = score_corpus(corpus, STANDARD, REPORTED).normalised
    volumes = [vus_pr(one, rows) for one, rows in scored if len(rows)]
    return Ablated(name=name, hits=tuple(hits), standard=standard, vus_pr=float(np.mean(volumes)))
