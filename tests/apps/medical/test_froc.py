"""LUNA16's rules, on cases worked out by hand from the challenge's published protocol."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.medical.metrics.froc import Mark, Truth, bootstrap, cpm, froc, point_at, score_at, sensitivity_at

ORIGIN = (0.0, 0.0, 0.0)


def test_a_hit_is_strictly_within_the_radius():
    truth = [Truth("a", ORIGIN, 8.0)]
    on_the_edge = froc([Mark("a", (4.0, 0.0, 0.0), 0.9)], truth, scans=1)
    assert sensitivity_at(on_the_edge, 8.0) == 0
    assert on_the_edge.false_positives_per_scan[-1] == 1
    inside = froc([Mark("a", (3.999, 0.0, 0.0), 0.9)], truth, scans=1)
    assert sensitivity_at(inside, 0.125) == 1
    assert inside.false_positives_per_scan[-1] == 0


def test_distances_are_3d_and_a_negative_diameter_means_ten_millimetres():
    truth = [Truth("a", ORIGIN, -1.0)]
    assert sensitivity_at(froc([Mark("a", (2.8, 2.8, 2.8), 0.5)], truth, scans=1), 1.0) == 1
    assert sensitivity_at(froc([Mark("a", (3.0, 3.0, 3.0), 0.5)], truth, scans=1), 1.0) == 0


def test_only_the_highest_scoring_hit_of_a_nodule_counts():
    marks = [Mark("a", ORIGIN, 0.3), Mark("a", (1.0, 0.0, 0.0), 0.8), Mark("a", (50.0, 0.0, 0.0), 0.5)]
    curve = froc(marks, [Truth("a", ORIGIN, 8.0)], scans=1)
    assert curve.thresholds.tolist() == [np.inf, 0.8, 0.5]
    assert curve.sensitivity.tolist() == [0, 1, 1]
    assert curve.false_positives_per_scan.tolist() == [0, 0, 1]


def test_a_mark_on_an_excluded_finding_counts_neither_way():
    truths = [Truth("a", ORIGIN, 6.0, excluded=True), Truth("a", (100.0, 0.0, 0.0), 6.0)]
    curve = froc([Mark("a", (1.0, 0.0, 0.0), 0.99)], truths, scans=1)
    assert curve.false_positives_per_scan.max() == 0
    assert curve.sensitivity.max() == 0


def test_a_hit_counts_even_if_the_mark_is_also_on_an_excluded_finding():
    truths = [Truth("a", ORIGIN, 6.0, excluded=True), Truth("a", (1.0, 0.0, 0.0), 6.0)]
    assert sensitivity_at(froc([Mark("a", (0.5, 0.0, 0.0), 0.7)], truths, scans=1), 0.125) == 1


def test_a_mark_may_hit_two_nodules():
    truths = [Truth("a", ORIGIN, 6.0), Truth("a", (2.0, 0.0, 0.0), 6.0)]
    assert sensitivity_at(froc([Mark("a", (1.0, 0.0, 0.0), 0.7)], truths, scans=1), 0.125) == 1


def test_a_missed_nodule_stays_in_the_denominator():
    truths = [Truth("a", ORIGIN, 6.0), Truth("b", ORIGIN, 6.0)]
    curve = froc([Mark("a", ORIGIN, 0.9)], truths, scans=2)
    assert curve.sensitivity.max() == 0.5


def test_a_hundred_marks_are_kept_and_ties_with_the_next_are_dropped():
    far = [Mark("a", (100.0 + n, 0.0, 0.0), 1.0 - n / 1000) for n in range(99)]
    tied = [Mark("a", (-100.0, 0.0, 0.0), 0.5), Mark("a", ORIGIN, 0.5)]
    truth = [Truth("a", ORIGIN, 6.0)]
    # The 100th and the 101st score are equal, so only the 99 marks strictly above are kept.
    curve = froc(far + tied, truth, scans=1)
    assert curve.false_positives_per_scan[-1] == 99
    assert curve.sensitivity[-1] == 0
    one_below_ties = froc(far[:-1] + tied, truth, scans=1)
    assert one_below_ties.sensitivity[-1] == 1


def test_sensitivity_is_interpolated_linearly_and_cpm_is_its_mean():
    # Two scans, two nodules. Thresholds .9: a hit; .8: a false positive; .7: a hit; .6: a false positive.
    truths = [Truth("a", ORIGIN, 6.0), Truth("b", ORIGIN, 6.0)]
    far = (90.0, 0.0, 0.0)
    marks = [Mark("a", ORIGIN, 0.9), Mark("b", far, 0.8), Mark("b", ORIGIN, 0.7), Mark("a", far, 0.6)]
    curve = froc(marks, truths, scans=2)
    assert curve.false_positives_per_scan.tolist() == [0, 0, 0.5, 0.5, 1.0]
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 1.0, 1.0]
    assert [sensitivity_at(curve, rate) for rate in (0.125, 0.25, 0.5, 1.0, 8.0)] == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert cpm(curve) == pytest.approx((0.5 + 0.5 + 5 * 1.0) / 7)


def test_monai_s_published_sensitivities_have_the_published_mean():
    """The tutorial's table for LUNA16, as a curve through its seven points."""
    rates = np.array([0.125, 0.25, 0.5, 1, 2, 4, 8])
    values = np.array([0.835, 0.885, 0.931, 0.957, 0.974, 0.983, 0.988])
    from apps.medical.metrics.froc import Froc

    assert cpm(Froc(rates, values, rates)) == pytest.approx(0.9361, abs=1e-4)


