"""Results for files of several series, for large numbers and for a synthetic series; limits on the input."""

from __future__ import annotations

import csv
import io
import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.finance import predictor as predicting
from apps.finance import service
from apps.finance.app import app
from apps.finance.datasets.synth.markets import market
from apps.finance.inference.detectors import DETECTORS
from apps.finance.outputs.files import detector_csv, scores_csv, series_json
from apps.finance.outputs.rows_file import has_rows_file, rows_file
from apps.finance.outputs.scored_rows import read_scored_rows, scored_rows
from apps.finance.outputs.series_csv import write_csv
from apps.finance.outputs.several import several_scores_csv
from apps.finance.predictor import FinancePredictor
from apps.finance.service import FinanceCodec
from apps.finance.types import Anomaly, Detection, Forecast, Series, iso_utc
from shared.deploy.predictor import Request, Response, answer
from shared.errors import InvalidInputError
from shared.progress import progress_listener
from tests.apps.finance.untrained import ask, decode, untrained

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
ROWS = 300


predictor = pytest.fixture(scope="module")(untrained)


def walk(seed: int, level: float = 100.0) -> np.ndarray:
    noise = np.random.Generator(np.random.Philox(seed)).normal(0, 0.01, ROWS)
    prices = level * np.exp(np.cumsum(noise))
    prices[200:] *= 1.5
    return np.round(prices, 2)


def several(folder: Path) -> Path:
    names = ["0700", "600519", 'A "B", C', "$a$b"]
    rows = [["time", "ticker", "close", "volume"]]
    for row in range(ROWS):
        for place, name in enumerate(names):
            rows.append([f"{1_700_000_000 + 300 * row}", name, f"{walk(place)[row]}", str(1000 + row % 7)])
    rows += [["1700000000", "young", "1", "1"], ["1700000300", "young", "2", "1"]]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (folder / "several.csv").write_text(text.getvalue(), encoding="utf-8")
    return folder / "several.csv"


@pytest.fixture(scope="module")
def answered(predictor: FinancePredictor, tmp_path_factory: pytest.TempPathFactory) -> Response:
    return ask(predictor, Request(files=(several(tmp_path_factory.mktemp("several")),)))


