"""NAB's score compared with results computed by hand and with its definition, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.metrics.nab import (
    LOW_FALSE_NEGATIVES,
    LOW_FALSE_POSITIVES,
    PROFILES,
    STANDARD,
    Profile,
    Scored,
    count_detections,
    probation,
    row_values,
    scaled_sigmoid,
    score_corpus,
)


def scored(length: int, detections: dict[int, float], *windows: tuple[int, int]) -> Scored:
    scores = np.zeros(length)
    for row, value in detections.items():
        scores[row] = value
    return Scored(scores=scores, windows=np.asarray(windows, np.int64).reshape(-1, 2))


def test_sigmoid_at_the_positions_in_the_definition():
    found = scaled_sigmoid(np.array([-1.0, -0.5, 0.0, 1.0, 2.999, 3.0, 10.0]))
    expected = [2 / (1 + math.exp(-5)) - 1, 2 / (1 + math.exp(-2.5)) - 1, 0, 2 / (1 + math.exp(5)) - 1]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-12)
    # The sigmoid applies up to and including y = 3; beyond it a detection costs the full amount.
    assert found[4] > found[5] == 2 / (1 + math.exp(15)) - 1 > -1.0 and found[6] == -1.0


def test_probation_is_a_part_of_a_short_series_and_750_rows_of_a_long_one():
    assert [probation(n) for n in (10, 1127, 5000, 22695)] == [1, 169, 750, 750]


def test_row_values_depend_on_the_position_relative_to_windows():
    values, inside = row_values(100, np.array([[40, 49]]), STANDARD)
    # Before the first window the full cost; full value in its first row; y = -1/10 in its last row.
    assert values[39] == pytest.approx(-0.11)
    assert values[40] == pytest.approx(1.0)
    last = (2 / (1 + math.exp(-0.5)) - 1) / (2 / (1 + math.exp(-5)) - 1)
    assert values[49] == pytest.approx(last)
    # 9 rows behind the window's end is y = 1; 27 rows behind is y = 3.
    assert values[58] == pytest.approx(0.11 * (2 / (1 + math.exp(5)) - 1))
    assert values[76] == pytest.approx(-0.11)
    assert inside.tolist() == [-1] * 40 + [0] * 10 + [-1] * 50


def test_a_perfect_detector_has_100_and_a_silent_one_0():
    perfect = [scored(100, {40: 1.0}, (40, 49)), scored(200, {100: 1.0, 150: 1.0}, (100, 109), (150, 159))]
    silent = [scored(100, {}, (40, 49)), scored(200, {}, (100, 109), (150, 159))]
    for profile in PROFILES:
        assert score_corpus(perfect, profile, threshold=0.5).normalised == pytest.approx(100.0)
        assert score_corpus(perfect, profile).normalised == pytest.approx(100.0)
        assert score_corpus(silent, profile, threshold=0.5).normalised == pytest.approx(0.0)


def test_a_corpus_worked_by_hand():
    # One window hit at its sixth row of ten (y = -(49 - 45 + 1) / 10 = -0.5), one missed; two false detections, one
    # before all windows, one 9 rows behind the first window (y = 1); one in probation, which counts for nothing.
    corpus = [scored(100, {3: 0.9, 30: 0.9, 45: 0.9, 58: 0.9}, (40, 49)), scored(100, {}, (60, 69))]
    top = 2 / (1 + math.exp(-5)) - 1
    hit, behind = (2 / (1 + math.exp(-2.5)) - 1) / top, 2 / (1 + math.exp(5)) - 1
    for profile, miss, cost in ((STANDARD, 1, 0.11), (LOW_FALSE_POSITIVES, 1, 0.22), (LOW_FALSE_NEGATIVES, 2, 0.11)):
        raw = hit - miss - cost + cost * behind
        found = score_corpus(corpus, profile, threshold=0.5)
        assert found.raw == pytest.approx(raw)
        assert found.normalised == pytest.approx(100 * (raw + 2 * miss) / (2 + 2 * miss))


def test_the_earliest_detection_in_a_window_counts_once():
    several = score_corpus([scored(100, {41: 0.9, 45: 0.9, 48: 0.9}, (40, 49))], threshold=0.5)
    early = score_corpus([scored(100, {41: 0.9}, (40, 49))], threshold=0.5)
    assert several.raw == pytest.approx(early.raw)


def test_the_threshold_search_finds_the_best_threshold():
    corpus = [scored(100, {30: 0.4, 42: 0.6, 80: 0.4}, (40, 49))]
    found = score_corpus(corpus)
    assert found.threshold == pytest.approx(0.6)
    assert found.raw == pytest.approx(score_corpus(corpus, threshold=0.6).raw)
    only_false = [scored(100, {30: 0.4}, (40, 49))]
    assert score_corpus(only_false).threshold == np.inf
    assert score_corpus(only_false).normalised == 0.0


def test_windows_hit_and_false_events():
    corpus = [scored(100, {3: 0.9, 30: 0.9, 31: 0.9, 45: 0.9, 58: 0.9, 60: 0.9}, (40, 49), (70, 79))]
    found = count_detections(corpus, 0.5)
    assert (found.hit, found.windows, found.false_events) == (1, 2, 3)
    assert count_detections(corpus, 0.5, gap=1).false_events == 2
    assert found.recall == 0.5 and found.false_events_per_series == 3.0


def reference(corpus: list[Scored], profile: Profile, threshold: float) -> float:
    """The definition, one row at a time."""
    total = 0.0
    for item in corpus:
        best = dict.fromkeys(range(len(item.windows)), -profile.false_negative)
        behind: tuple[int, int] | None = None
        for row, value in enumerate(item.scores):
            number = next((k for k, (a, b) in enumerate(item.windows) if a <= row <= b), None)
            if number is not None:
                first, last = item.windows[number]
                worth = profile.true_positive * float(scaled_sigmoid(np.array(-(last - row + 1) / (last - first + 1))))
                worth /= float(scaled_sigmoid(np.array(-1.0)))
                if row == last:
                    behind = (int(last), int(last - first + 1))
            else:
                y = math.inf if behind is None else (row - behind[0]) / (behind[1] - 1)
                worth = profile.false_positive * float(scaled_sigmoid(np.array(y)))
            if value < threshold or row < probation(len(item.scores)):
                continue
            if number is None:
                total += worth
            else:
                best[number] = max(best[number], worth)
        total += sum(best.values())
    return total


series = st.builds(
    lambda seed, length, cut: (np.random.default_rng(seed).integers(0, 5, length) / 4, cut),
    st.integers(0, 10_000),
    st.integers(60, 150),
    st.integers(0, 3),
)


def corpus_of(drawn: list[tuple[np.ndarray, int]]) -> list[Scored]:
    scored_series = []
    for scores, number in drawn:
        length = len(scores)
        starts = [probation(length) + 2 + k * length // 4 for k in range(number)]
        windows = [(start, start + length // 8) for start in starts]
        scored_series.append(Scored(scores=scores, windows=np.asarray(windows, np.int64).reshape(-1, 2)))
    return scored_series


@settings(max_examples=40)
@given(st.lists(series, min_size=1, max_size=3), st.sampled_from(PROFILES), st.sampled_from([0.25, 0.5, 1.0]))
def test_equal_to_the_definition_row_by_row(drawn, profile, threshold):
    corpus = corpus_of(drawn)
    assert score_corpus(corpus, profile, threshold).raw == pytest.approx(reference(corpus, profile, threshold))


@settings(max_examples=30)
@given(st.lists(series, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_the_series_does_not_matter(drawn, random):
    corpus = corpus_of(drawn)
    shuffled = corpus[:]
    random.shuffle(shuffled)
    in_order, in_random_order = score_corpus(corpus), score_corpus(shuffled)
    assert in_order.normalised == pytest.approx(in_random_order.normalised)
    assert count_detections(corpus, 0.5) == count_detections(shuffled, 0.5)


@settings(max_examples=30)
@given(st.lists(series, min_size=1, max_size=3))
def test_no_threshold_beats_the_one_that_is_found(drawn):
    corpus = corpus_of(drawn)
    best = score_corpus(corpus).raw
    assert all(best >= score_corpus(corpus, threshold=level).raw - 1e-9 for level in (0.25, 0.5, 0.75, 1.0, 2.0))
