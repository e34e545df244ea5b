"""A user's own covariates and groups: read, fitted on the rows that train, trained, resumed, served, refused."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient

from apps.finance.app import app
from apps.finance.datasets.covariates import MOST_CATEGORIES, unknown_notes
from apps.finance.datasets.synthetic import Synthetic
from apps.finance.datasets.table import Table
from apps.finance.inference.calibration import calibrate, from_manifest
from apps.finance.inference.evaluation import evaluate
from apps.finance.inference.forecasting import forecast
from apps.finance.models import tft
from apps.finance.models.library_tft import LibraryForecaster
from apps.finance.models.stored import stored_settings
from apps.finance.outputs.whole_series import read_whole_series
from apps.finance.predictor import FinancePredictor
from apps.finance.recipes import tiny
from apps.finance.service import FinanceCodec
from apps.finance.task import ForecastTask
from apps.finance.types import Series
from shared.cli.main import main
from shared.deploy.artifact import open_artifact
from shared.deploy.calibration_inputs import calibration_inputs
from shared.deploy.predictor import Request, answer
from shared.engine.checkpoint import best_weights
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe_file import read_recipe_file
from shared.recipes import recipe_of
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.finance.loads import INPUT, ROWS, TRAINING, forecaster, frame, library, table, written

pytestmark = [
    # Of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_scalers_and_words_are_those_of_the_rows_that_train(tmp_path):
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


def test_names_come_with_commas_or_spaces_and_are_recorded_apart():
    spaced = Table(path="x.csv", known=("temperature", "holiday"), observed=("wind",))
    assert Table(path="x.csv", known=("temperature, holiday",), observed=("wind,",)) == spaced
    with pytest.raises(InvalidInputError, match="the covariate 'wind' is named twice"):
        Table(path="x.csv", known=("wind",), observed=("wind",))


def test_groups_are_embedded_where_there_are_several_and_can_be_switched(tmp_path):
    path = written(tmp_path, frame())
    assert "series" not in library(table(path, groups=False)).categories
    alone = library(table(path, known=(), observed=(), groups=True))
    assert list(alone.categories) == ["series"] and alone.covariates == ()
    one = written(tmp_path, frame("a").drop(columns="region"), "one.csv")
    assert "series" not in library(table(one, series=None)).categories
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
        (other,) = forecast(model, [replace(series, values={**series.values, name: values})], stride=4)
        np.testing.assert_array_equal(other.quantiles[:row], usual.quantiles[:row])
        assert np.array_equal(other.quantiles[row : row + 4], usual.quantiles[row : row + 4]) is not ahead
        assert not np.array_equal(other.quantiles[row + 4 :], usual.quantiles[row + 4 :])
    words = series.words["holiday"].copy()
    words[row:] = "easter"
    (other,) = forecast(model, [replace(series, words={"holiday": words})], stride=4)
    assert not np.array_equal(other.quantiles[row : row + 4], usual.quantiles[row : row + 4])


def test_the_loss_does_not_depend_on_the_unit_and_counts_series_alike(tmp_path):
    def loss(data: Table) -> float:
        task, model = ForecastTask(), forecaster(data)
        scores, validation = task.scores(), data.validation(data.fit_input(INPUT))
        with torch.no_grad():
            task.evaluate(model, validation.batch(np.arange(len(validation)), None), scores)
        return scores.summary()["loss"]

    thousands = frame().assign(load=lambda one: 1000 * one["load"])
    one, other = (table(written(tmp_path, kind, f"{n}.csv")) for n, kind in enumerate((frame(), thousands)))
    assert loss(one) == pytest.approx(loss(other), rel=1e-3)


def test_words_are_forgotten_in_some_training_windows_by_their_key_alone(tmp_path):
    from shared.data.order import Key

    data = table(written(tmp_path, frame()), stride=1)
    windows = data.train(data.fit_input(INPUT))
    every = np.arange(len(windows))
    plain, kept = (windows.batch(every, key)["categories"] for key in (None, Key(seed=0, epoch=1)))
    again = windows.batch(every[100:], Key(seed=0, epoch=1))["categories"]
    torch.testing.assert_close(kept[100:], again, rtol=0, atol=0)
    forgotten = (kept == 0).all(dim=1).float().mean(dim=0)
    assert (plain > 0).all() and ((forgotten > 0.02) & (forgotten < 0.09)).all()
    assert ((kept == plain) | (kept == 0)).all()


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
    histories = [json.loads((tmp_path / one / "result.json").read_text())["history"] for one in ("whole", "parts")]
    assert histories[1][-1] == histories[0][-1]


def test_the_network_of_a_checkpoint_keeps_its_own_covariates(tmp_path):
    imported = replace(library(table(written(tmp_path, frame()))), trained_here=False)
    with pytest.raises(InvalidInputError, match="the imported network has covariates of its own; leave out"):
        table(tmp_path / "load.csv").fit_input(replace(INPUT, library=imported))
    alone = table(tmp_path / "load.csv", known=(), observed=())
    assert alone.fit_input(replace(INPUT, library=imported)).library == imported


def test_columns_whose_names_differ_in_signs_alone_are_all_taken(tmp_path):
    made = frame().rename(columns={"temperature": "a b", "holiday": "a_b_2", "wind": "a.b"})
    found = library(table(written(tmp_path, made), known=("a b", "a_b_2"), observed=("a.b",)))
    assert found.covariates == ("a b", "a_b_2", "a.b")


def test_columns_of_any_name_can_be_covariates(tmp_path):
    named = {"temperature": "type", "holiday": "temp. at 2 m", "wind": "no"}
    path = written(tmp_path, frame().rename(columns=named))
    data = table(path, known=("Type", "temp. at 2 m"), observed=("no",))
    assert library(data).covariates == ("Type", "temp. at 2 m", "no")
    (made,) = forecast(forecaster(data), [data.cases()[0].series], stride=4)
    assert np.isfinite(made.quantiles[INPUT.context :]).all()


def test_a_column_of_several_files_is_of_words_where_one_of_them_has_words(tmp_path):
    (tmp_path / "parts").mkdir()
    early = frame("a")
    early["holiday"] = ""
    early["wind"] = np.nan
    late = frame("a").assign(time=lambda one: one["time"] + pd.Timedelta(days=100))
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
def test_booleans_are_the_same_however_a_file_writes_them(tmp_path, spelling):
    promotion = np.arange(2 * ROWS) // 24 % 3 == 0
    made = frame().assign(promotion=promotion)
    made.to_parquet(tmp_path / "load.parquet", index=False)
    data = table(tmp_path / "load.parquet", known=("promotion",), observed=())
    model = forecaster(data)
    assert model.settings.categories["of_promotion"] == {"false": 1, "true": 2}
    path = written(tmp_path, made.assign(promotion=_spelt(promotion, *SPELLINGS[spelling])))
    series = [item.series for item in table(path, known=("promotion",), observed=()).cases()]
    assert unknown_notes(series, model.settings) == ()
    expected = forecast(model, [item.series for item in data.cases()], stride=4)
    for one, other in zip(forecast(model, series, stride=4), expected, strict=True):
        np.testing.assert_array_equal(one.quantiles, other.quantiles)


def test_booleans_are_numbers_where_the_network_was_trained_on_0_and_1(tmp_path):
    promotion = np.arange(2 * ROWS) // 24 % 3 == 0
    data = table(written(tmp_path, frame().assign(promotion=promotion.astype(int))), known=("promotion",), observed=())
    model = forecaster(data)
    assert "of_promotion" in model.settings.scalers
    path = written(tmp_path, frame().assign(promotion=promotion), "words.csv")
    series = [item.series for item in table(path, known=("promotion",), observed=()).cases()]
    expected = forecast(model, [item.series for item in data.cases()], stride=4)
    for one, other in zip(forecast(model, series, stride=4), expected, strict=True):
        np.testing.assert_array_equal(one.quantiles, other.quantiles)


def test_booleans_of_several_files_are_two_words_and_those_of_a_network_trained_before_stay(tmp_path):
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
        "load.csv has no column 'humidity', which the network takes as a covariate",
    ),
    "the value": ({"known": ("load",)}, "column 'load' holds the value, and cannot be a covariate as well"),
    "the times": ({"observed": ("time",)}, "column 'time' holds the times, and cannot be"),
    "the series": ({"observed": ("Region",)}, "column 'region' holds the names of series, and cannot be"),
    "words": ({"known": ("note",)}, rf"column 'note' holds 640 different words .* at most {MOST_CATEGORIES}"),
    "nothing": ({"known": ("later",)}, "column 'later' has no value in the rows that train"),
    "a gap": (
        {"known": ("flag",)},
        r"'flag' is known ahead of time .* in the 4 rows from 2024-01-02T00:00:00Z to .*with 0",
    ),
    "no numbers": ({"observed": ("power",)}, "column 'power' holds '10 USD', which is no number as written; correct"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_cannot_be_a_covariate_is_refused_in_a_sentence(tmp_path, monkeypatch, what):
    monkeypatch.setattr("apps.finance.datasets.covariates.MOST_CATEGORIES", MOST_CATEGORIES if what != "words" else 600)
    settings, sentence = REFUSED[what]
    sentence = sentence.replace(str(MOST_CATEGORIES), "600")
    made = frame().assign(note=[f"note {n}" for n in range(2 * ROWS)], power="10 USD")
    row = made.groupby("region").cumcount()
    made["later"] = np.where(row >= TRAINING, 1.0, np.nan)
    made["flag"] = np.where(made["holiday"] == "", np.nan, 1.0)
    data = table(written(tmp_path, made), **{"known": (), "observed": (), **settings})
    with pytest.raises(InvalidInputError, match=sentence):
        data.train(data.fit_input(INPUT))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, a run over its covariates as the command line trains it, and its artifact."""
    folder = tmp_path_factory.mktemp("covariates")
    path = written(folder, frame())
    data = ["--data", "table", "--data.path", str(path), "--data.time", "time", "--data.value", "load"]
    words = ["train", "finance", "--recipe", "tiny", *data, "--data.series", "region", "--device", "cpu"]
    words += ["--data.known", "temperature,holiday", "--data.observed", "wind", "--out", str(folder / "run")]
    assert main([*words, "--limits.epochs", "6", "--limits.patience", "9", "--data.stride", "2"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tft, "dense", _refuse_to_export)
        assert main(["export", str(folder / "run"), "--registry", str(folder / "models")]) == 0
    return folder


def _refuse_to_export(model: Any) -> Any:
    """In place of a network to be written as ONNX, which takes torch half a minute; those of an import are."""
    raise NotImplementedError("not here")


@pytest.fixture
def predictor(trained: Path) -> FinancePredictor:
    return FinancePredictor.load([open_artifact(trained / "models" / "tft-anomaly" / "1")], "cpu")


def answered(predictor: FinancePredictor, path: Path, **options: str) -> Any:
    request = Request(files=(path,), options={"series": "region", **options})
    return answer(predictor, request, FinanceCodec(predictor)).result


def test_a_table_with_covariates_is_trained_exported_and_predicted_on(trained, tmp_path, capsys):
    artifact = str(trained / "models" / "tft-anomaly" / "1")
    words = ["predict", "finance", str(trained / "load.csv"), "--artifact", artifact, "--out", str(tmp_path / "out")]
    assert main([*words, "--option", "series=region"]) == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [part["name"] for part in found["parts"]] == ["a", "b"] and found["series"]["column"] == "load"
    assert found["series"]["columns"] == ["load"], "the form would offer columns that are refused"
    capsys.readouterr()
    data = ["--data", "table", "--data.path", str(trained / "load.csv"), "--data.value", "load"]
    data += ["--data.series", "region"]
    assert main(["evaluate", "finance", "--artifact", artifact, *data]) == 0
    assert "Quantile loss" in capsys.readouterr().out
    assert main(["calibrate", "finance", "--artifact", artifact, *data, "--registry", str(tmp_path / "models")]) == 0
    assert "by_forecast: True -> True" in capsys.readouterr().out


def test_a_network_over_covariates_is_quantised_on_the_table_of_its_training(trained):
    artifact = open_artifact(trained / "models" / "tft-anomaly" / "1")
    recorded = recipe_of(app, artifact.recipe()).data
    found = calibration_inputs(app, artifact, data=recorded)
    assert found.description.endswith("cases to learn from (2 series of 800 rows from load.csv)")
    assert found.inputs[0].keys() == {"reals", "categories", "target_scale"}
    with pytest.raises(InvalidInputError, match=r"name the one that it was trained on: --data table --data\.path FILE"):
        calibration_inputs(app, artifact, data=tiny().data)


def test_a_network_is_trained_further_with_its_own_scalers_words_and_series(trained, tmp_path, capsys):
    """As on reviewed cases: a table of some of the series, and of one more, with other words."""
    artifact = trained / "models" / "tft-anomaly" / "1"
    made = frame("bc").assign(region=lambda one: one["region"].replace("c", "a new one"))
    made["holiday"] = made["holiday"].replace("easter", "carnival")
    path = written(tmp_path, made.assign(temperature=lambda one: one["temperature"] + 20))
    words = ["train", "finance", "--recipe", "tiny", "--init", str(artifact), "--out", str(tmp_path / "run")]
    words += ["--data", "table", "--data.path", str(path), "--data.series", "region", "--device", "cpu"]
    capsys.readouterr()
    assert main([*words, "--limits.steps", "1"]) == 0
    total = len(open_artifact(artifact).weights())
    assert f"{total} of {total} tensors start from these weights" in capsys.readouterr().out
    before, after = (
        stored_settings(read_recipe_file(one / "recipe.yaml")["recipe"])[1].library
        for one in (artifact, tmp_path / "run")
    )
    assert before is not None and after is not None and after.further
    assert (after.scalers, after.categories, after.known) == (before.scalers, before.categories, before.known)
    assert after.target_scales.items() > before.target_scales.items()
    assert after.target_scales.keys() == {"a", "b", "a new one"}
    assert main([*words, "--data.known", "temperature"]) == 2
    assert "knows temperature, holiday ahead of time and observes wind; leave out" in capsys.readouterr().err


def test_the_form_says_which_columns_are_needed_and_offers_no_sample_without_them(trained, tmp_path):
    def client(registry: Path) -> TestClient:
        settings = Settings(store=tmp_path / registry.name, registry=registry, device="cpu", warm=False)
        return TestClient(create_app(settings, {"finance": app}))

    with client(trained / "models") as own:
        assert own.get("/api/finance/samples").json() == {"samples": []}
        page = html.unescape(own.get("/finance").text)
        needed = "times, 'load', the value, 'region', the names of series, 'temperature', 'holiday', 'wind'."
        assert needed in page and "data-sample" not in page
        assert own.post("/api/finance/jobs", data={"sample": "synthetic_market"}).status_code == 422
    (tmp_path / "empty").mkdir()
    with client(tmp_path / "empty") as shipped:
        assert any(one["name"] == "synthetic_market" for one in shipped.get("/api/finance/samples").json()["samples"])
        assert 'data-sample="synthetic_market"' in shipped.get("/finance").text


def test_what_a_server_keeps_of_a_table_has_its_words(predictor, trained):
    request = Request(files=(trained / "load.csv",), options={"series": "region"})
    codec = FinanceCodec(predictor)
    decoded = codec.decode(request)
    later = codec.encode(decoded, predictor.predict(decoded.inputs)).later
    assert later is not None
    kept = read_whole_series(later.inputs["columns.npz"]())
    for one, item in zip(kept, table(trained / "load.csv").cases(), strict=True):
        np.testing.assert_array_equal(one.words["holiday"], item.series.words["holiday"])
        np.testing.assert_array_equal(one.values["wind"], item.series.values["wind"])


def test_what_is_fitted_is_told_before_training(tmp_path):
    data = table(written(tmp_path, frame()))
    facts = data.facts(data.fit_input(INPUT))
    assert facts["known ahead"].startswith("temperature (mean 1") and facts["known ahead"].endswith("holiday (3 words)")
    assert facts["observed until now"].startswith("wind (mean ") and facts["names of series"] == "embedded"


class Knowing(LibraryForecaster):
    """A network that has learnt what ``frame`` makes the load of, but for its noise."""

    def forward(self, reals: torch.Tensor, categories: torch.Tensor, target_scale: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.settings.scalers["of_temperature"]
        temperature = reals[:, self.context :, self.settings.network["x_reals"].index("of_temperature")]
        names = self.settings.network["x_categoricals"]
        code = categories[:, self.context :, names.index("of_holiday")]
        ordinary = code == self.settings.categories["of_holiday"][""]
        level = 50.0 * categories[:, self.context :, names.index("series")]
        load = level + 3 * (mean + deviation * temperature) - 20 * (~ordinary).float()
        return load[..., None] + torch.tensor([-2.05, -1.28, -0.67, 0.0, 0.67, 1.28, 2.05])


def test_a_value_that_only_its_covariates_belie_is_found_by_its_forecast(tmp_path):
    """As much load on a holiday as on an ordinary day: within the range of the load, and far from its forecast."""
    data = table(written(tmp_path, frame()))
    torch.manual_seed(0)
    model = Knowing(tiny().model.sized(library(data)), data.fit_input(INPUT))
    usual = calibrate(data, model)
    series = data.cases()[0].series
    row = 13 * 24 + 12
    assert series.words["holiday"][row] == "new year"
    values = series.target.copy()
    values[row] += 20
    odd = replace(series, values={**series.values, "load": values})
    found = {}
    for by_forecast in (True, False):
        calibration = from_manifest({**usual, "by_forecast": by_forecast})
        own = FinancePredictor(model=model, calibration=calibration, stride=4, device="cpu", name="knowing")
        before, after = own.predict([series, odd])
        assert not before.anomalies
        found[by_forecast] = after.anomalies
    (event,) = found[True]
    assert event.peak_ns == series.times_ns[row] and (event.channel, event.direction) == ("surprise", "above")
    assert event.reason.startswith("a value off its forecast: +") and event.size == pytest.approx(20, abs=3)
    assert values[row] < series.target[:row].max() and not found[False]


def test_the_column_of_series_is_that_of_the_training_where_the_file_has_it(predictor, tmp_path):
    one = frame("b").assign(region="b")
    result = answered(predictor, written(tmp_path, one), series="")
    assert [part["name"] for part in result["parts"]] == ["b"]
    assert not any("unknown" in note for note in result["series"]["notes"])
    both = answered(predictor, written(tmp_path, frame()), series="")
    assert [part["name"] for part in both["parts"]] == ["a", "b"]
    lacking = answered(predictor, written(tmp_path, one.drop(columns="region")), series="")
    assert any("takes as unknown: 'load.csv'" in note for note in lacking["series"]["notes"])


def test_rows_that_are_still_to_come_are_noted(predictor, tmp_path):
    made = frame("a")
    assert not any("still to come" in note for note in answered(predictor, written(tmp_path, made))["series"]["notes"])
    made.loc[made.index[-7:], ["load", "wind"]] = np.nan
    notes = answered(predictor, written(tmp_path, made))["series"]["notes"]
    assert any(note.startswith("the last 7 rows have no value") and "Beyond 4 rows" in note for note in notes)


def test_series_in_another_unit_than_in_training_are_noted(predictor, tmp_path):
    notes = answered(predictor, written(tmp_path, frame()))["series"]["notes"]
    assert not any("as in training" in note for note in notes)
    other = frame().assign(load=lambda one: np.where(one["region"] == "b", 1000, 1) * one["load"])
    notes = answered(predictor, written(tmp_path, other))["series"]["notes"]
    (note,) = (note for note in notes if "as in training" in note)
    assert note.startswith("1 series vary more than 4 times") and "'b' 950 times as much;" in note and "'a'" not in note


def test_no_unit_is_suspected_of_series_that_mostly_stand_still(predictor, tmp_path):
    """A feed that has stopped, and a count of rare things, vary by how often they move."""
    still = frame().assign(load=7.0)
    still.loc[still.index[::40], "load"] = 900.0
    still.loc[still["region"] == "a", "load"] = 7.0
    notes = answered(predictor, written(tmp_path, still))["series"]["notes"]
    assert not [note for note in notes if "as in training" in note]


def test_words_and_series_that_training_has_not_seen_are_taken_as_unknown_and_noted(predictor, tmp_path):
    other = frame("a").assign(region="c", holiday="carnival")
    notes = answered(predictor, written(tmp_path, other))["series"]["notes"]
    assert "the network was not trained on 1 words of column 'holiday', which it takes as unknown: 'carnival'" in notes
    assert "the network was not trained on 1 series, which it takes as unknown: 'c'" in notes
    empty = frame("a").assign(holiday="")
    assert not any("unknown" in note for note in answered(predictor, written(tmp_path, empty))["series"]["notes"])


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"holiday": None}, {}, "load.csv has no column 'holiday', which the network takes as a covariate; there are"),
        ({"temperature": "warm"}, {}, "a: column 'temperature' holds 'warm', and the network was trained on numbers"),
        ({}, {"columns": "all"}, "forecasts 'load' from 'temperature', 'holiday', 'wind'; it cannot score all columns"),
        ({}, {"value": "wind"}, "column 'wind' holds the value, and cannot be a covariate as well"),
        (
            {"temperature": ""},
            {},
            "'temperature' is known ahead of time to the network, and has no value in the 4 rows",
        ),
    ],
)
def test_a_file_that_lacks_a_covariate_is_refused_and_says_which(predictor, tmp_path, change, options, sentence):
    made = frame("a").drop(columns=[name for name, value in change.items() if value is None])
    made = made.assign(**{name: value for name, value in change.items() if value is not None})
    with pytest.raises(InvalidInputError, match=sentence):
        answered(predictor, written(tmp_path, made), **options)


def test_a_network_over_covariates_has_no_monitor_and_is_not_scored_on_other_series(predictor, trained):
    (series, *_) = (item.series for item in table(trained / "load.csv").cases())
    with pytest.raises(InvalidInputError, match="a monitor is told of values alone"):
        predictor.monitor(series)
    synthetic = Synthetic(series=2, validation_series=1, rows=400)
    with pytest.raises(InvalidInputError, match="of Synthetic have no columns temperature, holiday, wind"):
        evaluate(predictor, synthetic, None)
    bare = Series(
        **{
            **{name: getattr(series, name) for name in ("name", "times_ns", "column", "interval_ns")},
            "values": {"load": series.target},
        }
    )
    with pytest.raises(
        InvalidInputError, match="a has no column 'temperature', which the network takes as a covariate"
    ):
        predictor.predict([bare])


def test_only_a_network_over_covariates_scores_by_its_forecast(tmp_path):
    path = written(tmp_path, frame())
    with_them, without = (table(path, **settings) for settings in ({}, {"known": (), "observed": (), "groups": True}))
    assert calibrate(with_them, forecaster(with_them))["by_forecast"] is True
    assert calibrate(without, forecaster(without))["by_forecast"] is False
