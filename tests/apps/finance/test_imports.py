"""Checkpoints made by pytorch-forecasting: read without executing them, equal to the library, or refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import RobustScaler

from apps.finance.app import app
from apps.finance.inference.calibration import from_manifest
from apps.finance.inference.forecasting import forecast
from apps.finance.models import tft
from apps.finance.models.imports import IMPORTERS, import_tft
from apps.finance.models.library_tft import LibraryForecaster, LibraryWindows
from apps.finance.models.settings import ProgramLibraryForecaster
from apps.finance.predictor import FinancePredictor
from apps.finance.service import FinanceCodec
from apps.finance.task import ForecastTask
from shared.app import Imported
from shared.cli.main import main
from shared.deploy.artifact import open_artifact
from shared.deploy.export import export
from shared.deploy.predictor import Request, answer, programs_of
from shared.deploy.programs.choosing import use_program
from shared.deploy.writing import write_imported
from shared.errors import InvalidInputError
from tests.apps.finance.library_tables import CONTEXT, HORIZON, ROWS, library_data, saved, table, table_of

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import, on building a network and on saving one.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def variants() -> dict[str, dict[str, Any]]:
    from pytorch_forecasting.data import EncoderNormalizer, GroupNormalizer, TorchNormalizer

    scales = {"add_relative_time_idx": True, "add_target_scales": True, "add_encoder_length": True}
    return {
        "group": {
            "target_normalizer": GroupNormalizer(groups=["item"], transformation="softplus"),
            "static_categoricals": ["item"],
            **scales,
        },
        "robust": {"target_normalizer": GroupNormalizer(groups=["item"], method="robust"), **scales},
        "window": {"target_normalizer": EncoderNormalizer(transformation="log1p"), **scales},
        "series": {"target_normalizer": TorchNormalizer(), "add_relative_time_idx": True},
        "calendar": {
            "time_varying_known_categoricals": ["weekday"],
            "time_varying_unknown_reals": ["value", "load"],
            "static_categoricals": ["item"],
        },
    }


@pytest.mark.parametrize("name", ["group", "robust", "window", "series", "calendar"])
def test_an_imported_network_forecasts_what_the_library_forecasts(tmp_path, monkeypatch, name):
    from pytorch_forecasting import TemporalFusionTransformer

    frame = table()
    data = library_data(frame, **variants()[name])
    path = saved(data, tmp_path / "tft.ckpt")
    imported = import_tft([str(path)], table_of(tmp_path, frame))
    model = imported.network
    assert isinstance(model, LibraryForecaster) and imported.source["largest_difference_from_the_library"] < 1e-5
    # Only the last one takes a column of the table; covariates computed from the times are no columns.
    assert imported.calibration["by_forecast"] is (name == "calendar")
    # The library reads its own checkpoint, makes its own windows and predicts the last rows of each series.
    original = TemporalFusionTransformer.load_from_checkpoint(path, weights_only=False)
    loader = type(data).from_dataset(data, frame.copy(), predict=True).to_dataloader(train=False, batch_size=3)
    expected = original.eval().predict(loader, mode="quantiles", trainer_kwargs={"accelerator": "cpu", "logger": False})
    for place, item in enumerate(table_of(tmp_path, frame).cases()):
        windows = LibraryWindows(item.series, model.settings, context=CONTEXT, horizon=HORIZON)
        with torch.no_grad():
            found = model(*windows.batch(np.array([ROWS - HORIZON])))[0]
        expected_quantiles = expected[place].sort(dim=-1).values
        assert float((found - expected_quantiles).abs().max()) < 2e-4 * float(expected_quantiles.abs().max())
    if name not in ("window", "calendar"):
        return
    # The ONNX and OpenVINO programs that serve it also agree, with and without categories. The network is traced:
    # torch.export takes ten times as long.
    monkeypatch.setattr(torch.export, "export", None)
    artifact = write_imported(app, "pytorch-forecasting", imported, tmp_path / "models")
    assert artifact.manifest.programs.keys() == {"onnx"} and "without_onnx" not in artifact.manifest.source
    (series, *_) = (item.series for item in table_of(tmp_path, frame).cases())
    (by_torch,) = forecast(model, [series], stride=HORIZON)
    for program in ("onnx", "openvino"):
        with use_program(program):
            predictor = FinancePredictor.load([artifact], "cpu")
        assert [opened.name for opened in programs_of(predictor).values()] == [program]
        (by_program,) = forecast(predictor.model, [series], stride=HORIZON)
        largest = np.nanmax(np.abs(by_torch.quantiles))
        np.testing.assert_allclose(by_program.quantiles, by_torch.quantiles, rtol=0, atol=1e-4 * largest)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Imported, Path]:
    """An imported network, and the folder of its checkpoint, its table and its artifact."""
    folder = tmp_path_factory.mktemp("import")
    frame = table()
    path = saved(library_data(frame, **variants()["group"]), folder / "tft.ckpt")
    imported_model = import_tft([str(path)], table_of(folder, frame))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tft, "dense", _refuse_to_export)
        write_imported(app, "pytorch-forecasting", imported_model, folder / "models")
    return imported_model, folder


def _refuse_to_export(model: Any) -> Any:
    """Replaces the ONNX export, as for a network that cannot be exported; other tests here export two networks."""
    raise NotImplementedError("not here")


def test_an_imported_model_is_a_working_artifact(imported):
    _, folder = imported
    artifact = open_artifact(folder / "models" / "tft-anomaly" / "1")
    assert artifact.manifest.source["without_onnx"] == "not here"
    assert artifact.manifest.source["sha256"] and artifact.manifest.calibration["measured"]["series"] == 3
    predictor = FinancePredictor.load([artifact], "cpu")
    response = answer(
        predictor,
        Request(files=(folder / "table.csv",), options={"series": "item", "value": "value", "threshold": "0.3"}),
        FinanceCodec(predictor),
    )
    parts = response.result["parts"]
    assert [part["name"] for part in parts] == ["a", "b", "c"] and response.result["series"]["rows"] == 3 * ROWS
    drawn = json.loads(response.files["series.json"])["parts"][1]
    assert drawn["low"][CONTEXT - 1] is None and all(value is not None for value in drawn["low"][CONTEXT:])
    unknown = table().query("item == 'a'").assign(item="new")
    unknown.drop(columns=["row", "hour", "weekday"]).to_csv(folder / "unknown.csv", index=False)
    with pytest.raises(InvalidInputError, match=r"the model knows the series a, b, c, but not 'new'"):
        answer(predictor, Request(files=(folder / "unknown.csv",)), FinanceCodec(predictor))


def test_an_imported_model_is_trained_further_calibrated_and_exported(imported, tmp_path, capsys):
    imported_model, folder = imported
    artifact = open_artifact(folder / "models" / "tft-anomaly" / "1")
    data = [f"--data.{name}={value}" for name, value in (("time", "time"), ("value", "value"), ("series", "item"))]
    data = ["--data", "table", "--data.path", str(folder / "table.csv"), *data]
    words = ["train", "finance", "--init", str(artifact.path), "--out", str(tmp_path / "run"), "--device", "cpu"]
    words += [*data, "--limits.epochs", "3", "--optimizer.learning-rate", "0.01", "--schedule.warmup-steps", "0"]
    assert main(words) == 0
    output = capsys.readouterr().out
    total = len(imported_model.network.state_dict())
    assert f"{total} of {total} tensors start from these weights" in output
    history = json.loads((tmp_path / "run" / "result.json").read_text())["history"]
    task = ForecastTask()
    scores = task.scores()
    validation = table_of(folder, table()).validation(imported_model.recipe.input)
    with torch.no_grad():
        task.evaluate(imported_model.network.eval(), validation.batch(np.arange(len(validation)), None), scores)
    assert history[-1]["loss"] < 0.8 * scores.summary()["loss"]
    learnt = FinancePredictor.load([export(tmp_path / "run", app, tmp_path / "models", network=False)], "cpu")
    assert isinstance(learnt.model, ProgramLibraryForecaster)
    words = ["calibrate", "finance", "--artifact", str(artifact.path), *data, "--registry", str(tmp_path / "other")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "unchanged: " in printed and "->" not in printed, "it was imported with the same table"


def test_a_file_for_an_imported_network_is_read_by_the_names_of_its_training(tmp_path):
    """The file also has a price, which would be guessed as the value, and words for booleans that were numbers."""
    frame = table().assign(
        promotion=lambda rows: (rows["row"] // 24 % 3 == 0).astype(float), price=lambda rows: rows["row"]
    )
    known = ["row", "hour", "promotion"]
    data = library_data(frame, time_varying_known_reals=known, time_varying_unknown_reals=["value", "load"])
    imported_model = import_tft([str(saved(data, tmp_path / "tft.ckpt"))], table_of(tmp_path, frame))
    calibration = from_manifest(imported_model.calibration)
    predictor = FinancePredictor(
        model=imported_model.network, calibration=calibration, stride=4, device="cpu", name="imported"
    )
    words = frame.drop(columns=["row", "hour", "weekday"]).assign(promotion=frame["promotion"] == 1)
    words.to_csv(tmp_path / "words.csv", index=False)
    requests = Request(files=(tmp_path / "words.csv",)), Request(files=(tmp_path / "table.csv",))
    by_words, by_numbers = (FinanceCodec(predictor).decode(request).inputs for request in requests)
    assert [(series.name, series.column) for series in by_words] == [("a", "value"), ("b", "value"), ("c", "value")]
    for from_words, from_numbers in zip(predictor.predict(by_words), predictor.predict(by_numbers), strict=True):
        np.testing.assert_array_equal(from_words.forecast.quantiles, from_numbers.forecast.quantiles)
    frame.query("item == 'a'").drop(columns="item").to_csv(tmp_path / "a.csv", index=False)
    found = answer(predictor, Request(files=(tmp_path / "a.csv",)), FinanceCodec(predictor)).result["series"]
    assert found["columns"] == ["value"], "the form would offer columns that are refused"
    assert not any("columns=all" in note for note in found["notes"])
    everything = Request(files=(tmp_path / "a.csv",), options={"columns": "all"})
    with pytest.raises(
        InvalidInputError, match="forecasts 'value' from 'promotion', 'load' and cannot score all columns"
    ):
        FinanceCodec(predictor).decode(everything)


def test_an_imported_model_is_not_trained_on_synthetic_series(imported, tmp_path, capsys):
    _, folder = imported
    artifact = open_artifact(folder / "models" / "tft-anomaly" / "1")
    assert main(["train", "finance", "--init", str(artifact.path), "--out", str(tmp_path / "run")]) == 2
    assert "lack the columns that this network needs; name the table" in capsys.readouterr().err


def test_its_forecasts_do_not_look_ahead(imported):
    imported_model, folder = imported
    model = imported_model.network
    assert isinstance(model, LibraryForecaster)
    (series, *_) = (item.series for item in table_of(folder, table()).cases())
    changed = series.target.copy()
    changed[150:] += 1000
    changed_series = replace(series, values={**series.values, "value": changed})
    before, after = forecast(model, [series, changed_series], stride=2)
    np.testing.assert_array_equal(before.quantiles[:150], after.quantiles[:150])
    assert np.isnan(before.quantiles[:CONTEXT]).all() and np.isfinite(before.surprise[CONTEXT + HORIZON :]).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lags": {"value": [24]}, "max_encoder_length": 24}, "because it has lagged values"),
        ({"scalers": {"hour": RobustScaler()}}, r"by sklearn\.preprocessing\._data\.RobustScaler; only StandardScaler"),
    ],
)
def test_networks_with_unsupported_inputs_are_refused(tmp_path, settings, sentence):
    frame = table()
    path = saved(library_data(frame, **settings), tmp_path / "tft.ckpt")
    with pytest.raises(InvalidInputError, match=sentence):
        import_tft([str(path)], table_of(tmp_path, frame))


def test_other_checkpoints_and_a_missing_table_are_refused(tmp_path, imported):
    _, folder = imported
    with pytest.raises(InvalidInputError, match=r"are fitted again: --data table --data\.path FILE"):
        import_tft([str(folder / "tft.ckpt")], None)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(InvalidInputError, match=r"other\.ckpt is not a checkpoint of pytorch-forecasting's"):
        import_tft([str(tmp_path / "other.ckpt")], None)
    content = torch.load(folder / "tft.ckpt", weights_only=False)
    del content["state_dict"]["output_layer.weight"]
    torch.save(content, tmp_path / "torn.ckpt")
    with pytest.raises(InvalidInputError, match=r"1 weights are missing \(output_layer\.weight\)"):
        import_tft([str(tmp_path / "torn.ckpt")], table_of(folder, table()))
    assert list(app.importers() if app.importers else {}) == list(IMPORTERS) == ["pytorch-forecasting"]


class Trap:
    """Calls a function if it is unpickled in the usual way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch, imported):
    _, folder = imported
    monkeypatch.chdir(tmp_path)
    content = torch.load(folder / "tft.ckpt", weights_only=False)
    content["hyper_parameters"]["optimizer_params"] = Trap()
    torch.save(content, "trap.ckpt")
    imported_model = import_tft(["trap.ckpt"], table_of(folder, table()))
    assert not Path("sprung").exists() and imported_model.network is not None
    pickle.loads(pickle.dumps(Trap()))
    assert Path("sprung").exists(), "the trap works"
