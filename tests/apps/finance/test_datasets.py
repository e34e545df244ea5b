"""Data sets: a user's table, NAB, synthetic series; splits; training a few steps, scoring, calibrating on them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import TableOptions
from apps.finance.app import app
from apps.finance.datasets import DATA_SETS
from apps.finance.datasets.database import with_environment
from apps.finance.datasets.nab import Nab
from apps.finance.datasets.synthetic import Synthetic
from apps.finance.datasets.table import Table
from apps.finance.inference.calibration import calibrate, calibrate_recipe, from_manifest
from apps.finance.inference.evaluation import evaluate, forecast_quality
from apps.finance.inference.scoring import Calibration
from apps.finance.predictor import FinancePredictor
from apps.finance.recipes import tiny
from apps.finance.types import Detection, FinanceInput, Forecast, Series
from shared.data.registry import read_registry
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError
from shared.recipe_file import save_recipe

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
INPUT = FinanceInput(context=24, horizon=4)
ROWS = 400


def walk(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.round(100 * np.exp(np.random.default_rng(seed).normal(0, 0.01, rows).cumsum()), 2)


def frame(names: str = "ab", rows: int = ROWS) -> pl.DataFrame:
    times = 1_700_000_000 + 60 * np.arange(rows)
    parts = []
    for seed, name in enumerate(names):
        label = np.zeros(rows, int)
        label[300:310] = 1
        columns = {"at": times, "who": [name] * rows, "px": walk(seed, rows), "odd": label, "size": label * 3 + seed}
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts)


def labelled_table(**settings: object) -> Table:
    return Table(time="at", value="px", series="who", labels="odd", **settings)  # type: ignore[arg-type]


def test_files_folders_patterns_and_queries_hold_the_same_series(tmp_path):
    whole = frame()
    whole.write_csv(tmp_path / "all.csv")
    (tmp_path / "parts").mkdir()
    for number in range(4):
        rows = pl.col("at").is_between(1_700_000_000 + 6000 * number, 1_700_000_000 + 6000 * number + 5999)
        whole.filter(rows).write_parquet(tmp_path / "parts" / f"{number}.parquet")
    with sqlite3.connect(tmp_path / "prices.db") as connection:
        connection.execute("create table prices (at integer, who text, px real, odd integer, size integer)")
        connection.executemany("insert into prices values (?, ?, ?, ?, ?)", whole.rows())
    connection.close()
    url = f"sqlite:///{tmp_path / 'prices.db'}"
    sets = [
        labelled_table(path=str(tmp_path / "all.csv")),
        labelled_table(path=str(tmp_path / "parts")),
        labelled_table(path=str(tmp_path / "parts" / "*.parquet")),
        labelled_table(url=url, query="select * from prices"),
    ]
    digests = {data_set.fingerprint()["sha256"] for data_set in sets}
    assert len(digests) == 1
    for data_set in sets:
        items = data_set.cases()
        assert [item.series.name for item in items] == ["a", "b"] and [len(item.series) for item in items] == [ROWS] * 2
        times = items[0].series.times_ns
        assert [(w.start_ns, w.end_ns) for w in items[0].windows] == [(int(times[300]), int(times[309]))]
        assert items[0].series.target.tolist() == walk(0).tolist() and list(items[0].series.values) == ["px", "size"]


def test_files_of_the_same_name_in_several_folders_are_series_of_their_own(tmp_path):
    for place, name in enumerate(("AAPL", "MSFT", ".ipynb_checkpoints")):
        (tmp_path / name).mkdir()
        frame().filter(pl.col("who") == "ab"[place % 2]).drop("who").write_csv(tmp_path / name / "2024.csv")
    for path in (tmp_path, tmp_path / "[A-Z]*" / "2024.csv"):
        cases = Table(path=str(path), time="at", value="px").cases()
        assert [case.series.name for case in cases] == ["AAPL/2024.csv", "MSFT/2024.csv"]
        assert cases[0].series.target[0] == walk(0)[0] and cases[1].series.target[0] == walk(1)[0]


def test_the_path_of_a_partitioned_table_names_its_series(tmp_path):
    for symbol in "ab":
        (tmp_path / f"symbol={symbol}").mkdir()
        rows = frame(symbol).drop("who")
        rows.head(200).write_parquet(tmp_path / f"symbol={symbol}" / "part-0.parquet")
        rows.tail(200).write_parquet(tmp_path / f"symbol={symbol}" / "part-1.parquet")
    cases = Table(path=str(tmp_path), time="at", value="px", series="symbol").cases()
    assert [(case.series.name, len(case.series)) for case in cases] == [("a", ROWS), ("b", ROWS)]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+pg8000://reader:hunter2@host:5432/prices",
        "oracle+cx_oracle://reader:$ecret@host/prices",
        "postgresql://host/prices?user=reader&password=hunter2",
        "mssql+pyodbc://?odbc_connect=SERVER%3Dhost%3BPWD%3Dhunter2",
    ],
)
def test_a_password_in_the_address_is_refused_without_repeating_it(url):
    with pytest.raises(
        InvalidInputError, match=r"put the password into an environment variable.*\$DB_PASSWORD"
    ) as raised:
        labelled_table(url=url, query="select 1")
    assert "hunter2" not in str(raised.value) and "$ecret" not in str(raised.value)


def test_a_variable_in_the_address_is_replaced_on_connecting_and_recorded_by_its_name(tmp_path, monkeypatch):
    with sqlite3.connect(tmp_path / "prices.db") as connection:
        connection.execute("create table prices (at integer, who text, px real, odd integer, size integer)")
        connection.executemany("insert into prices values (?, ?, ?, ?, ?)", frame().rows())
    connection.close()
    whole, part = (
        labelled_table(url=url, query="select * from prices") for url in ("$PRICES_URL", "sqlite:///$FOLDER/prices.db")
    )
    with pytest.raises(InvalidInputError, match=r"\$PRICES_URL, but the environment variable PRICES_URL is not set"):
        whole.cases()
    monkeypatch.setenv("PRICES_URL", f"sqlite:///{tmp_path / 'prices.db'}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    assert [len(item.series) for item in whole.cases()] == [len(item.series) for item in part.cases()] == [ROWS] * 2
    save_recipe(tmp_path / "recipe.yaml", replace(tiny(), data=whole), app="finance", name="tiny")
    written = (tmp_path / "recipe.yaml").read_text()
    assert "url: $PRICES_URL" in written and str(tmp_path) not in written


def test_a_password_from_the_environment_may_hold_any_character(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "p@ss/w:rd?")
    url = with_environment("postgresql://reader:$DB_PASSWORD@host/prices")
    assert (url.password, url.host, url.database) == ("p@ss/w:rd?", "host", "prices")


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.csv"
    frame().write_csv(path)
    before = labelled_table(path=str(path)).fingerprint()
    frame("abc").write_csv(path)
    assert labelled_table(path=str(path)).fingerprint() != before and len(labelled_table(path=str(path)).cases()) == 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "name the table with --data.path FILE, or"),
        ({"path": "nowhere/*.csv"}, "is neither a file, nor a folder with CSV, Parquet or Excel files, nor a pattern"),
        ({"query": "select 1"}, "a query needs its database"),
        ({"query": "select * from prices", "url": "sqlite://"}, "the query failed: no such table: prices"),
        ({"query": "create table a(b)", "url": "sqlite://"}, "the query selects nothing; give a SELECT"),
        ({"path": "short.csv"}, "has 2 series with at most 30 values; at least 60 are needed"),
    ],
)
def test_unusable_tables_are_refused_with_the_reason(tmp_path, monkeypatch, settings, sentence):
    monkeypatch.chdir(tmp_path)
    frame(rows=30).write_csv("short.csv")
    with pytest.raises(InvalidInputError, match=sentence):
        labelled_table(**settings).train(INPUT)


def test_the_later_part_of_each_series_is_only_used_for_validation(tmp_path):
    path = tmp_path / "a.csv"
    frame().write_csv(path)
    data = labelled_table(path=str(path), stride=1)
    train, validation = data.train(INPUT), data.validation(INPUT)
    cut = ROWS - ROWS // 5
    # The covariate table has `context` rows of padding before each series.
    lengths = (cut + INPUT.context, ROWS + INPUT.context)
    assert [len(data_set.flat) for data_set in (train, validation)] == [2 * length for length in lengths]
    assert train.starts.max() - lengths[0] + INPUT.horizon == cut and validation.starts.min() == cut
    changed = frame().with_columns(
        pl.when(pl.col("at") >= 1_700_000_000 + 60 * cut).then(1.0).otherwise(pl.col("px")).alias("px")
    )
    changed.write_csv(tmp_path / "b.csv")
    changed_training = labelled_table(path=str(tmp_path / "b.csv"), stride=1).train(INPUT)
    assert np.array_equal(train.flat, changed_training.flat), "training does not see what validates"
    # Rows labelled anomalous are neither inputs nor targets.
    observed = train.batch(np.flatnonzero(train.starts == 304), None)["observed"]
    assert observed.sum() == 0


def test_facts_say_what_will_be_trained_on(tmp_path):
    path = tmp_path / "a.csv"
    frame().rename({"at": "timestamp", "who": "ticker"}).write_csv(path)
    facts = Table(path=str(path), labels="odd").facts(INPUT)
    assert (facts["series"], facts["rows"], facts["validation rows"], facts["series in both splits"]) == (
        2,
        800,
        160,
        2,
    )
    assert facts["time"] == "2023-11-14T22:13:20Z to 2023-11-15T04:52:20Z" and facts["interval"] == "60 s"
    assert facts["labelled windows"] == 2 and facts["missing values"] == 0
    assert "identified by column 'ticker'" in facts["notes"] and "the option 'value' selects another" in facts["notes"]
    assert set(app.data_sets() or {}) == set(DATA_SETS) == {"table", "nab", "synthetic"}


def test_synthetic_series_of_different_uses_are_different():
    data = Synthetic(series=3, validation_series=3, rows=300)
    uses = [data.normal(), data.labelled(), data.cases()]
    values = {item.series.target.tobytes() for use in uses for item in use}
    assert len(values) == sum(len(use) for use in uses)
    assert not any(item.windows for item in data.normal()) and any(item.windows for item in data.cases())
    assert data.fingerprint()["synthetic"] is True and data.facts(INPUT)["synthetic"] is True


def test_forecasts_are_scored_by_hand():
    series = Series(
        name="s", times_ns=np.arange(4) * 10**9, values={"v": np.array([1.0, 3.0, 2.0, 4.0])}, column="v",
        interval_ns=10**9,
    )  # fmt: skip
    quantiles = np.array([[np.nan] * 3, [1, 2, 4], [3, 4, 5], [3, 4, 5]], float)
    forecast = Forecast(levels=(0.1, 0.5, 0.9), quantiles=quantiles, surprise=np.zeros((4, 1)))
    found = forecast_quality(
        Detection(series=series, forecast=forecast, scores=np.zeros(4), thresholds=np.full(4, 0.5), anomalies=()), 1
    )
    # Mean absolute change 5/3. Losses of (3; 1, 2, 4), (2; 3, 4, 5), (4; 3, 4, 5), by row and level.
    by_hand = [0.2, 0.5, 0.1, 0.9, 1.0, 0.3, 0.1, 0.0, 0.1]
    assert found.loss == pytest.approx(np.mean(by_hand) / (5 / 3)) and found.rows == 3
    assert found.coverage == pytest.approx(2 / 3) and found.expected == pytest.approx(0.8)


@pytest.fixture(scope="module")
def untrained() -> FinancePredictor:
    torch.manual_seed(0)
    model = tiny().model.build(INPUT)
    return FinancePredictor(
        model=model, calibration=Calibration(threshold=0.35), stride=4, device="cpu", name="untrained"
    )


def test_evaluation_with_and_without_labels(tmp_path, untrained):
    path = tmp_path / "a.csv"
    jumping = pl.when(pl.col("odd") == 1).then(pl.col("px") * 3).otherwise(pl.col("px")).alias("px")
    frame().with_columns(jumping).write_csv(path)
    with_labels = evaluate(untrained, labelled_table(path=str(path)), None)
    cells = dict(with_labels.rows)
    assert cells["Windows hit, with the model's budget of 0.6 events a 1,000 rows"] == "2/2 = 100.0 %"
    assert cells["Series"] == "2" and cells["Rows whose forecasts are scored"] == "160"
    assert any(name.startswith("NAB reward_low_FP_rate") for name in cells)
    unlabelled_scores = evaluate(untrained, Table(path=str(path), time="at", value="px", series="who"), 1)
    cells = dict(unlabelled_scores.rows)
    assert cells["Series"] == "1" and not any("Windows" in name or "NAB" in name for name in cells)
    assert any("No window is labelled" in note for note in unlabelled_scores.notes)


def test_a_stricter_budget_of_false_events_gives_a_higher_threshold(tmp_path, untrained):
    path = tmp_path / "a.csv"
    frame("abcd").write_csv(path)
    found = {
        rate: calibrate(labelled_table(path=str(path), false_events_per_1000_rows=rate), untrained.model)
        for rate in (0.0, 3.0, 30.0)
    }
    thresholds = [from_manifest(json.loads(json.dumps(manifest))).threshold for manifest in found.values()]
    assert thresholds[0] >= thresholds[1] >= thresholds[2] and thresholds[0] > thresholds[2]
    for rate, entry in found.items():
        assert entry["measured"]["false_events_per_1000_rows"] <= rate and entry["measured"]["series"] == 4


@pytest.mark.realdata
def test_a_few_steps_on_minute_bars_and_their_scores(data_root: Path):
    file = data_root / "finance" / "btc" / "btc-perp-20211231-20220201_1m.csv"
    data = Table(path=str(file), value="close", stride=200)
    recipe = replace(tiny(), data=data)
    facts = data.facts(recipe.input)
    assert facts["rows"] == 45031 and facts["interval"] == "60 s" and facts["missing values"] == 0
    task, windows = recipe.task.build(), data.train(recipe.input)
    torch.manual_seed(0)
    model = recipe.model.build(recipe.input)
    optimizer = recipe.optimizer.build(model)
    indices, losses = np.arange(0, len(windows), 6), []
    for _ in range(20):
        model.zero_grad()
        loss = task.loss(model, windows.batch(indices, None)).mean
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < losses[0]
    scores = task.scores()
    with torch.no_grad():
        task.evaluate(model.eval(), data.validation(recipe.input).batch(np.arange(200), None), scores)
    assert np.isfinite(scores.summary()["loss"])
    table = evaluate(FinancePredictor.load(shipped(app), "cpu"), replace(data, validation_share=0.1), None)
    cells = dict(table.rows)
    assert cells["Rows"] == "45031" and cells["Rows whose forecasts are scored"] == "4503"
    assert 85 < float(cells["Values within the 96% band"].split()[0]) < 100


@pytest.mark.realdata
def test_nab_is_a_data_set_to_train_and_to_score_on(data_root: Path, monkeypatch):
    data = Nab(root=data_root / "finance" / "nab")
    monkeypatch.setattr(Nab, "names", lambda self: ["realTweets/Twitter_volume_AAPL.csv", "realTraffic/speed_6005.csv"])
    recipe = replace(tiny(), data=data)
    assert len(data.train(recipe.input)) > 1000 and len(data.validation(recipe.input)) > 300
    assert data.facts(recipe.input)["labelled windows"] == 5
    table = evaluate(FinancePredictor.load(shipped(app), "cpu"), data, None)
    hit = next(value for name, value in table.rows if name.startswith("Windows hit"))
    assert hit.split("/")[1].startswith("5 ") and int(hit.split("/")[0]) >= 3
    strict = replace(recipe, data=replace(data, false_events_per_1000_rows=1.0))
    found = calibrate_recipe(strict, recipe.model.build(recipe.input).eval())
    assert found["measured"]["windows"] == 5 and 0 < found["threshold"] <= 1


def test_a_folder_that_is_not_the_benchmarks_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"has no labels/combined_windows\.json; give the folder of NAB"):
        Nab(root=tmp_path).train(INPUT)


def test_a_clone_of_nab_gives_the_files_of_the_published_table(tmp_path, monkeypatch):
    """Only the names of the files matter: the clone has the other folders, and their windows among the labels."""
    monkeypatch.setenv("TRIVIUM_DATA", str(tmp_path))
    listed = [file.path for file in read_registry(app.data_registry)["nab"].files]
    further = "finance/nab/data/realKnownCause/nyc_taxi.csv"
    for path in (*listed, further):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    series = {path.removeprefix("finance/nab/data/"): [] for path in (*listed, further) if path.endswith(".csv")}
    (tmp_path / "finance/nab/labels/combined_windows.json").write_text(json.dumps(series))
    assert len(Nab().names()) == 45
    assert len(Nab(root=tmp_path / "finance/nab").names()) == 46


@pytest.mark.parametrize("usual", ["0.00", "-0.0", "no", "None", "N/A", "FALSE", "normal", ""])
def test_common_spellings_of_no_label_are_not_labels(tmp_path, usual):
    lines = [f"2024-01-01T00:{minute:02d}:00Z,{minute},{'yes' if minute == 7 else usual}" for minute in range(30)]
    (tmp_path / "l.csv").write_text("\n".join(["time,value,odd", *lines]) + "\n")
    contents = read_contents(tmp_path / "l.csv", TableOptions(labels="odd"))
    ((window,),) = contents.windows
    assert window.kind == "" and window.start_ns == window.end_ns == contents.series[0].times_ns[7]


@pytest.mark.parametrize(("cells", "words"), [(("1", "-1"), "are 1 and -1"), (("1", "1"), "mark every row")])
def test_ambiguous_labels_are_refused(tmp_path, cells, words):
    lines = [f"2024-01-01T00:{minute:02d}:00Z,{minute},{cells[minute % 2]}" for minute in range(30)]
    (tmp_path / "l.csv").write_text("\n".join(["time,value,odd", *lines]) + "\n")
    with pytest.raises(InvalidInputError, match=words):
        read_contents(tmp_path / "l.csv", TableOptions(labels="odd"))
