"""Checkpoints of pytorch-forecasting with categories of words: coded as the library codes them, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from apps.finance.datasets.columns import imported_code
from apps.finance.inference.calibration import from_manifest, with_covariates
from apps.finance.inference.forecasting import covariates_of, forecast
from apps.finance.inference.options import Options
from apps.finance.models.imports import import_tft
from apps.finance.models.library_tft import LibraryWindows
from apps.finance.predictor import FinancePredictor
from apps.finance.service import FinanceCodec
from shared.app import Imported
from shared.deploy.predictor import Request, answer
from shared.errors import InvalidInputError
from tests.apps.finance.following import assert_as_in_the_whole, rows_of, until
from tests.apps.finance.library_tables import CONTEXT, HORIZON, ROWS, library_data, saved, table, table_of

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import, on building a network and on saving one.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def with_words(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a sector for each series, a phase of each day that is known ahead, and a regime that is not."""
    sector = frame["item"].map({"a": "bank", "b": "energy", "c": "bank"})
    phase = np.where(frame["row"] % 24 < 8, "closed", np.where(frame["row"] % 24 < 16, "True", ""))
    regime = np.array(["calm", "wild", "nan"])[frame["row"] // 17 % 3]
    return frame.assign(sector=sector, phase=phase, regime=regime)


@pytest.fixture(scope="module")
def over_words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Imported, Path]:
    """A data set of the library with categories of a table, the network imported from its checkpoint, and a folder."""
    from pytorch_forecasting.data import NaNLabelEncoder

    folder, frame = tmp_path_factory.mktemp("words"), with_words(table())
    data = library_data(
        frame,
        static_categoricals=["item", "sector"],
        time_varying_known_categoricals=["weekday", "phase"],
        time_varying_unknown_categoricals=["regime"],
        categorical_encoders={"regime": NaNLabelEncoder(add_nan=True)},
    )
    path = saved(data, folder / "tft.ckpt")
    # The table has an empty cell where pandas made the text "nan" of a missing one.
    return data, import_tft([str(path)], table_of(folder, frame.replace({"regime": {"nan": ""}}))), folder


def test_an_imported_network_over_words_forecasts_what_the_library_forecasts(over_words, tmp_path):
    """The last rows have a word that the encoder of the regime codes as unknown."""
    from pytorch_forecasting import TemporalFusionTransformer

    data, imported, folder = over_words
    model = imported.network
    assert model.settings.categories["sector"] == {"bank": 0, "energy": 1}
    assert model.settings.categories["regime"]["nan"] == 0 and model.settings.unknown_words == ("regime",)
    assert imported.calibration["by_forecast"] is True
    frame = with_words(table())
    frame.loc[frame["row"] >= ROWS - 7, "regime"] = "a crash"
    original = TemporalFusionTransformer.load_from_checkpoint(folder / "tft.ckpt", weights_only=False)
    loader = type(data).from_dataset(data, frame.copy(), predict=True).to_dataloader(train=False, batch_size=3)
    expected = original.eval().predict(loader, mode="quantiles", trainer_kwargs={"accelerator": "cpu", "logger": False})
    wanted = expected.sort(dim=-1).values
    written = table_of(tmp_path, frame.replace({"regime": {"nan": ""}}))
    series = [item.series for item in with_covariates(written, covariates_of(model)).cases()]
    for place, one in enumerate(series):
        windows = LibraryWindows(one, model.settings, context=CONTEXT, horizon=HORIZON)
        with torch.no_grad():
            found = model(*windows.batch(np.array([ROWS - HORIZON])))[0]
        assert float((found - wanted[place]).abs().max()) < 1e-5 * float(wanted[place].abs().max())
    # Other words change the forecast, so the codes do reach the network.
    other = replace(series[0], words={**series[0].words, "regime": np.full(ROWS, "calm", object)})
    one, two = forecast(model, [series[0], other], stride=HORIZON)
    assert not np.array_equal(one.quantiles[-1], two.quantiles[-1])


def test_an_imported_network_over_words_is_followed_row_by_row(over_words, tmp_path):
    _, imported, folder = over_words
    calibration = from_manifest(imported.calibration)
    model = FinancePredictor(model=imported.network, calibration=calibration, stride=2, device="cpu", name="words")
    (series, *_) = FinanceCodec(model).decode(Request(files=(folder / "table.csv",))).inputs
    values = series.target.copy()
    values[200] += 100
    changed = replace(series, values={**series.values, "value": values})
    assert_as_in_the_whole(model, changed, 100, Options(), tmp_path, 0, steps=(1, 2, 7), tolerance=1e-5)
    monitor = model.monitor(until(series, 100))
    times, columns = rows_of(series, 100, 101)
    with pytest.raises(InvalidInputError, match="of which phase is missing"):
        monitor.update(times, {name: cells for name, cells in columns.items() if name != "phase"})
    with pytest.raises(InvalidInputError, match="the word 'auction' in column 'phase', which a has"):
        monitor.update(times, {**columns, "phase": ["auction"]})
    assert len(monitor.series) == 100


def test_words_that_an_imported_network_does_not_know_are_refused_or_noted(over_words, tmp_path):
    _, imported, _ = over_words
    calibration = from_manifest(imported.calibration)
    model = FinancePredictor(model=imported.network, calibration=calibration, stride=4, device="cpu", name="words")
    table_of(tmp_path, with_words(table()).assign(regime="a crash"))
    notes = answer(model, Request(files=(tmp_path / "table.csv",)), FinanceCodec(model)).result["series"]["notes"]
    assert "the network was not trained on 1 words of column 'regime' and treats them as unknown: 'a crash'" in notes
    table_of(tmp_path, with_words(table()).assign(sector="retail"))
    with pytest.raises(InvalidInputError, match="not trained on the word 'retail' in column 'sector', which a has"):
        answer(model, Request(files=(tmp_path / "table.csv",)), FinanceCodec(model))
    table_of(tmp_path, with_words(table()).drop(columns="sector"))
    with pytest.raises(InvalidInputError, match=r"table\.csv has no column 'sector', which the network needs"):
        answer(model, Request(files=(tmp_path / "table.csv",)), FinanceCodec(model))


@pytest.mark.parametrize(
    ("word", "codes", "code"),
    [
        ("1", {"0.0": 0, "1.0": 1}, 1),
        ("7", {"007": 0, "008": 1}, 0),
        ("true", {"False": 0, "True": 1}, 1),
        ("", {"nan": 0, "x": 1}, 0),
        ("", {"": 3, "nan": 0}, 3),
        ("1", {"1.0": 0, "01": 1}, None),
        ("x", {"y": 0}, None),
    ],
)
def test_words_of_a_file_are_matched_with_those_that_pandas_wrote(word, codes, code):
    assert imported_code(word, codes) == code
