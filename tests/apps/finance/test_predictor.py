"""From a file to a result, a picture and files; the app's components; the benchmark on real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from apps.finance.app import app
from apps.finance.datasets.labels import benchmark_windows, window_rows
from apps.finance.datasets.nab import Nab
from apps.finance.datasets.synth.markets import market
from apps.finance.inference.calibration import calibrate, from_manifest
from apps.finance.inference.detectors import CANDIDATES, DETECTORS
from apps.finance.inference.options import Options
from apps.finance.metrics.nab import PROFILES
from apps.finance.outputs.files import detector_csv
from apps.finance.outputs.series_csv import write_csv
from apps.finance.recipes import RECIPES, tiny
from apps.finance.service import FinanceCodec
from apps.finance.types import DAY_NS, LabelledSeries
from shared.data.registry import read_registry
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping, to_mapping
from tests.apps.finance.untrained import ask, decode, untrained

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]


predictor = pytest.fixture(scope="module")(untrained)


@pytest.fixture(scope="module")
def truth() -> LabelledSeries:
    return market(np.random.Generator(np.random.Philox(20)), length=1200)


@pytest.fixture
def file(tmp_path: Path, truth: LabelledSeries) -> Path:
    write_csv(tmp_path / "market.csv", truth.series)
    return tmp_path / "market.csv"


def test_a_file_becomes_events_a_picture_and_files(predictor, file):
    response = ask(predictor, Request(files=(file,)))
    assert response.result["series"]["rows"] == 1200 and response.result["series"]["column"] == "close"
    assert response.result["events"], "the pump is in every forecaster's reach"
    for event in response.result["events"]:
        assert event["start"] <= event["peak"] <= event["end"] and event["start"].endswith("Z")
        assert event["score"] >= 0.3 and event["low"] <= event["expected"] <= event["high"]
        assert event["direction"] in ("above", "below", "inside")
    assert response.picture.startswith(b"\x89PNG")
    viewer = json.loads(response.files["series.json"])
    assert {len(viewer[name]) for name in ("times", "values", "low", "median", "high", "score")} == {1200}
    events = response.files["events.csv"].decode().splitlines()
    assert events[0].startswith("start,end,peak,score,") and len(events) == 1 + len(response.result["events"])
    lines = response.files["scores.csv"].decode().splitlines()
    assert lines[0] == "timestamp,value,anomaly_score,label" and len(lines) == 1201


def test_the_same_request_gives_the_same_response_alone_and_in_a_batch(predictor, file):
    decoded = decode(predictor, Request(files=(file,)))
    volume_request = decode(predictor, Request(files=(file,), options={"value": "volume"}))
    codec = FinanceCodec(predictor)
    alone = codec.encode(decoded, predictor.predict(decoded.inputs, decoded.options))
    batched = codec.encode(decoded, predictor.predict([*volume_request.inputs, *decoded.inputs], decoded.options)[1:])
    assert alone.result == batched.result and alone.files == batched.files and alone.picture == batched.picture


def test_the_number_of_events_follows_the_budget(predictor, file):
    def count(**options: str) -> int:
        return len(ask(predictor, Request(files=(file,), options=options)).result["events"])

    # The rows are 5 minutes apart, so that 2.88 a day are 10 in 1,000 rows.
    assert count(events_per_1000_rows="10") == count(events_per_day="2.88") > count(events_per_1000_rows="0.5")


def test_more_events_than_the_limit_are_refused_from_python_too(predictor, truth):
    days = replace(truth.series, times_ns=np.arange(len(truth.series)) * DAY_NS, interval_ns=DAY_NS)
    for refused in (predictor.predict, lambda batch, options: predictor.monitor(batch[0], options)):
        with pytest.raises(InvalidInputError, match=r"at most 10 events in 1,000 rows, here 0\.01 a day"):
            refused([days], Options(events_per_day=5.0))


def test_parquet_and_csv_are_scored_alike(predictor, file, tmp_path):
    frame = pl.read_csv(file, try_parse_dates=True)
    frame.write_parquet(tmp_path / "market.parquet")
    from_csv = ask(predictor, Request(files=(file,))).result
    from_parquet = ask(predictor, Request(files=(tmp_path / "market.parquet",))).result
    assert from_csv["events"] == from_parquet["events"]


def test_a_lower_threshold_shows_no_fewer_events(predictor, file):
    def count(threshold: str) -> int:
        return len(ask(predictor, Request(files=(file,), options={"threshold": threshold})).result["events"])

    assert count("0.25") >= count("0.45") >= count("1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": "high"}, "threshold is 'high', not a number"),
        ({"threshold": "2"}, "give a number above 0 and at most 1"),
        ({"threshold": "0.3", "events_per_day": "1"}, "events_per_day and threshold both say"),
        ({"events_per_day": "often"}, "events_per_day is 'often', not a number"),
        ({"events_per_1000_rows": "-1"}, "events_per_1000_rows is -1; give a number above 0"),
        ({"events_per_1000_rows": "200"}, "one event every 5 rows; ask for at most 10 events in 1,000"),
        ({"value": "bid"}, "no column of numbers called 'bid'"),
        ({"colour": "red"}, "unknown option colour"),
    ],
)
def test_invalid_options_are_refused(predictor, file, options, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        decode(predictor, Request(files=(file,), options=options))


def test_too_little_and_too_much_are_refused(predictor, file, tmp_path):
    short = tmp_path / "short.csv"
    short.write_text("\n".join(file.read_text().splitlines()[:30]))
    with pytest.raises(InvalidInputError, match="29 values in column 'close'; scoring needs at least 60"):
        decode(predictor, Request(files=(short,)))
    with pytest.raises(InvalidInputError, match="not 2 files"):
        decode(predictor, Request(files=(file, short)))
    (tmp_path / "a.xls").write_bytes(b"PK")
    with pytest.raises(InvalidInputError, match=r"a\.xls is not a CSV, Parquet or XLSX file"):
        decode(predictor, Request(files=(tmp_path / "a.xls",)))


def test_constant_and_gappy_series_are_scored_without_an_event(predictor, tmp_path):
    lines = ["timestamp,value"]
    lines += [f"{1_700_000_000 + 300 * row},{'' if row % 9 == 0 else 7}" for row in range(400)]
    (tmp_path / "flat.csv").write_text("\n".join(lines))
    response = ask(predictor, Request(files=(tmp_path / "flat.csv",)))
    assert response.result["series"]["missing"] == 45
    assert response.result["events"] == []


def test_recipes_survive_the_round_trip_through_json():
    for make in RECIPES.values():
        recipe = make()
        assert from_mapping(recipe, to_mapping(recipe)) == recipe
        assert recipe.data.fingerprint()["synthetic"] is True


def test_calibration_has_every_channel_and_survives_the_manifest():
    recipe = tiny()
    torch.manual_seed(0)
    found = calibrate(recipe.data, recipe.model.build(recipe.input).eval(), max_series=2)
    manifest = json.loads(json.dumps(found))
    calibration = from_manifest(manifest)
    assert set(calibration.prior) == {*DETECTORS, *CANDIDATES} and 0 < calibration.threshold <= 1
    assert found["synthetic"]["false_events_per_1000_rows"] <= calibration.events_per_1000_rows == 0.6
    pairs = [*map(tuple, calibration.budgets), (0.6, calibration.threshold)]
    rates, starts = zip(*sorted(pairs), strict=True)
    assert len(rates) == 8 and list(starts) == sorted(starts, reverse=True)


def test_benchmark_windows_surround_the_anomalies(truth):
    windows = benchmark_windows(truth)
    starts = window_rows(truth.series.times_ns, truth.windows)[:, 0]
    assert len(windows) == 4 and (windows[1:, 0] > windows[:-1, 1]).all()
    assert all(first <= start <= last for (first, last), start in zip(windows, starts, strict=True))


def test_the_samples_are_available_and_the_synthetic_one_is_marked(tmp_path, monkeypatch):
    monkeypatch.delenv("TRIVIUM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (only,) = app.samples()
    assert only.synthetic
    (sample_file,) = only.files(tmp_path)
    assert sample_file.read_text().startswith("timestamp,open,high,low,close,volume,synthetic_truth")


@pytest.mark.realdata
def test_real_samples_and_the_benchmarks_files(data_root):
    entries = read_registry(app.data_registry)
    for name in ("nab", "btc_perp", "yfinance_repair"):
        assert entries[name].verify() == []
    assert {sample.name for sample in app.samples()} >= {"synthetic_market", "twitter_aapl", "btc_perp"}
    benchmark = Nab(root=data_root / "finance" / "nab")
    names = benchmark.names()
    assert len(names) == 45
    item = benchmark.read("realTraffic/speed_7578.csv")
    rows = window_rows(item.series.times_ns, item.windows)
    assert rows.shape == (4, 2)
    assert [int(item.series.times_ns[row]) for row in rows[:, 0]] == [window.start_ns for window in item.windows]
    assert [int(item.series.times_ns[row]) for row in rows[:, 1]] == [window.end_ns for window in item.windows]
    text = detector_csv(item.series, np.zeros(len(item.series)), item.windows)
    assert text.splitlines()[1].startswith("2015-09-08 11:39:00,73.0,0,0")


@pytest.mark.realdata
def test_the_profiles_equal_those_of_the_benchmark(data_root):
    published = json.loads((data_root / "finance/nab/config/profiles.json").read_text())
    for profile in PROFILES:
        costs = published[profile.name]["CostMatrix"]
        assert (profile.true_positive, profile.false_negative, profile.false_positive) == (
            costs["tpWeight"],
            costs["fnWeight"],
            costs["fpWeight"],
        )