def test_a_series_that_ends_before_the_others_is_noted(predictor, tmp_path):
    rows = [f"{1_700_000_000 + 300 * row},{name},{row % 7}" for row in range(ROWS) for name in "AB"]
    lines = ["time,ticker,close", *(row for row in rows if ",B," not in row or int(row.split(",")[0]) < 1_700_060_000)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    context = decode(predictor, Request(files=(tmp_path / "a.csv",))).context
    assert isinstance(context, service.FileContext)
    note = "1 series ends while others continue until 2023-11-15T23:08:20Z: 'B' at 2023-11-15T14:48:20Z"
    assert note in context.notes
    (tmp_path / "a.csv").write_text("\n".join(["time,ticker,close", *rows]) + "\n")
    context = decode(predictor, Request(files=(tmp_path / "a.csv",))).context
    assert isinstance(context, service.FileContext) and not any("others continue" in note for note in context.notes)


def test_several_series_are_scored_one_by_one_and_keep_their_names(answered):
    result = answered.result
    names = ["0700", "600519", 'A "B", C', "$a$b"]
    assert [part["name"] for part in result["parts"]] == names
    assert {event["series"] for event in result["events"]} == set(names)
    assert {event["channel"] for event in result["events"]} <= {detector.channel for detector in DETECTORS.values()}
    assert [part["events"] for part in result["parts"]] == [
        sum(event["series"] == name for event in result["events"]) for name in names
    ]
    assert result["series"]["rows"] == 4 * ROWS and result["series"]["series_column"] == "ticker"
    assert "1 series with fewer than 60 values was left out (young)" in result["series"]["notes"]
    drawn = json.loads(answered.files["series.json"])["parts"]
    assert [part["name"] for part in drawn] == names and drawn[1]["values"] == walk(1).tolist()
    lines = list(csv.reader(io.StringIO(answered.files["scores.csv"].decode())))
    assert lines[0] == ["series", "timestamp", "value", "anomaly_score", "label"] and len(lines) == 1 + 4 * ROWS
    assert lines[1 + 2 * ROWS][:3] == ['A "B", C', "2023-11-14 22:13:20", str(walk(2)[0])]
    assert answered.picture.startswith(b"\x89PNG")
    events = list(csv.DictReader(io.StringIO(answered.files["events.csv"].decode())))
    assert len(events) == len(result["events"]) and {event["series"] for event in events} == set(names)


def test_names_in_csv_outputs_are_never_spreadsheet_formulas(predictor, tmp_path):
    expected_cells = {
        '=HYPERLINK("http://a")': '\'=HYPERLINK("http://a")',
        "-5Y": "'-5Y",
        "A;=1+1": "A;'=1+1",
        "-5": "-5",
        "BRK-B": "BRK-B",
    }
    rows = [["time", "ticker", "close"]]
    rows += [[str(1_700_000_000 + 300 * n), name, str(walk(0)[n])] for name in expected_cells for n in range(ROWS)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    response = ask(predictor, Request(files=(tmp_path / "a.csv",)))
    assert [part["name"] for part in response.result["parts"]] == list(expected_cells)
    for name in ("events.csv", "scores.csv"):
        table = list(csv.DictReader(io.StringIO(response.files[name].decode())))
        assert {row["series"] for row in table} == set(expected_cells.values())
    assert {row["value"] for row in table} == {str(value) for value in walk(0)}


def test_events_csv_lists_the_events(predictor, tmp_path):
    response = ask(predictor, Request(files=(several(tmp_path),), options={"instrument": "600519"}))
    rows = list(csv.DictReader(io.StringIO(response.files["events.csv"].decode())))
    assert rows and len(rows) == len(response.result["events"])
    for row, event in zip(rows, response.result["events"], strict=True):
        assert {name: row[name] for name in ("start", "end", "peak", "direction", "channel")} == {
            name: event[name] for name in ("start", "end", "peak", "direction", "channel")
        }
        assert [float(row[name]) for name in ("score", "observed", "low", "high")] == [
            event[name] for name in ("score", "observed", "low", "high")
        ]
        assert row["note"] == event.get("note", "") and row["series"] == "600519"
        assert (row["size"], row["deviations"]) == (str(event["size"]), str(event["deviations"]))
        assert (
            row["reason"] == event["reason"] and f"{abs(event['deviations']):,.1f} robust deviations" in row["reason"]
        )


def test_a_series_scores_the_same_alone_and_among_others(predictor, answered, tmp_path):
    request = Request(files=(several(tmp_path),), options={"instrument": "600519"})
    alone = ask(predictor, request).result
    assert alone["series"]["notes"][0] == "the file holds 5 series, identified by column 'ticker'"
    assert "only series '600519' was scored" in alone["series"]["notes"]
    assert alone["events"] == [event for event in answered.result["events"] if event["series"] == "600519"]
    with pytest.raises(InvalidInputError, match="no series '700'; it has 0700, 600519"):
        decode(predictor, Request(files=(several(tmp_path),), options={"instrument": "700"}))


def test_output_values_equal_input_values(predictor, tmp_path):
    values = walk(5) + 123_456_700
    values[250] = 123_456_789.12
    lines = [f"{1_700_000_000 + 300 * row}.5,{value!r}" for row, value in enumerate(values.tolist())]
    (tmp_path / "a.csv").write_text("timestamp,value\n" + "\n".join(lines))
    response = answer(
        predictor, Request(files=(tmp_path / "a.csv",), options={"threshold": "0.1"}), FinanceCodec(predictor)
    )
    assert json.loads(response.files["series.json"])["values"][250] == 123_456_789.12
    observed = {event["observed"] for event in response.result["events"]}
    assert observed and observed <= set(values.tolist())
    for event in response.result["events"]:
        assert event["low"] <= event["expected"] <= event["high"]
    rows = response.files["scores.csv"].decode().splitlines()
    assert rows[251].startswith("2023-11-15 19:03:20.5,123456789.12,")


def test_a_prediction_uses_one_thread_and_keeps_the_limits_of_other_threads(predictor, tmp_path, monkeypatch):
    decoded = decode(predictor, Request(files=(several(tmp_path),)))
    thread_counts: list[int] = []

    def forecasting(*arguments: object, **options: object) -> Iterator[object]:
        for forecast in real(*arguments, **options):  # type: ignore[arg-type]
            thread = threading.Thread(target=lambda: thread_counts.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            thread_counts.append(torch.get_num_threads())
            yield forecast

    real = predicting.forecast_each
    monkeypatch.setattr(predicting, "forecast_each", forecasting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predictor.predict(decoded.inputs)
        assert thread_counts == [2, 1] * 4 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_progress_names_the_series_being_forecast(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("apps.finance.inference.forecasting.CPU_BATCH", 16)
    inputs = decode(predictor, Request(files=(several(tmp_path),))).inputs[:2]
    stages: list[str] = []
    with progress_listener(stages.append):
        predictor.predict(inputs)
    assert stages[0] == "series 1 of 2" and {stage[:13] for stage in stages} <= {"series 1 of 2", "series 2 of 2"}
    assert any(stage.startswith("series 2 of 2, forecasting, part 1 of ") for stage in stages)


def test_more_rows_than_fit_the_request_timeout_are_refused_at_once(predictor, tmp_path):
    path, seconds = several(tmp_path), 1000 / service.ROWS_PER_SECOND
    sentence = r"has 1200 rows, and only 1000 can be scored within the request's timeout of 0.4 s; send it as a job"
    with pytest.raises(InvalidInputError, match=sentence) as raised:
        decode(predictor, Request(files=(path,), seconds=seconds))
    assert raised.value.status == 413
    assert len(decode(predictor, Request(files=(path,))).inputs) == 4
    assert len(decode(predictor, Request(files=(path,), options={"instrument": "0700"}, seconds=seconds)).inputs) == 1


def test_only_the_synthetic_sample_has_synthetic_truth(predictor, tmp_path):
    (sample,) = (sample for sample in app.samples() if sample.synthetic)
    (file,) = sample.files(tmp_path)
    result = ask(predictor, Request(files=(file,))).result
    generated = market(np.random.Generator(np.random.Philox(20)))
    assert result["synthetic_truth"] == [
        {"start": iso_utc(window.start_ns), "end": iso_utc(window.end_ns), "kind": window.kind}
        for window in generated.windows
    ]
    assert result["series"]["columns"] == ["open", "high", "low", "close", "volume"]
    write_csv(file, generated.series)
    without = ask(predictor, Request(files=(file,))).result
    assert "synthetic_truth" not in without and without["events"] == result["events"]


@pytest.mark.parametrize("label", ["收盘", "Close ($US$)", "_x", "a\\b^"])
def test_names_of_all_kinds_can_be_drawn(predictor, tmp_path, label):
    lines = [f'{1_700_000_000 + 300 * row},"{value}"' for row, value in enumerate(walk(6).tolist())]
    (tmp_path / "$贵州$.csv").write_text(f"timestamp,{label}\n" + "\n".join(lines), encoding="utf-8")
    response = ask(predictor, Request(files=(tmp_path / "$贵州$.csv",)))
    assert response.picture.startswith(b"\x89PNG") and response.result["series"]["column"] == label


def test_rows_bin_has_every_row_of_a_thinned_series():
    rng = np.random.default_rng(0)
    lengths, parts = (700, 300), []
    for length in lengths:
        times = (1_700_000_000 + 60 * np.arange(length)) * 10**9
        values = rng.normal(size=length)
        values[7] = np.nan
        series = Series(name="a", times_ns=times, values={"x": values}, column="x", interval_ns=60 * 10**9)
        forecast = Forecast(levels=(0.1, 0.5, 0.9), quantiles=rng.normal(size=(length, 3)), surprise=values[:, None])
        scores = rng.uniform(size=length)
        parts.append(Detection(series=series, forecast=forecast, scores=scores, thresholds=scores / 2, anomalies=()))
    assert not has_rows_file(parts, max_points=700) and has_rows_file(parts, max_points=699)
    content = rows_file(parts)
    assert len(content) == 40 * sum(lengths)
    second = content[40 * lengths[0] :]
    wide = np.frombuffer(second[: 24 * lengths[1]], "<f8").reshape(3, -1)
    np.testing.assert_array_equal(wide, [parts[1].series.times_ns / 1e9, parts[1].series.target, parts[1].thresholds])
    narrow = np.frombuffer(second[24 * lengths[1] :], "<f4").reshape(4, -1)
    expected = [*parts[1].forecast.quantiles.T, parts[1].scores]
    np.testing.assert_array_equal(narrow, np.array(expected, np.float32))


def test_files_made_later_from_scored_rows_are_identical():
    rng = np.random.default_rng(1)
    times = (1_700_000_000 + 60 * np.arange(300)) * 10**9
    values = rng.normal(size=300)
    values[7] = np.nan
    series = Series(name="a", times_ns=times, values={"y": values, "x": -values}, column="x", interval_ns=60 * 10**9)
    forecast = Forecast(
        levels=(0.02, 0.1, 0.5, 0.9, 0.98), quantiles=rng.normal(size=(300, 5)), surprise=values[:, None]
    )
    scores = rng.uniform(size=300)
    anomaly = Anomaly(
        start_ns=int(times[20]), end_ns=int(times[25]), peak_ns=int(times[22]), score=0.5, observed=np.nan,
        expected=0.0, low=-1.0, high=1.0, direction="above", channel="level", columns=("x",),
    )  # fmt: skip
    detection = Detection(series=series, forecast=forecast, scores=scores, thresholds=scores / 2, anomalies=(anomaly,))
    (found,), name, several = read_scored_rows(scored_rows([detection], "a.csv", several=False))
    assert (name, several, repr(found)) == ("a.csv", False, repr(detection))
    assert series_json(found) == series_json(detection) and scores_csv(found) == scores_csv(detection)
    assert rows_file([found]) == rows_file([detection])


def test_the_times_of_scores_csv_have_as_many_decimals_as_they_need_also_before_1970():
    times = np.array([-1_500_000_000, 0, 1_000_000_001, 1_388_534_400_123_000_000])
    series = Series(name="a", times_ns=times, values={"x": np.arange(4.0)}, column="x", interval_ns=10**9)
    moments = [line.split(",")[0] for line in detector_csv(series, np.zeros(4)).splitlines()[1:]]
    assert moments == [iso_utc(int(time)).replace("T", " ").removesuffix("Z") for time in times]
    assert moments[2:] == ["1970-01-01 00:00:01.000000001", "2014-01-01 00:00:00.123"]


def test_scores_csv_takes_little_more_memory_than_its_content(monkeypatch):
    monkeypatch.setattr("apps.finance.outputs.files._ROWS_PER_PART", 200, raising=False)

    def scored(name: str, rows: int) -> Detection:
        times, numbers = np.arange(rows) * 10**9, np.random.default_rng(0).normal(size=rows)
        series = Series(name=name, times_ns=times, values={"x": numbers}, column="x", interval_ns=10**9)
        forecast = Forecast(levels=(0.5,), quantiles=np.empty((rows, 1)), surprise=np.empty((rows, 0)))
        return Detection(series=series, forecast=forecast, scores=numbers, thresholds=numbers, anomalies=())

    columns = [scored(f'c"{number}"\n', 2500) for number in range(4)]
    tracemalloc.start()
    single = scores_csv(scored("a", 10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    several = several_scores_csv(columns)
    peak = max(peak, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peak < 5 * len(single)
    rows = list(csv.reader(io.StringIO(several.decode(), newline="")))
    assert len(rows) == 10_001 and rows[2501] == ['c"1"\n', *rows[1][1:]]
    assert single.decode().splitlines()[:2501] == [",".join(row[1:]) for row in rows[:2501]]


def test_the_notes_of_a_wide_file_mention_columns_all(predictor, tmp_path):
    names = [f"T{number:03d}" for number in range(30)]
    rows = [f"2024-01-{day:02d}," + ",".join(str(100 + day + n) for n in range(30)) for day in range(1, 32)]
    rows += [row.replace("2024-01", "2024-03") for row in rows]
    (tmp_path / "a.csv").write_text("\n".join(["date," + ",".join(names), *rows]) + "\n")
    decoded = decode(predictor, Request(files=(tmp_path / "a.csv",)))
    assert (
        decoded.context.notes[-1] == "the option columns=all scores each of the 30 columns, and how they move together"
    )
