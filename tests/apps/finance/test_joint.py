"""Joint scores: faults that no single column shows, and the columns in which they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from apps.finance.app import app
from apps.finance.datasets.labels import window_rows
from apps.finance.datasets.synth.baskets import KINDS, basket
from apps.finance.inference.basket_trial import basket_trial
from apps.finance.inference.detectors import JOINT
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.joint import contributing_columns, first_joint_row, joint
from apps.finance.inference.scoring import Calibration
from apps.finance.outputs.series_csv import write_csv
from apps.finance.predictor import FinancePredictor
from apps.finance.service import FinanceCodec
from apps.finance.types import DAY_NS, Forecast, Series
from shared.deploy.predictor import Request, answer
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
NOTHING = Forecast(levels=(0.5,), quantiles=np.zeros((0, 1)), surprise=np.zeros((0, 2)))


def scored(series: Series) -> np.ndarray:
    return JOINT["joint"].score(ForecastedSeries(series, NOTHING))


def basket_series(seed: int = 3, length: int = 1500) -> Series:
    return basket(np.random.Generator(np.random.Philox(seed)), length=length).series


def test_joint_scores_are_causal_and_need_several_columns():
    series = basket_series()
    whole = scored(series)
    for rows in (200, 700, 1499):
        values = {name: column[:rows] for name, column in series.values.items()}
        part = replace(series, times_ns=series.times_ns[:rows], values=values)
        np.testing.assert_allclose(scored(part), whole[:rows], atol=1e-9)
    assert not scored(replace(series, values={"share_0": series.target})).any()


def test_a_shock_in_a_wide_panel_of_days_stands_out_from_the_first_scores():
    """The first 64 changes are not scaled yet, and fewer rows than columns determine no components."""
    random, days, shares, shock = np.random.default_rng(6), 1000, 50, 900
    factor, loadings = 0.006 * random.standard_t(5, (days, 1)), random.uniform(0.5, 1.5, shares)
    returns = factor * loadings + 0.006 * random.standard_t(4, (days, shares))
    returns[shock] += np.where(np.arange(shares) < shares // 2, 0.05, -0.05)
    prices = 100 * np.exp(np.cumsum(returns, axis=0))
    values = {f"share_{number}": prices[:, number] for number in range(shares)}
    series = Series(
        name="panel", times_ns=np.arange(days) * DAY_NS, values=values, column="share_0", interval_ns=DAY_NS
    )
    statistic = joint(ForecastedSeries(series, NOTHING), 8000)
    assert np.flatnonzero(np.isfinite(statistic))[0] == first_joint_row(shares) + 2  # a mean over half of six rows
    assert np.nanmedian(statistic[200:400]) < 3
    assert scored(series)[shock : shock + 6].max() > 3 > scored(series)[:shock].max()


@pytest.mark.parametrize("rows", [60, 150])
def test_too_few_rows_for_a_joint_score_are_noted(tmp_path, rows):
    whole = basket_series()
    values = {name: column[:rows] for name, column in whole.values.items()}
    write_csv(tmp_path / "short.csv", replace(whole, times_ns=whole.times_ns[:rows], values=values))
    predictor = FinancePredictor.load(shipped(app), "cpu")
    response = answer(
        predictor, Request(files=(tmp_path / "short.csv",), options={"columns": "all"}), FinanceCodec(predictor)
    )
    note = f"{rows} rows are too few to score 6 columns jointly, which begins after 192 rows"
    assert any(note in text for text in response.result["series"]["notes"])


def test_the_unit_of_a_column_and_missing_values_do_not_matter():
    series = basket_series(4, 1000)
    scaled = {name: column * 10.0**place for place, (name, column) in enumerate(series.values.items())}
    np.testing.assert_allclose(scored(replace(series, values=scaled)), scored(series), atol=1e-6)
    gappy = {name: np.where(np.arange(1000) % 97 == 5, np.nan, column) for name, column in series.values.items()}
    assert np.isfinite(scored(replace(series, values=gappy))).all()


def test_the_joint_score_finds_faults_that_no_single_column_shows():
    together, alone = basket_trial(Calibration(threshold=0.36), baskets=4)
    assert set(together.number) == set(KINDS) and all(number == 4 for number in together.number.values())
    assert sum(together.hit.values()) >= sum(alone.hit.values()) + 2
    assert together.false_events <= alone.false_events + 0.2


def test_the_decoupled_column_is_named():
    found = 0
    for seed in range(8):
        item = basket(np.random.Generator(np.random.Philox(seed)))
        (first, last), window = window_rows(item.series.times_ns, item.windows)[0], item.windows[0]
        peak = int(first + np.argmax(scored(item.series)[first : last + 1]))
        found += window.kind.removeprefix("decoupled: ") in contributing_columns(item.series, peak)
    assert found >= 7


def test_a_wide_file_is_scored_together_and_by_column(tmp_path):
    series = basket_series(1, 1500)
    write_csv(tmp_path / "basket.csv", series)
    predictor = FinancePredictor.load(shipped(app), "cpu")
    request = Request(files=(tmp_path / "basket.csv",), options={"columns": "all", "events_per_1000_rows": "5"})
    response = answer(predictor, request, FinanceCodec(predictor))
    names = [part["name"] for part in response.result["parts"]]
    assert names == ["all columns", *series.values]
    jointly = [event for event in response.result["events"] if event["series"] == "all columns"]
    assert jointly and all(set(event["columns"]) <= set(series.values) and event["columns"] for event in jointly)
    assert {event["channel"] for event in jointly} == {"joint"}
    assert all("columns" not in event for event in response.result["events"] if event["series"] != "all columns")
    assert json.loads(response.files["series.json"])["parts"][0]["name"] == "all columns"
    assert not any("was scored" in note for note in response.result["series"]["notes"])
    plain = answer(predictor, Request(files=(tmp_path / "basket.csv",), options={}), FinanceCodec(predictor))
    scores = f"columns=all scores each of the {len(series.values)} columns"
    assert any(scores in note for note in plain.result["series"]["notes"])
    lines = (tmp_path / "basket.csv").read_text().splitlines()
    rows = [f"{line},{name}" for name in "AB" for line in lines[1:]]
    (tmp_path / "two.csv").write_text("\n".join([f"{lines[0]},ticker", *rows]) + "\n")
    options = {**request.options, "instrument": "B"}
    selected = answer(predictor, Request(files=(tmp_path / "two.csv",), options=options), FinanceCodec(predictor))
    assert selected.result["events"] == response.result["events"]
    assert any("only series 'B' was scored" in note for note in selected.result["series"]["notes"])
    with pytest.raises(InvalidInputError, match=r"two\.csv holds several series; .*the option 'instrument'"):
        answer(predictor, Request(files=(tmp_path / "two.csv",), options=request.options), FinanceCodec(predictor))
    single = replace(series, values={"share_0": series.target})
    write_csv(tmp_path / "one.csv", single)
    with pytest.raises(InvalidInputError, match="columns=all needs at least two"):
        answer(predictor, Request(files=(tmp_path / "one.csv",), options={"columns": "all"}), FinanceCodec(predictor))
