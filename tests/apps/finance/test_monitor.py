"""A monitor's results equal those of a prediction on the whole series so far; it reports each event once."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import trivium
from apps.finance.datasets.nab import Nab
from apps.finance.datasets.synth import markets
from apps.finance.inference.options import Options
from apps.finance.inference.scoring import Calibration
from apps.finance.outputs.series_csv import write_csv
from apps.finance.types import DAY_NS, MINUTE_NS, Series, usual_interval_ns
from shared.errors import InvalidInputError
from tests.apps.finance.following import assert_as_in_the_part, assert_as_in_the_whole
from tests.apps.finance.untrained import untrained

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
BEGAN_NS = 1_500_000_000 * 10**9


def of(times: np.ndarray, values: dict[str, np.ndarray], **facts: bool) -> Series:
    column = next(iter(values))
    return Series(name="s", times_ns=times, values=values, column=column, interval_ns=usual_interval_ns(times), **facts)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "begin", "options"),
    [
        ("realTweets/Twitter_volume_AAPL.csv", 13_000, Options()),
        ("realAWSCloudwatch/ec2_cpu_utilization_5f5533.csv", 900, Options(events_per_day=1.0)),
        ("realTraffic/speed_7578.csv", 100, Options(events_per_1000_rows=5.0)),
    ],
)
def test_monitoring_nab_row_by_row_equals_predicting_the_whole_file(data_root, tmp_path, name, begin, options):
    model = trivium.load("finance", device="cpu").predictor
    series = Nab(root=data_root / "finance" / "nab").read(name).series
    monitor, events = assert_as_in_the_whole(model, series, begin, options, tmp_path, 0)
    assert len(monitor.series) < 10_240 + 300 and len(events) > 1
    assert_as_in_the_part(model, series, options, *events[-1])


def remembering(memory: int):
    """A predictor whose detectors look back fewer rows, so that a monitor drops rows early."""
    model = untrained()
    model.calibration = Calibration(threshold=0.3, memory=memory)
    return model


@pytest.mark.parametrize(
    ("shape", "unseen", "options"),
    [
        ("bursts", 40, Options(threshold=0.4)),
        ("counts", 600, Options(events_per_day=2.0)),
    ],
)
def test_monitoring_irregular_series_with_gaps_equals_predicting_the_whole(tmp_path, shape, unseen, options):
    length, generator = 8000, np.random.Generator(np.random.Philox(7))
    steps = np.where(np.arange(length) < 4000, MINUTE_NS, 12 * MINUTE_NS)
    steps = steps * np.where(generator.uniform(size=length) < 0.02, generator.integers(1, 60, length), 1)
    values = markets.series(generator, length=length, shape=shape, anomalies=8).series.target.copy()
    values[generator.uniform(size=length) < 0.03] = np.nan
    values[:unseen] = values[5000:5400] = np.nan
    series, model = of(BEGAN_NS + np.cumsum(steps), {"v": values}), remembering(1500)
    monitor, events = assert_as_in_the_whole(model, series, 700, options, tmp_path, 1, steps=(3, 300, 700))
    assert len(monitor.series) < 7500, "rows are forgotten"
    assert "gap" in {event.channel for _, event in events} and len(events) > 3
    assert_as_in_the_part(model, series, options, *events[-1])


def test_very_small_values_after_a_history_of_zeros_are_followed_too(tmp_path):
    """As a token's price in bitcoin, before whose first trade a vendor wrote 0; old rows are dropped on the way."""
    generator, rows = np.random.default_rng(2), np.arange(4000)
    values = 3e-10 * np.exp(np.cumsum(generator.normal(size=len(rows))) * 1e-3)
    values[:300], values[3500] = 0, values[3500] * 1.05
    series, model = of(BEGAN_NS + rows * MINUTE_NS, {"v": values}), remembering(700)
    _, events = assert_as_in_the_whole(model, series, 200, Options(), tmp_path, 4, steps=(1, 64, 300))
    assert series.times_ns[3500] in {event.start_ns for _, event in events}
    (same,) = model.predict([replace(series, values={"v": values * 2.0**40})])
    (whole,) = model.predict([series])
    np.testing.assert_allclose(whole.scores, same.scores, atol=1e-3)
    assert [event.start_ns for event in whole.anomalies] == [event.start_ns for event in same.anomalies]