_marks = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 20)), max_size=25)


@given(_marks, st.permutations(range(25)))
def test_the_curve_rises_and_does_not_depend_on_the_order_of_the_marks(drawn, order):
    marks = [Mark(scan, (float(10 * x), 0.0, 0.0), score / 20) for scan, x, score in drawn]
    truths = [Truth(scan, (10.0 * n, 0.0, 0.0), 8.0) for scan in "ab" for n in (1, 3)]
    curve = froc(marks, truths, scans=3)
    assert np.all(np.diff(curve.sensitivity) >= 0)
    assert np.all(np.diff(curve.false_positives_per_scan) >= 0)
    reordered = froc([marks[n] for n in order if n < len(marks)], truths, scans=3)
    assert np.array_equal(curve.sensitivity, reordered.sensitivity)


def test_bootstrap_of_a_perfect_system_has_no_spread():
    scans = [str(n) for n in range(6)]
    truths = [Truth(scan, ORIGIN, 6.0) for scan in scans]
    marks = [Mark(scan, ORIGIN, 0.9) for scan in scans]
    figures = (cpm, lambda curve: sensitivity_at(curve, 1.0), lambda curve: score_at(curve, 1.0))
    found = bootstrap(marks, truths, scans=6, figures=figures, random=np.random.default_rng(0), samples=50)
    assert [(interval.low, interval.high) for interval in found] == [(1.0, 1.0), (1.0, 1.0), (0.9, 0.9)]
    assert [interval.mean for interval in found] == pytest.approx([1.0, 1.0, 0.9])


def test_the_bootstrap_also_draws_scans_without_marks_or_annotations():
    """One of two scans has a false positive, so a bootstrap sample has none, one or two of them in two scans."""
    (rate,) = bootstrap(
        [Mark("a", ORIGIN, 0.9)],
        [],
        scans=2,
        figures=[lambda curve: float(curve.false_positives_per_scan[-1])],
        random=np.random.default_rng(0),
        samples=400,
    )
    assert (rate.low, rate.high) == (0.0, 1.0)
    assert rate.mean == pytest.approx(0.5, abs=0.05)


def test_the_score_at_a_rate_and_the_rate_at_a_score():
    far = (90.0, 0.0, 0.0)
    marks = [Mark("a", ORIGIN, 0.9), Mark("b", far, 0.8), Mark("b", ORIGIN, 0.7), Mark("a", far, 0.6)]
    curve = froc(marks, [Truth("a", ORIGIN, 6.0), Truth("b", ORIGIN, 6.0)], scans=2)
    assert [score_at(curve, rate) for rate in (0.0, 0.4, 0.5, 1.0)] == [0.9, 0.9, 0.7, 0.6]
    assert [point_at(curve, score) for score in (0.95, 0.9, 0.7, 0.65)] == [(0, 0), (0, 0.5), (0.5, 1), (0.5, 1)]
    assert score_at(froc([], [], scans=1), 1.0) == 1.0
