"""A network over a user's own covariates at work: exported, predicted with, trained further, quantised, served."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from apps.finance.app import app
from apps.finance.datasets.synthetic import Synthetic
from apps.finance.inference.calibration import calibrate, from_manifest
from apps.finance.inference.evaluation import evaluate
from apps.finance.inference.forecasting import forecast
from apps.finance.models import tft
from apps.finance.models.stored import stored_settings
from apps.finance.outputs.whole_series import read_whole_series
from apps.finance.predictor import FinancePredictor
from apps.finance.recipes import tiny
from apps.finance.samples import samples
from apps.finance.service import FinanceCodec
from apps.finance.types import Series
from shared.cli.main import main
from shared.deploy.artifact import open_artifact
from shared.deploy.calibration_inputs import calibration_inputs
from shared.deploy.predictor import Request, answer
from shared.errors import InvalidInputError
from shared.recipe_file import read_recipe_file
from shared.recipes import recipe_of
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.finance.loads import INPUT, Knowing, forecaster, frame, library, table, written

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


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
    """Replaces the ONNX export; the test of imports exports its networks."""
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
    assert re.search("^unchanged: .*by_forecast", capsys.readouterr().out, re.MULTILINE)
    calibrated = open_artifact(tmp_path / "models" / "tft-anomaly" / "2")
    assert calibrated.manifest.calibration["by_forecast"] is True


def test_a_network_over_covariates_is_quantised_on_the_table_of_its_training(trained):
    artifact = open_artifact(trained / "models" / "tft-anomaly" / "1")
    recorded = recipe_of(app, artifact.recipe()).data
    found = calibration_inputs(app, artifact, data=recorded)
    assert found.description.endswith("training cases (2 series of 800 rows from load.csv)")
    assert found.inputs[0].keys() == {"reals", "categories", "target_scale"}
    with pytest.raises(
        InvalidInputError, match=r"name the table that it was trained on: --data table --data\.path FILE"
    ):
        calibration_inputs(app, artifact, data=tiny().data)


def test_a_network_is_trained_further_with_its_own_scalers_words_and_series(trained, tmp_path, capsys):
    """As with reviewed cases: a table with some of the series, a further series, and other words."""
    artifact = trained / "models" / "tft-anomaly" / "1"
    renamed = frame("bc").assign(region=lambda rows: rows["region"].replace("c", "a new one"))
    renamed["holiday"] = renamed["holiday"].replace("easter", "carnival")
    path = written(tmp_path, renamed.assign(temperature=lambda rows: rows["temperature"] + 20))
    words = ["train", "finance", "--recipe", "tiny", "--init", str(artifact), "--out", str(tmp_path / "run")]
    words += ["--data", "table", "--data.path", str(path), "--data.series", "region", "--device", "cpu"]
    capsys.readouterr()
    assert main([*words, "--limits.steps", "1"]) == 0
    total = len(open_artifact(artifact).weights())
    assert f"{total} of {total} tensors start from these weights" in capsys.readouterr().out
    before, after = (
        stored_settings(read_recipe_file(source / "recipe.yaml")["recipe"])[1].library
        for source in (artifact, tmp_path / "run")
    )
    assert before is not None and after is not None and after.further
    assert (after.scalers, after.categories, after.known) == (before.scalers, before.categories, before.known)
    assert after.target_scales.items() > before.target_scales.items()
    assert after.target_scales.keys() == {"a", "b", "a new one"}
    assert main([*words, "--data.known", "temperature"]) == 2
    assert "takes temperature, holiday as known ahead of time and wind as observed;" in capsys.readouterr().err


def client(folder: Path, registry: Path) -> TestClient:
    settings = Settings(store=folder / registry.name, registry=registry, device="cpu", warm=False)
    return TestClient(create_app(settings, {"finance": app}))


def test_the_form_says_which_columns_are_needed_and_offers_no_sample_without_them(trained, tmp_path):
    with client(tmp_path, trained / "models") as own_client:
        assert own_client.get("/api/finance/samples").json() == {"samples": []}
        page = html.unescape(own_client.get("/finance").text)
        needed = "times, 'load', the value, 'region', the names of series, 'temperature', 'holiday', 'wind'."
        assert needed in page and "data-sample" not in page
        for route in ("jobs", "predict"):
            response = own_client.post(f"/api/finance/{route}", data={"sample": "synthetic_market"})
            assert response.status_code == 422
            lacking = "'synthetic_market' lacks 'load', 'temperature', 'holiday', 'wind'; its columns are 'timestamp', "
            assert lacking in response.json()["detail"] and needed in response.json()["detail"]
            unknown = own_client.post(f"/api/finance/{route}", data={"sample": "another"})
            assert (unknown.status_code, "available: none" in unknown.json()["detail"]) == (422, True)
    (tmp_path / "empty").mkdir()
    with client(tmp_path, tmp_path / "empty") as shipped:
        assert any(
            sample["name"] == "synthetic_market" for sample in shipped.get("/api/finance/samples").json()["samples"]
        )
        assert 'data-sample="synthetic_market"' in shipped.get("/finance").text


def test_samples_that_have_the_columns_are_offered_and_predicted_on(tmp_path, monkeypatch):
    """A network over price and volume reads the samples that are bars."""
    for sample in samples():
        (path, *_) = sample.files(tmp_path)
        assert path.read_text(encoding="utf-8").partition("\n")[0].split(",") == [*sample.columns]
    data = ["--data", "table", "--data.path", str(tmp_path / "synthetic_market.csv"), "--data.value", "close"]
    words = ["train", "finance", "--recipe", "tiny", *data, "--data.observed", "volume", "--device", "cpu"]
    assert main([*words, "--limits.steps", "1", "--out", str(tmp_path / "run")]) == 0
    monkeypatch.setattr(tft, "dense", _refuse_to_export)
    assert main(["export", str(tmp_path / "run"), "--registry", str(tmp_path / "models")]) == 0
    with client(tmp_path, tmp_path / "models") as server:
        offered = [sample["name"] for sample in server.get("/api/finance/samples").json()["samples"]]
        assert "synthetic_market" in offered and "twitter_aapl" not in offered
        assert 'data-sample="synthetic_market"' in server.get("/finance").text
        answered = server.post("/api/finance/predict", data={"sample": "synthetic_market"})
        assert answered.status_code == 200 and answered.json()["result"]["series"]["column"] == "close"


def test_the_table_a_server_keeps_includes_its_text_columns(predictor, trained):
    request = Request(files=(trained / "load.csv",), options={"series": "region"})
    codec = FinanceCodec(predictor)
    decoded = codec.decode(request)
    later = codec.encode(decoded, predictor.predict(decoded.inputs)).later
    assert later is not None
    restored = read_whole_series(later.inputs["columns.npz"]())
    for case, item in zip(restored, table(trained / "load.csv").cases(), strict=True):
        np.testing.assert_array_equal(case.words["holiday"], item.series.words["holiday"])
        np.testing.assert_array_equal(case.values["wind"], item.series.values["wind"])


def test_fitted_covariates_are_printed_before_training(tmp_path):
    data = table(written(tmp_path, frame()))
    facts = data.facts(data.fit_input(INPUT))
    assert facts["known ahead"].startswith("temperature (mean 1") and facts["known ahead"].endswith("holiday (3 words)")
    assert facts["observed until now"].startswith("wind (mean ") and facts["names of series"] == "embedded"


def test_a_value_unusual_only_given_its_covariates_is_found_by_its_forecast(tmp_path):
    """A holiday with the load of a working day: within the usual range, but far from its forecast."""
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
        knowing = FinancePredictor(model=model, calibration=calibration, stride=4, device="cpu", name="knowing")
        before, after = knowing.predict([series, odd])
        assert not before.anomalies
        found[by_forecast] = after.anomalies
    (event,) = found[True]
    assert event.peak_ns == series.times_ns[row] and (event.channel, event.direction) == ("surprise", "above")
    assert event.reason.startswith("a value off its forecast: +") and event.size == pytest.approx(20, abs=3)
    assert values[row] < series.target[:row].max() and not found[False]


def test_the_series_column_of_the_training_is_used_if_the_file_has_it(predictor, tmp_path):
    single = frame("b").assign(region="b")
    result = answered(predictor, written(tmp_path, single), series="")
    assert [part["name"] for part in result["parts"]] == ["b"]
    assert not any("unknown" in note for note in result["series"]["notes"])
    both = answered(predictor, written(tmp_path, frame()), series="")
    assert [part["name"] for part in both["parts"]] == ["a", "b"]
    lacking = answered(predictor, written(tmp_path, single.drop(columns="region")), series="")
    assert any("treats them as unknown: 'load.csv'" in note for note in lacking["series"]["notes"])


def test_rows_that_are_still_to_come_are_noted(predictor, tmp_path):
    with_future = frame("a")
    assert not any(
        "still to come" in note for note in answered(predictor, written(tmp_path, with_future))["series"]["notes"]
    )
    with_future.loc[with_future.index[-7:], ["load", "wind"]] = np.nan
    notes = answered(predictor, written(tmp_path, with_future))["series"]["notes"]
    assert any(note.startswith("the last 7 rows have no value") and "Beyond 4 rows" in note for note in notes)


def test_series_in_another_unit_than_in_training_are_noted(predictor, tmp_path):
    notes = answered(predictor, written(tmp_path, frame()))["series"]["notes"]
    assert not any("as in training" in note for note in notes)
    scaled = frame().assign(load=lambda rows: np.where(rows["region"] == "b", 1000, 1) * rows["load"])
    notes = answered(predictor, written(tmp_path, scaled))["series"]["notes"]
    (note,) = (note for note in notes if "as in training" in note)
    assert note.startswith("1 series vary more than 4 times") and "'b' 950 times as much;" in note and "'a'" not in note


def test_mostly_constant_series_get_no_unit_note(predictor, tmp_path):
    """How much a stopped feed or a count of rare events varies depends on how often it moves."""
    still = frame().assign(load=7.0)
    still.loc[still.index[::40], "load"] = 900.0
    still.loc[still["region"] == "a", "load"] = 7.0
    notes = answered(predictor, written(tmp_path, still))["series"]["notes"]
    assert not [note for note in notes if "as in training" in note]


def test_words_and_series_unseen_in_training_are_unknown_and_noted(predictor, tmp_path):
    unseen = frame("a").assign(region="c", holiday="carnival")
    notes = answered(predictor, written(tmp_path, unseen))["series"]["notes"]
    assert "the network was not trained on 1 words of column 'holiday' and treats them as unknown: 'carnival'" in notes
    assert "the network was not trained on 1 series and treats them as unknown: 'c'" in notes
    empty = frame("a").assign(holiday="")
    assert not any("unknown" in note for note in answered(predictor, written(tmp_path, empty))["series"]["notes"])


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (
            {"holiday": None},
            {},
            "load.csv has no column 'holiday', which the network needs as a covariate; its columns are",
        ),
        ({"temperature": "warm"}, {}, "a: column 'temperature' holds 'warm', but the network was trained on numbers"),
        ({}, {"columns": "all"}, "forecasts 'load' from 'temperature', 'holiday', 'wind' and cannot score all columns"),
        ({}, {"value": "wind"}, "column 'wind' holds the value and cannot also be a covariate"),
        (
            {"temperature": ""},
            {},
            "'temperature' is known ahead of time to the network, but has no value in the 4 rows",
        ),
    ],
)
def test_a_file_without_a_covariate_is_refused_with_the_columns_name(predictor, tmp_path, change, options, sentence):
    changed = frame("a").drop(columns=[name for name, value in change.items() if value is None])
    changed = changed.assign(**{name: value for name, value in change.items() if value is not None})
    with pytest.raises(InvalidInputError, match=sentence):
        answered(predictor, written(tmp_path, changed), **options)


def test_a_network_over_covariates_is_not_scored_on_series_without_them(predictor, trained):
    (series, *_) = (item.series for item in table(trained / "load.csv").cases())
    synthetic = Synthetic(series=2, validation_series=1, rows=400)
    with pytest.raises(InvalidInputError, match="of Synthetic lack the columns temperature, holiday, wind"):
        evaluate(predictor, synthetic, None)
    bare = Series(
        **{
            **{name: getattr(series, name) for name in ("name", "times_ns", "column", "interval_ns")},
            "values": {"load": series.target},
        }
    )
    with pytest.raises(
        InvalidInputError, match="a has no column 'temperature', which the network needs as a covariate"
    ):
        predictor.predict([bare])


def test_only_a_network_over_covariates_scores_by_its_forecast(tmp_path):
    path = written(tmp_path, frame())
    with_them, without = (table(path, **settings) for settings in ({}, {"known": (), "observed": (), "groups": True}))
    assert calibrate(with_them, forecaster(with_them))["by_forecast"] is True
    assert calibrate(without, forecaster(without))["by_forecast"] is False


def test_a_network_over_columns_forecasts_very_small_values_alike(tmp_path):
    """A price of 1e-11 is no constant: it is forecast in units of its own deviation, and so are its deviations."""
    small = frame().assign(load=lambda rows: rows["load"] * 2.0**-40)
    usual_data, small_data = table(written(tmp_path, frame())), table(written(tmp_path, small, "small.csv"))
    usual, less = forecaster(usual_data), forecaster(small_data)
    (one,) = forecast(usual, [usual_data.cases()[0].series], stride=2)
    (other,) = forecast(less, [small_data.cases()[0].series], stride=2)
    np.testing.assert_allclose(other.quantiles * 2.0**40, one.quantiles, rtol=1e-4)
    np.testing.assert_allclose(other.surprise, one.surprise, rtol=1e-3, atol=1e-3)
    priors = [calibrate(data, model)["prior"] for data, model in ((usual_data, usual), (small_data, less))]
    assert priors[0].keys() == priors[1].keys()
    for name in priors[0]:
        np.testing.assert_allclose(priors[1][name], priors[0][name], rtol=1e-2, atol=1e-3, err_msg=name)
