"""A monitor of a network over columns takes their rows, and its results equal those of a prediction on the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.finance.datasets.table import Table
from apps.finance.inference.calibration import calibrate, from_manifest
from apps.finance.inference.options import Options
from apps.finance.predictor import FinancePredictor
from apps.finance.recipes import tiny
from apps.finance.types import Series
from shared.errors import InvalidInputError
from tests.apps.finance.following import assert_as_in_the_part, assert_as_in_the_whole, rows_of, until
from tests.apps.finance.loads import INPUT, Knowing, forecaster, frame, table, written

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]


def predictor_of(data: Table, **settings: Any) -> FinancePredictor:
    """A predictor with an untrained network over the covariates of ``data``; its detectors look back 1,500 rows."""
    model = forecaster(data)
    calibration = replace(from_manifest(calibrate(data, model)), memory=1500, **settings)
    return FinancePredictor(model=model, calibration=calibration, stride=4, device="cpu", name="covariates")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return table(written(tmp_path_factory.mktemp("monitor"), frame()))


def long_series(rows: int = 8000) -> Series:
    """Hourly loads with words, missing values, a column that has a single one, and six odd values."""
    generator, hours = np.random.default_rng(5), np.arange(rows)
    temperature = 10 + 8 * np.sin(hours / 37) + generator.normal(size=rows)
    temperature[generator.uniform(size=rows) < 0.02] = np.nan
    holiday = np.where(hours // 24 % 5 == 3, "new year", np.where(hours // 24 % 7 == 5, "carnival", ""))
    load = 100 + 3 * np.nan_to_num(temperature, nan=10) - 20 * (holiday != "") + generator.normal(size=rows)
    load[generator.uniform(size=rows) < 0.02] = np.nan
    load[[900, 2500, 5200, 6100, 7000, 7900]] += 60
    load[3000:3100] = np.nan
    wind = np.where(hours == 10, 1.5, np.nan)
    times = np.int64(1_700_000_000 * 10**9) + hours * np.int64(3600 * 10**9)
    values = {"load": load, "temperature": temperature, "wind": wind}
    words = {"holiday": holiday.astype(object)}
    return Series(name="a", times_ns=times, values=values, column="load", interval_ns=3600 * 10**9, words=words)


def test_monitoring_rows_with_columns_equals_predicting_the_whole(data, tmp_path):
    model, series = predictor_of(data), long_series()
    monitor, events = assert_as_in_the_whole(
        model, series, 700, Options(), tmp_path, 1, steps=(1, 3, 64, 300), tolerance=1e-5
    )
    assert len(monitor.series) < 7500, "rows are forgotten"
    assert (len(events) > 3 and "surprise" in model.calibration.detectors()) or model.calibration.by_forecast
    assert_as_in_the_part(model, series, Options(), *events[-1])


def test_a_resumed_monitor_continues_exactly(data, tmp_path):
    model, series = predictor_of(data), until(long_series(), 1500)
    one = model.monitor(until(series, 700))
    for row in range(700, 800, 7):
        one.update(*rows_of(series, row, row + 7))
    one.save(tmp_path / "s.npz")
    other = model.monitor(tmp_path / "s.npz")
    for row in range(805, 1000, 13):
        assert one.update(*rows_of(series, row, row + 13)) == other.update(*rows_of(series, row, row + 13))
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.thresholds, other.thresholds)
    one.save(tmp_path / "one.npz")
    other.save(tmp_path / "other.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_a_row_unusual_only_given_its_columns_is_reported_at_once(data):
    """A holiday with the load of a working day, sent as rows of a DataFrame."""
    knowing = Knowing(tiny().model.sized(data.fit_input(INPUT).library), data.fit_input(INPUT))
    calibration = from_manifest(calibrate(data, knowing))
    model = FinancePredictor(model=knowing, calibration=calibration, stride=4, device="cpu", name="knowing")
    made, row = frame("a"), 13 * 24 + 12
    assert made["holiday"][row] == "new year"
    history, time = until(data.cases()[0].series, row), made["time"][row]
    assert model.monitor(history).update(time, made.iloc[row]) == ()
    (event,) = model.monitor(history).update(time, {**made.iloc[row], "load": made["load"][row] + 20})
    assert (event.channel, event.direction) == ("surprise", "above")


def test_a_row_without_a_column_is_refused_and_changes_nothing(data):
    model, made = predictor_of(data), frame("a")
    monitor = model.monitor(until(data.cases()[0].series, 300))
    row = dict(made.iloc[300])
    for lacking in ("temperature", "holiday", "wind"):
        less = {name: value for name, value in row.items() if name != lacking}
        with pytest.raises(InvalidInputError, match=f"columns load, temperature, wind, holiday, of which {lacking} is"):
            monitor.update(row["time"], less)
    with pytest.raises(InvalidInputError, match="of which temperature, wind, holiday is missing"):
        monitor.update(row["time"], row["load"])
    with pytest.raises(InvalidInputError, match="the values of temperature are not numbers"):
        monitor.update(row["time"], {**row, "temperature": "warm"})
    with pytest.raises(InvalidInputError, match="1 times but 2 values of holiday"):
        monitor.update(row["time"], {**row, "holiday": ["", ""]})
    assert len(monitor.series) == 300
    monitor.update(row["time"], row)
    assert len(monitor.series) == 301


def test_a_known_column_without_a_value_is_refused_after_as_many_rows_as_in_a_file(data):
    """A known column must have a value somewhere in any 4 rows; the row is accepted once it has one."""
    model, series = predictor_of(data), data.cases()[0].series
    monitor = model.monitor(until(series, 301))
    for row in range(301, 304):
        times, columns = rows_of(series, row, row + 1)
        monitor.update(times, {**columns, "temperature": np.nan})
    times, columns = rows_of(series, 304, 305)
    with pytest.raises(InvalidInputError, match=r"'temperature' is known ahead of time .* has no value"):
        monitor.update(times, {**columns, "temperature": np.nan})
    assert len(monitor.series) == 304
    monitor.update(times, columns)
    assert len(monitor.series) == 305


def test_words_are_read_as_in_a_file(data, tmp_path):
    """Unknown and empty words, missing cells of pandas, and spaces around a word."""
    model, series = predictor_of(data), data.cases()[0].series
    cells = ["easter", " easter ", "carnival", None, np.nan, pd.NA, ""]
    words = series.words["holiday"].copy()
    words[300:307] = ["easter", "easter", "carnival", "", "", "", ""]
    monitor = model.monitor(until(series, 300))
    times, columns = rows_of(series, 300, 307)
    monitor.update(times, {**columns, "holiday": cells})
    (whole,) = model.predict([until(replace(series, words={"holiday": words}), 307)])
    np.testing.assert_allclose(monitor.scores, whole.scores[300:], atol=1e-4)
    assert monitor.series.words["holiday"][300:].tolist() == words[300:307].tolist()


def test_numbers_are_missing_in_each_notation_of_an_empty_cell(data):
    """As in a row of a DataFrame with nullable columns, or of csv.DictReader."""
    model, row = predictor_of(data), dict(frame("a").iloc[300])
    history = until(data.cases()[0].series, 300)
    nullable = pd.DataFrame([{**row, "wind": None, "load": 7}]).convert_dtypes().iloc[0]
    texts = {**{name: str(cell) for name, cell in row.items()}, "wind": " ", "load": "7"}
    for cells in (nullable, texts, {**row, "wind": pd.NA, "load": 7}, {**row, "wind": None, "load": True}):
        monitor = model.monitor(history)
        monitor.update(row["time"], cells)
        assert np.isnan(monitor.series.values["wind"][-1]) and monitor.series.target[-1] in (7, 1)
    with pytest.raises(InvalidInputError, match="the values of wind are not numbers"):
        model.monitor(history).update(row["time"], {**row, "wind": "calm"})
    with pytest.raises(InvalidInputError, match=r"the values of load have 1e\+300, which is too large to be a value"):
        model.monitor(history).update(row["time"], {**row, "load": 1e300})


def test_columns_that_are_empty_in_the_history_take_what_the_network_takes(data, tmp_path):
    """Without a value in the history, a column of numbers and one of words look alike."""
    model, made = predictor_of(data), frame("a").assign(wind="", holiday="")
    (item,) = table(written(tmp_path, made)).cases()
    monitor = model.monitor(until(item.series, 300))
    row = dict(frame("a").iloc[300])
    monitor.update(row["time"], {**row, "wind": 5.5, "holiday": "easter"})
    assert monitor.series.values["wind"][-1] == 5.5 and monitor.series.words["holiday"][-1] == "easter"


def test_histories_that_the_network_cannot_continue_are_refused(data):
    model, series = predictor_of(data), data.cases()[0].series
    with pytest.raises(InvalidInputError, match="a has no column 'holiday', which the network needs as a covariate"):
        model.monitor(replace(series, words={}))
    library = model.model.settings
    model.model.settings = replace(library, network={**library.network, "causal_attention": False})
    with pytest.raises(InvalidInputError, match="causal_attention=False: it forecasts a row from"):
        model.monitor(series)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, arrays: facts["vocabulary"].update(holiday=["easter"]),
        lambda facts, arrays: facts.update(vocabulary=None),
        lambda facts, arrays: facts.update(earlier={"load": float("nan")}),
        lambda facts, arrays: facts.update(earlier={"other": 1.0}),
        lambda facts, arrays: arrays.update(words0=arrays["words0"] - 5),
        lambda facts, arrays: arrays.update(words0=arrays["words0"][:9]),
    ],
)
def test_a_modified_state_with_words_is_refused(data, tmp_path, change):
    path: Path = tmp_path / "s.npz"
    model = predictor_of(data)
    model.monitor(data.cases()[0].series).save(path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop("facts").tobytes())
    change(facts, arrays)
    np.savez(path, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    with pytest.raises(InvalidInputError, match="not a complete state of a monitor"):
        model.monitor(path)