def test_the_same_time_two_weeks_before_is_kept_longer_than_detectors_look_back(tmp_path):
    generator, rows = np.random.default_rng(3), np.arange(15_000)
    week = np.where(rows // 480 % 7 < 5, 20, 2) * np.sin(2 * np.pi * rows / 480)
    values = 100 + week + generator.normal(size=len(rows))
    values[14_000:14_020] = 100
    series, model = of(BEGAN_NS + rows * 3 * MINUTE_NS, {"v": values}), remembering(1500)
    monitor, events = assert_as_in_the_whole(model, series, 11_000, Options(), tmp_path, 2, steps=(300, 700))
    assert 7200 <= len(monitor.series) < 9500 and events


def test_columns_that_are_scored_jointly_are_followed_too(tmp_path):
    generator = np.random.default_rng(0)
    together = generator.normal(size=8000).cumsum()
    values = {f"c{place}": together + 0.5 * generator.normal(size=8000).cumsum() for place in range(4)}
    values["c2"][7000:] += np.minimum(np.arange(1000), 20) * 3
    series, model = of(BEGAN_NS + np.arange(8000) * MINUTE_NS, values, joint=True), remembering(1500)
    _, events = assert_as_in_the_whole(model, series, 3000, Options(), tmp_path, 3, steps=(300, 700))
    assert any(event.columns[:1] == ("c2",) for _, event in events)


def test_splits_are_reported_if_rows_have_price_and_volume(tmp_path):
    generator = np.random.default_rng(0)
    close, volume = 100 * np.exp(np.cumsum(generator.normal(size=2000)) * 0.01), np.full(2000, 1e6)
    close[1500:] /= 4
    volume[1500:] *= 4
    close[1800] *= 1.25
    series = of(BEGAN_NS + np.arange(2000) * DAY_NS, {"close": close, "volume": volume})
    _, events = assert_as_in_the_whole(untrained(), series, 1000, Options(), tmp_path, 4)
    assert [event.note for _, event in events if event.channel == "corporate_action"] == ["4-for-1 split"]


def quiet(rows: int) -> Series:
    return of(BEGAN_NS + np.arange(rows) * MINUTE_NS, {"v": np.random.default_rng(1).normal(size=rows)})


@pytest.mark.parametrize("begin", range(65, 76))
def test_a_monitor_may_begin_with_any_number_of_rows(tmp_path, begin):
    """Also with so few that some detectors cannot score a row yet."""
    assert_as_in_the_whole(untrained(), quiet(400), begin, Options(), tmp_path, 0, steps=(300,))


def test_repeated_rows_are_ignored_and_no_event_is_reported_twice(tmp_path):
    monitor = untrained().monitor(quiet(800))
    next_ns = BEGAN_NS + 800 * MINUTE_NS
    assert monitor.update(quiet(800).times_ns, quiet(800).target) == () and len(monitor.scores) == 0
    (event,) = monitor.update(next_ns, 40.0)
    assert (event.start_ns, event.direction) == (next_ns, "above") and monitor.scores[0] > monitor.thresholds[0]
    assert monitor.update([next_ns - MINUTE_NS, next_ns, next_ns + MINUTE_NS], [0.1, 40.0, 40.0]) == ()
    monitor.save(tmp_path / "s.npz")
    restored = untrained().monitor(tmp_path / "s.npz")
    assert restored.update([next_ns, next_ns + 2 * MINUTE_NS], [40.0, 40.0]) == ()


@pytest.mark.parametrize(
    "time",
    [
        BEGAN_NS + 800 * MINUTE_NS,
        np.datetime64(BEGAN_NS + 800 * MINUTE_NS, "ns"),
        pd.Timestamp(BEGAN_NS + 800 * MINUTE_NS, tz="UTC").tz_convert("Asia/Tokyo"),
        pd.DatetimeIndex([pd.Timestamp(BEGAN_NS + 800 * MINUTE_NS, tz="UTC")]).tz_convert("Asia/Tokyo"),
        "2017-07-14T16:00:00Z",
        "2017-07-14 16:00",
    ],
)
def test_times_of_any_kind_are_read(time):
    monitor = untrained().monitor(quiet(800))
    monitor.update(time, [0.0])
    assert monitor.series.times_ns[-1] == BEGAN_NS + 800 * MINUTE_NS


def test_rows_of_a_data_frame_are_accepted():
    series = quiet(800)
    monitor = untrained().monitor(replace(series, values={**series.values, "volume": np.ones(800)}))
    times = pd.to_datetime(BEGAN_NS + np.arange(800, 804) * MINUTE_NS)
    frame = pd.DataFrame({"v": [0.1, 0.2, 0.3, 0.4], "volume": 7, "time": times})
    monitor.update(frame["time"][:2], frame[:2])
    monitor.update(frame["time"][2], frame.iloc[2])  # one row, as a pandas Series
    monitor.update(times[3:], {"v": frame["v"][3:], "volume": frame["volume"][3:]})
    assert monitor.series.values["v"][-5:].tolist() == [series.target[-1], 0.1, 0.2, 0.3, 0.4]
    assert monitor.series.values["volume"][-5:].tolist() == [1, 7, 7, 7, 7]
    alone = untrained().monitor(series)
    alone.update(frame["time"], frame["v"])
    assert alone.series.target[-4:].tolist() == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("history", [pd.DataFrame({"v": [1.0]}), pd.Series([1.0]), [quiet(100)], "history.csv"])
def test_a_monitor_refuses_anything_but_a_series_or_a_state(history):
    with pytest.raises(InvalidInputError, match=r"model\.read\(FILE\)"):
        untrained().monitor(history)


@pytest.mark.parametrize(
    ("times", "values", "sentence"),
    [
        (1_500_048_000, 1.0, "multiply seconds by"),
        (1_500_048_000.5, 1.0, "is not exact"),
        ("soon", 1.0, "cannot be read"),
        ([pd.NaT], [1.0], "has no time"),
        (["2020-01-02", "2020-01-01"], [1.0, 2.0], "must increase"),
        (["2020-01-01", "2020-01-02"], [1.0], "2 times but 1 values of v"),
        ("13.01.2020 10:00", 1.0, "'13.01.2020 10:00' does not say which number is the day; write it as 2026-01-05T10"),
        (["2020-01-01", "01/02/20"], [1.0, 1.0], "'01/02/20' does not say which number is the day"),
        ("yesterday", 1.0, "write them as 2026-01-05T10:00:00Z, or pass pandas Timestamps"),
        ("2020-01-01", "much", "are not numbers.*pass numbers, NaN where missing"),
        ("2020-01-01", {"w": 1.0}, "the columns v, of which v is missing"),
        (["2017-07-15", "2071-07-15"], [1.0, 1.0], "2071-07-15.*19,7.* days after the one before; correct its time"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_and_change_nothing(times, values, sentence):
    monitor = untrained().monitor(quiet(100))
    with pytest.raises(InvalidInputError, match=sentence):
        monitor.update(times, values)
    assert len(monitor.series) == 100


def _changed(path: Path, change) -> None:
    """Rewrites the state with its text and arrays modified by ``change``."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop("facts").tobytes())
    change(facts, arrays)
    np.savez(path, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, arrays: facts.update(rate="x"),
        lambda facts, arrays: facts.update(before=10**400),
        lambda facts, arrays: facts.update(due=float("nan")),
        lambda facts, arrays: facts["pauses"].update(lengths=None),
        lambda facts, arrays: facts["series"].update(column="another"),
        lambda facts, arrays: facts.update(options=None),
        lambda facts, arrays: arrays.update(times=arrays["times"][:10]),
        lambda facts, arrays: arrays.update(times=arrays["times"][::-1]),
        lambda facts, arrays: arrays.update(factor=arrays["factor"].astype(str)),
        lambda facts, arrays: arrays.update(column0=np.full(len(arrays["times"]), np.inf)),
        lambda facts, arrays: arrays.update(carried1=arrays["carried1"][:3]),
    ],
)
def test_a_modified_state_is_refused_when_it_is_loaded(tmp_path, change):
    path = tmp_path / "s.npz"
    untrained().monitor(quiet(100)).save(path)
    _changed(path, change)
    with pytest.raises(InvalidInputError, match=r"not a complete state of a monitor|lacks a monitor's options"):
        untrained().monitor(path)


def test_invalid_and_compressed_states_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    untrained().monitor(quiet(100)).save(path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez_compressed(path, **arrays)
    contents = [path.read_bytes(), b"", b"\x93NUMPY\x01\x00\x76\x00" + b"{" * 200]
    for text in (b"[" * 200_000, b'"x"', b"1"):
        np.savez(path, **{**arrays, "facts": np.frombuffer(text, np.uint8)})
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="not a complete state of a monitor"):
            untrained().monitor(path)


def test_a_state_that_the_former_version_saved_is_continued_as_the_whole(tmp_path):
    """The file has the first 100 rows of ``quiet``, with the format of before monitors took words."""
    shipped = Path(__file__).parents[2] / "data" / "finance" / "monitor_format_1.npz"
    options, series = Options(events_per_day=2.0), quiet(900)
    monitor = untrained().monitor(shipped)
    assert monitor.options == options and len(monitor.series) == 100
    (whole,) = untrained().predict([series], options)
    events = monitor.update(series.times_ns, series.values)
    np.testing.assert_allclose(monitor.scores, whole.scores[100:], atol=1e-9)
    np.testing.assert_allclose(monitor.thresholds, whole.thresholds[100:], atol=1e-9)
    later = {event.start_ns for event in whole.anomalies if event.start_ns >= series.times_ns[100]}
    assert {event.start_ns for event in events} == later and len(later) > 1
    monitor.save(tmp_path / "s.npz")
    assert untrained().monitor(tmp_path / "s.npz").update(series.times_ns, series.values) == ()


def test_a_state_is_refused_if_the_model_or_the_options_differ_or_it_is_damaged(tmp_path):
    path = tmp_path / "s.npz"
    monitor = untrained().monitor(quiet(100), Options(events_per_day=0.5))
    monitor.save(path)
    assert untrained().monitor(path, Options(events_per_day=0.5)).options == Options(events_per_day=0.5)
    with pytest.raises(InvalidInputError, match="a model or calibration other than untrained"):
        untrained(threshold=0.5).monitor(path)
    with pytest.raises(InvalidInputError, match="leave the options out"):
        untrained().monitor(path, Options(events_per_day=2.0))
    path.write_bytes(path.read_bytes()[:2000])
    for broken in (path, tmp_path / "nowhere.npz"):
        with pytest.raises(InvalidInputError, match="not a complete state of a monitor"):
            untrained().monitor(broken)
    with pytest.raises(InvalidInputError, match="65 rows of history"):
        untrained().monitor(quiet(64))
    with pytest.raises(InvalidInputError, match="one monitor for each instrument"):
        untrained().monitor([quiet(100)])


def examples() -> list[str]:
    """The Python examples in the section "Live monitoring" of the documentation."""
    page = (Path(__file__).parents[3] / "docs" / "finance.md").read_text(encoding="utf-8")
    section = page.partition("## Live monitoring")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def ran(code: str, folder: Path) -> str:
    """The output of a program that is run in this folder."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()


def test_the_example_follows_instruments_through_a_restart(tmp_path):
    days = np.datetime_as_string(np.datetime64("2026-01-01") + np.arange(106) * np.timedelta64(1, "h"), unit="s")
    values = 100 + np.random.default_rng(0).normal(size=106)
    rows = [f"{day},{name},{value:.3f},90" for day, value in zip(days, values, strict=True) for name in ("ACME", "B")]
    (tmp_path / "history.csv").write_text("\n".join(["time,ticker,close,volume", *rows]) + "\n")
    code = examples()[0].replace('"close": 101.5', '"close": 500.0')
    assert re.match(
        r"ACME 17676072\d+ a value above all earlier values: \+[\d.]+ from the expected", ran(code, tmp_path)
    )
    assert ran(code, tmp_path) == ""
    assert {path.name for path in (tmp_path / "monitors").iterdir()} == {"ACME.npz", "B.npz"}


def test_the_example_over_http_reports_each_event_once_and_keeps_no_case(server, tmp_path):
    code = examples()[1].replace("http://127.0.0.1:8000", server)
    series = quiet(400)
    write_csv(tmp_path / "prices.csv", series)
    assert ran(code, tmp_path) == "", "the history is not reported"
    times, values = np.append(series.times_ns, BEGAN_NS + 400 * MINUTE_NS), {"v": np.append(series.target, 40.0)}
    write_csv(tmp_path / "prices.csv", replace(series, times_ns=times, values=values))
    assert ran(code, tmp_path).startswith("new: ") and ran(code, tmp_path) == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"events_per_day": "0.5"}, "is '0.5', not a number"),
        ({"events_per_day": -1.0}, "give a number above 0"),
        ({"events_per_1000_rows": float("nan")}, "give a number above 0"),
        ({"threshold": 5.0}, "give a number above 0 and at most 1"),
        ({"threshold": 0.3, "events_per_day": 1.0}, "both say"),
    ],
)
def test_invalid_options_are_refused_from_python_too(options, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        trivium.load("finance", device="cpu").predict(quiet(100), **options)


def test_other_applications_say_that_they_have_no_monitor():
    with pytest.raises(InvalidInputError, match="driving has no monitor"):
        trivium.load("driving", device="cpu").monitor(None)
