"""A user's own covariates and groups: read, fitted on the training rows, trained, resumed, refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from apps.finance.datasets.covariates import MAX_CATEGORIES, unknown_notes
from apps.finance.datasets.table import Table
from apps.finance.inference.forecasting import forecast
from apps.finance.recipes import tiny
from apps.finance.task import ForecastTask
from shared.engine.checkpoint import best_weights
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from tests.apps.finance.loads import INPUT, ROWS, TRAINING, forecaster, frame, library, table, written

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_scalers_and_words_are_those_of_the_training_rows(tmp_path):
    whole = frame()
    later = whole.groupby("region").cumcount() >= TRAINING
    changed = whole.copy()
    changed.loc[later, ["load", "temperature", "wind"]] *= -7
    changed.loc[later, "holiday"] = "carnival"
    found = library(table(written(tmp_path, changed, "changed.csv")))
    assert found == library(table(written(tmp_path, whole)))
    temperature = whole.loc[~later, "temperature"]
    assert found.scalers["of_temperature"] == pytest.approx((temperature.mean(), temperature.std(ddof=0)))
    assert found.categories == {"of_holiday": {"": 1, "easter": 2, "new year": 3}, "series": {"a": 1, "b": 2}}
    assert found.covariates == ("temperature", "holiday", "wind")
    validation = table(tmp_path / "changed.csv").validation(replace(INPUT, library=found))
    codes = validation.batch(np.arange(len(validation)), None)["categories"]
    assert set(codes[:, -INPUT.horizon :, 0].flatten().tolist()) == {0} and set(codes[..., 1].flatten().tolist()) == {
        1,
        2,
    }


def test_covariate_names_may_be_separated_by_commas_or_spaces():
    spaced = Table(path="x.csv", known=("temperature", "holiday"), observed=("wind",))
    assert Table(path="x.csv", known=("temperature, holiday",), observed=("wind,",)) == spaced
    with pytest.raises(InvalidInputError, match="the covariate 'wind' is named twice"):
        Table(path="x.csv", known=("wind",), observed=("wind",))


def test_groups_are_embedded_by_default_only_with_covariates_and_several_series(tmp_path):
    path = written(tmp_path, frame())
    assert "series" not in library(table(path, groups=False)).categories
    alone = library(table(path, known=(), observed=(), groups=True))
    assert list(alone.categories) == ["series"] and alone.covariates == ()
    single_file = written(tmp_path, frame("a").drop(columns="region"), "one.csv")
    assert "series" not in library(table(single_file, series=None)).categories
    assert table(path, known=(), observed=()).fit_input(INPUT) == INPUT


def test_known_columns_are_seen_ahead_and_observed_ones_are_not(tmp_path):
    data = table(written(tmp_path, frame()))
    model = forecaster(data)
    series = data.cases()[0].series
    (usual,) = forecast(model, [series], stride=4)
    row = 200
    for name, ahead in (("temperature", True), ("wind", False), ("load", False)):
        values = series.values[name].copy()
        values[row:] += 5 * values.std()
        (changed,) = forecast(model, [replace(series, values={**series.values, name: values})], stride=4)
        np.testing.assert_array_equal(changed.quantiles[:row], usual.quantiles[:row])
        assert np.array_equal(changed.quantiles[row : row + 4], usual.quantiles[row : row + 4]) is not ahead
        assert not np.array_equal(changed.quantiles[row + 4 :], usual.quantiles[row + 4 :])
    words = series.words["holiday"].copy()
    words[row:] = "easter"
    (changed,) = forecast(model, [replace(series, words={"holiday": words})], stride=4)
    assert not np.array_equal(changed.quantiles[row : row + 4], usual.quantiles[row : row + 4])


def test_the_loss_does_not_depend_on_the_unit_and_counts_series_alike(tmp_path):
    def loss(data: Table) -> float:
        task, model = ForecastTask(), forecaster(data)
        scores, validation = task.scores(), data.validation(data.fit_input(INPUT))
        with torch.no_grad():
            task.evaluate(model, validation.batch(np.arange(len(validation)), None), scores)
        return scores.summary()["loss"]

    thousands = frame().assign(load=lambda rows: 1000 * rows["load"])
    usual_table, scaled_table = (
        table(written(tmp_path, kind, f"{n}.csv")) for n, kind in enumerate((frame(), thousands))
    )
    assert loss(usual_table) == pytest.approx(loss(scaled_table), rel=1e-3)


def test_words_are_hidden_in_some_training_windows_as_a_function_of_the_key(tmp_path):
    from shared.data.order import Key

    data = table(written(tmp_path, frame()), stride=1)
    windows = data.train(data.fit_input(INPUT))
    every = np.arange(len(windows))
    plain, masked = (windows.batch(every, key)["categories"] for key in (None, Key(seed=0, epoch=1)))
    last_masked = windows.batch(every[100:], Key(seed=0, epoch=1))["categories"]
    torch.testing.assert_close(masked[100:], last_masked, rtol=0, atol=0)
    forgotten = (masked == 0).all(dim=1).float().mean(dim=0)
    assert (plain > 0).all() and ((forgotten > 0.02) & (forgotten < 0.09)).all()
    assert ((masked == plain) | (masked == 0)).all()


@pytest.mark.parametrize("stop", [7, 10])
def test_a_run_over_covariates_that_is_resumed_is_the_same_run(tmp_path, stop):
    base = tiny()
    data = table(written(tmp_path, frame()))

    def train(folder: str, steps: int) -> dict[str, torch.Tensor]:
        limits = replace(base.limits, steps=steps, validate_every=5, checkpoint_every=5, keep=3)
        fit(
            replace(base, data=data, limits=limits), Run(tmp_path / folder, "finance", "tiny"), device="cpu", quiet=True
        )
        found = best_weights(tmp_path / folder)
        assert found is not None
        return found

    whole = train("whole", 14)
    train("parts", stop)
    parts = train("parts", 14)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    histories = [json.loads((tmp_path / name / "result.json").read_text())["history"] for name in ("whole", "parts")]
    assert histories[1][-1] == histories[0][-1]


def test_the_network_of_a_checkpoint_keeps_its_own_covariates(tmp_path):
    imported = replace(library(table(written(tmp_path, frame()))), trained_here=False)
    for data in (table(tmp_path / "load.csv"), table(tmp_path / "load.csv", known=(), observed=())):
        assert data.fit_input(replace(INPUT, library=imported)).library == imported


def test_columns_whose_names_differ_only_in_punctuation_are_all_used(tmp_path):
    renamed = frame().rename(columns={"temperature": "a b", "holiday": "a_b_2", "wind": "a.b"})
    found = library(table(written(tmp_path, renamed), known=("a b", "a_b_2"), observed=("a.b",)))
    assert found.covariates == ("a b", "a_b_2", "a.b")


def test_columns_of_any_name_can_be_covariates(tmp_path):
    renamed = {"temperature": "type", "holiday": "temp. at 2 m", "wind": "no"}
    path = written(tmp_path, frame().rename(columns=renamed))
    data = table(path, known=("Type", "temp. at 2 m"), observed=("no",))
    assert library(data).covariates == ("Type", "temp. at 2 m", "no")
    (forecasted,) = forecast(forecaster(data), [data.cases()[0].series], stride=4)
    assert np.isfinite(forecasted.quantiles[INPUT.context :]).all()


def test_a_column_is_text_if_any_of_several_files_has_text_in_it(tmp_path):
    (tmp_path / "parts").mkdir()
    early = frame("a")
    early["holiday"] = ""
    early["wind"] = np.nan
    late = frame("a").assign(time=lambda rows: rows["time"] + pd.Timedelta(days=100))
    for name, part in (("1.csv", early), ("2.csv", late)):
        written(tmp_path / "parts", part, name)
    (item,) = table(tmp_path / "parts").cases()
    assert (item.series.words["holiday"][:ROWS] == "").all() and (item.series.words["holiday"][ROWS:] != "").any()
    assert np.isnan(item.series.values["wind"][:ROWS]).all() and np.isfinite(item.series.values["wind"][ROWS:]).all()


def _spelt(booleans: np.ndarray, true: str, false: str) -> np.ndarray:
    return np.where(booleans, true, false)


SPELLINGS = {
    "pandas": ("True", "False"),
    "json": ("true", "false"),
    "a spreadsheet": ("TRUE", "FALSE"),
    "a data base": ("1", "0"),
}


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_booleans_are_equal_in_any_notation(tmp_path, spelling):
    promotion = np.arange(2 * ROWS) // 24 % 3 == 0
    with_promotion = frame().assign(promotion=promotion)
    with_promotion.to_parquet(tmp_path / "load.parquet", index=False)
    data = table(tmp_path / "load.parquet", known=("promotion",), observed=())
    model = forecaster(data)
    assert model.settings.categories["of_promotion"] == {"false": 1, "true": 2}
    path = written(tmp_path, with_promotion.assign(promotion=_spelt(promotion, *SPELLINGS[spelling])))
    series = [item.series for item in table(path, known=("promotion",), observed=()).cases()]
    assert unknown_notes(series, model.settings) == ()
    expected = forecast(model, [item.series for item in data.cases()], stride=4)
    for found, wanted in zip(forecast(model, series, stride=4), expected, strict=True):
        np.testing.assert_array_equal(found.quantiles, wanted.quantiles)


def test_booleans_are_numbers_if_the_network_was_trained_on_0_and_1(tmp_path):
    promotion = np.arange(2 * ROWS) // 24 % 3 == 0
    data = table(written(tmp_path, frame().assign(promotion=promotion.astype(int))), known=("promotion",), observed=())
    model = forecaster(data)
    assert "of_promotion" in model.settings.scalers
    path = written(tmp_path, frame().assign(promotion=promotion), "words.csv")
    series = [item.series for item in table(path, known=("promotion",), observed=()).cases()]
    expected = forecast(model, [item.series for item in data.cases()], stride=4)
    for found, wanted in zip(forecast(model, series, stride=4), expected, strict=True):
        np.testing.assert_array_equal(found.quantiles, wanted.quantiles)


def test_booleans_of_several_files_are_two_words_and_existing_codes_stay(tmp_path):
    (tmp_path / "parts").mkdir()
    promotion = np.arange(ROWS) // 24 % 3 == 0
    for name, spelling in (("a", "pandas"), ("b", "a data base"), ("c", "a spreadsheet")):
        part = frame(name).assign(promotion=_spelt(promotion, *SPELLINGS[spelling]))
        written(tmp_path / "parts", part, f"{name}.csv")
    data = table(tmp_path / "parts", known=("promotion",), observed=())
    found = library(data)
    assert found.categories["of_promotion"] == {"false": 1, "true": 2}
    earlier = replace(found, categories={**found.categories, "of_promotion": {"False": 1, "True": 2}})
    assert unknown_notes([item.series for item in data.cases()], earlier) == ()
    assert library(table(tmp_path / "parts", known=("holiday",))).categories["of_holiday"].keys() == {
        *("", "easter", "new year")
    }


REFUSED = {
    "not there": (
        {"known": ("humidity",)},
        "load.csv has no column 'humidity', which the network needs as a covariate",
    ),
    "the value": ({"known": ("load",)}, "column 'load' holds the value and cannot also be a covariate"),
    "the times": ({"observed": ("time",)}, "column 'time' holds the times and cannot also be"),
    "the series": ({"observed": ("Region",)}, "column 'region' holds the names of series and cannot also be"),
    "words": ({"known": ("note",)}, rf"column 'note' holds 640 different words .* at most {MAX_CATEGORIES}"),
    "nothing": ({"known": ("later",)}, "column 'later' has no value in the training rows"),
    "a gap": (
        {"known": ("flag",)},
        r"'flag' is known ahead of time .* in the 4 rows from 2024-01-02T00:00:00Z to .*with 0",
    ),
    "no numbers": (
        {"observed": ("power",)},
        "column 'power' holds '10 USD', which is not a number as written; correct",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_unusable_covariates_are_refused_with_the_reason(tmp_path, monkeypatch, what):
    monkeypatch.setattr("apps.finance.datasets.covariates.MAX_CATEGORIES", MAX_CATEGORIES if what != "words" else 600)
    settings, sentence = REFUSED[what]
    sentence = sentence.replace(str(MAX_CATEGORIES), "600")
    unusable = frame().assign(note=[f"note {n}" for n in range(2 * ROWS)], power="10 USD")
    row = unusable.groupby("region").cumcount()
    unusable["later"] = np.where(row >= TRAINING, 1.0, np.nan)
    unusable["flag"] = np.where(unusable["holiday"] == "", np.nan, 1.0)
    data = table(written(tmp_path, unusable), **{"known": (), "observed": (), **settings})
    with pytest.raises(InvalidInputError, match=sentence):
        data.train(data.fit_input(INPUT))
