"""Checkpoints over a panel as in pytorch-forecasting's tutorial: series named by two columns, static numbers, holidays
that share an encoder, and a time index that the table has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from apps.finance.datasets.table import Table
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
from tests.apps.finance.following import assert_as_in_the_whole
from tests.apps.finance.library_tables import library_data, saved

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import, on building a network and on saving one.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

HOLIDAYS = ["christmas", "new_year", "easter"]
MONTHS, CONTEXT, HORIZON = 90, 12, 4
GROUPS = ["agency", "sku"]


def panel() -> pd.DataFrame:
    """Monthly sales of two products by three agencies, of which one began to sell the second product later, and too
    late for its series to be scored."""
    generator, parts = np.random.default_rng(0), []
    dates = pd.date_range("2014-01-01", periods=MONTHS, freq="MS")
    for agency in range(3):
        for sku in range(2):
            first = 40 if (agency, sku) == (2, 1) else 0
            time = dates[first:]
            price = 1000 + 100 * sku + 20 * generator.normal(size=len(time))
            season = 20 * np.sin(time.month / 12 * 2 * np.pi)
            sales = 50 * (agency + 1) * (sku + 1) + season + 5 * generator.normal(size=len(time))
            columns = {"date": time, "agency": f"Agency {agency}", "sku": f"sku-{sku}", "sales": sales, "price": price}
            columns |= {"population": 1000.0 * (agency + 1), "step": np.arange(first, MONTHS)}
            for name, month in zip(HOLIDAYS, (12, 1, 4), strict=True):
                columns[name] = np.where(time.month == month, name, "-")
            parts.append(pd.DataFrame({**columns, "month": time.month.astype(str)}))
    return pd.concat(parts, ignore_index=True)


def panel_data(frame: pd.DataFrame, **settings: Any) -> Any:
    from pytorch_forecasting.data import GroupNormalizer

    usual: dict[str, Any] = {
        "time_idx": "step",
        "target": "sales",
        "group_ids": GROUPS,
        "max_encoder_length": CONTEXT,
        "min_encoder_length": CONTEXT // 2,
        "max_prediction_length": HORIZON,
        "min_prediction_length": 1,
        "static_categoricals": GROUPS,
        "static_reals": ["population"],
        "time_varying_known_categoricals": ["holidays", "month"],
        "variable_groups": {"holidays": HOLIDAYS},
        "time_varying_known_reals": ["step", "price"],
        "time_varying_unknown_reals": ["sales"],
        "target_normalizer": GroupNormalizer(groups=GROUPS, transformation="softplus"),
        "add_relative_time_idx": True,
        "add_target_scales": True,
        "add_encoder_length": True,
    }
    return library_data(frame, **{**usual, **settings})


def panel_table(folder: Path, frame: pd.DataFrame, series: str | None = "agency+sku") -> Table:
    frame.drop(columns="month").to_csv(folder / "panel.csv", index=False)
    return Table(path=str(folder / "panel.csv"), time="date", value="sales", series=series)


def assert_forecasts_as_the_library(data: Any, checkpoint: Path, imported: Imported, folder: Path) -> None:
    """Compares the forecasts of the last rows of every series, which come after the rows of the training."""
    from pytorch_forecasting import TemporalFusionTransformer

    original = TemporalFusionTransformer.load_from_checkpoint(checkpoint, weights_only=False)
    loader = type(data).from_dataset(data, panel(), predict=True).to_dataloader(train=False, batch_size=8)
    found = original.eval().predict(
        loader, mode="quantiles", return_index=True, trainer_kwargs={"accelerator": "cpu", "logger": False}
    )
    model = imported.network
    every = with_covariates(panel_table(folder, panel()), covariates_of(model)).every_series()
    series = {item.series.name: item.series for item in every}
    assert len(found.index) == len(series) == 6
    largest = float(found.output.abs().max())
    for place, (agency, sku) in enumerate(found.index[GROUPS].itertuples(index=False)):
        one = series[f"{agency}+{sku}"]
        windows = LibraryWindows(one, model.settings, context=CONTEXT, horizon=HORIZON)
        with torch.no_grad():
            quantiles = model(*windows.batch(np.array([len(one) - HORIZON])))[0]
        expected = found.output[place].sort(dim=-1).values
        assert float((quantiles - expected).abs().max()) < 1e-5 * largest, one.name


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Imported, Path]:
    """A data set of the library, the network imported from its checkpoint, and a folder."""
    folder = tmp_path_factory.mktemp("panel")
    training = panel().query(f"step < {MONTHS - HORIZON}")
    data = panel_data(training)
    path = saved(data, folder / "tft.ckpt")
    return data, import_tft([str(path)], panel_table(folder, training)), folder


def test_a_checkpoint_of_the_librarys_tutorial_forecasts_what_the_library_forecasts(tutorial, tmp_path):
    """A series of 46 rows, too short to be scored, is among those on which scalers are fitted."""
    data, imported, folder = tutorial
    settings = imported.network.settings
    assert settings.group == "agency+sku" and len(settings.target_scales) == 7
    assert settings.categories["easter"] == settings.categories["christmas"]
    assert "step" in covariates_of(imported.network) and imported.calibration["by_forecast"] is True
    assert_forecasts_as_the_library(data, folder / "tft.ckpt", imported, tmp_path)


@pytest.mark.parametrize("name", ["by_each_group", "one_scale", "quartiles", "window"])
def test_series_named_by_two_columns_are_scaled_as_in_the_library(tmp_path, name):
    from pytorch_forecasting.data import EncoderNormalizer, GroupNormalizer

    normalizer = {
        "by_each_group": GroupNormalizer(groups=GROUPS, scale_by_group=True),
        "one_scale": GroupNormalizer(),
        "quartiles": GroupNormalizer(groups=GROUPS, method="robust", method_kwargs={"upper": 0.9, "lower": 0.1}),
        "window": EncoderNormalizer(),
    }[name]
    numbers = {"static_categoricals": [], "time_varying_known_categoricals": [], "variable_groups": {}}
    data = panel_data(panel(), target_normalizer=normalizer, **numbers)
    path = saved(data, tmp_path / "tft.ckpt")
    imported = import_tft([str(path)], panel_table(tmp_path, panel(), series=None))
    assert covariates_of(imported.network) == ("population", "step", "price")
    assert_forecasts_as_the_library(data, path, imported, tmp_path)


def test_a_file_for_such_a_network_is_read_by_the_names_of_its_training(tutorial, tmp_path):
    _, imported, _ = tutorial
    calibration = from_manifest(imported.calibration)
    model = FinancePredictor(model=imported.network, calibration=calibration, stride=2, device="cpu", name="panel")
    panel_table(tmp_path, panel().query("step >= 20"))
    response = answer(model, Request(files=(tmp_path / "panel.csv",)), FinanceCodec(model)).result
    names = [part["name"] for part in response["parts"]]
    assert names == [f"Agency {agency}+sku-{sku}" for agency in range(3) for sku in range(2)][:5]
    # The file begins 20 months later, but the network sees the same time index and forecasts the same.
    whole = with_covariates(panel_table(tmp_path, panel()), covariates_of(imported.network)).cases()[0].series
    (later,) = forecast(imported.network, [whole.from_row(20)], stride=2)
    (all_rows,) = forecast(imported.network, [whole], stride=2)
    np.testing.assert_allclose(later.quantiles[CONTEXT:], all_rows.quantiles[20 + CONTEXT :], rtol=1e-5)
    assert_as_in_the_whole(model, whole, 70, Options(), tmp_path, 0, steps=(1, 2, 3), tolerance=1e-5)
    panel_table(tmp_path, panel().drop(columns="step"))
    with pytest.raises(InvalidInputError, match=r"panel\.csv has no column 'step', which the network needs"):
        answer(model, Request(files=(tmp_path / "panel.csv",)), FinanceCodec(model))


def test_tables_whose_series_are_others_are_refused(tutorial, tmp_path):
    _, _, folder = tutorial
    checkpoint = str(folder / "tft.ckpt")
    with pytest.raises(InvalidInputError, match=r"named by agency and sku together; give --data\.series agency\+sku"):
        import_tft([checkpoint], panel_table(tmp_path, panel(), series="agency"))
    regions = panel().query("step >= 40").assign(region=lambda rows: rows["agency"].str[-1] + rows["sku"])
    mixed = regions.assign(sku=np.where(regions["step"] < 60, regions["sku"], "sku-0"))
    with pytest.raises(InvalidInputError, match="a series of the table has several entries of sku; name the columns"):
        import_tft([checkpoint], panel_table(tmp_path, mixed, series="region"))
    with pytest.raises(InvalidInputError, match="'step', which must increase by 1 with each row of a series, and in A"):
        import_tft([checkpoint], panel_table(tmp_path, panel().query("step != 70")))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": ["agency"]}, r"by a GroupNormalizer with groups=\['agency'\], which are not all columns"),
        ({"max_length": 6}, "by a EncoderNormalizer with the setting max_length"),
    ],
)
def test_normalizers_that_scale_otherwise_are_refused(tmp_path, settings, sentence):
    from pytorch_forecasting.data import EncoderNormalizer, GroupNormalizer

    kind = GroupNormalizer if "groups" in settings else EncoderNormalizer
    path = saved(panel_data(panel(), target_normalizer=kind(**settings)), tmp_path / "tft.ckpt")
    with pytest.raises(InvalidInputError, match=sentence):
        import_tft([str(path)], panel_table(tmp_path, panel()))
