"""The result for a row does not depend on later rows: series are cut at arbitrary rows and scored again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.datasets.synth import markets
from apps.finance.datasets.windows import covariate_table, trailing_interval_ns
from apps.finance.inference.forecasting import forecast
from apps.finance.inference.scoring import Calibration, score
from apps.finance.models.settings import FinanceModel
from apps.finance.types import HOUR_NS, MINUTE_NS, FinanceInput, Series, usual_interval_ns

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
torch.manual_seed(0)
_MODEL = (
    FinanceModel(name="test", hidden=8, hidden_continuous=4, heads=2).build(FinanceInput(context=24, horizon=4)).eval()
)


def irregular(seed: int, length: int, shape: str, unseen: int) -> Series:
    """A series with gaps whose interval changes and whose first ``unseen`` values are missing."""
    generator = np.random.Generator(np.random.Philox(seed))
    steps = np.where(np.arange(length) < generator.integers(20, length), MINUTE_NS, generator.integers(2, 40) * HOUR_NS)
    steps = steps * np.where(generator.uniform(size=length) < 0.1, generator.integers(1, 60, length), 1)
    values = markets.series(generator, length=length, shape=shape).series.target.copy()
    values[generator.uniform(size=length) < 0.03] = np.nan
    values[:unseen] = np.nan
    return of(1_500_000_000 * 10**9 + np.cumsum(steps), values)


def of(times: np.ndarray, values: np.ndarray) -> Series:
    return Series(
        name="irregular", times_ns=times, values={"v": values}, column="v", interval_ns=usual_interval_ns(times)
    )


shapes = st.sampled_from(["price", "counts", "plateau", "sensor", "bursts"])


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(30, 399), shapes, st.sampled_from([0, 0, 5, 40]))
def test_scores_do_not_change_when_later_rows_are_cut_off(seed, cut, shape, unseen):
    whole = irregular(seed, 400, shape, unseen)
    part = of(whole.times_ns[:cut], whole.target[:cut])
    np.testing.assert_array_equal(
        covariate_table(whole, context=24, horizon=4).rows[24 + unseen : 24 + cut],
        covariate_table(part, context=24, horizon=4).rows[24 + unseen :],
    )
    (whole_forecast,), (part_forecast,) = forecast(_MODEL, [whole], stride=2), forecast(_MODEL, [part], stride=2)
    # The network computes in float32, in an order that depends on the batch size.
    scale = np.nanmax(np.abs(whole.target))
    np.testing.assert_allclose(whole_forecast.quantiles[:cut], part_forecast.quantiles, rtol=2e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(whole_forecast.surprise[:cut], part_forecast.surprise, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(score(whole, Calibration())[:cut], score(part, Calibration()), atol=1e-9)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300), st.integers(1, 300))
def test_the_typical_interval_uses_only_earlier_rows(steps, cut):
    times = np.cumsum(steps)
    found = trailing_interval_ns(times)
    np.testing.assert_array_equal(found[:cut], trailing_interval_ns(times[:cut]))
    assert (found >= 1).all()
    if len(times) > 1:
        row = min(len(times), 64) - 1
        assert found[row] == np.median(np.diff(times[: row + 1]))
