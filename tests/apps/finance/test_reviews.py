"""From reviews over HTTP to labelled tables, on which a forecaster is trained and scored."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from apps.finance.datasets.table import Table
from apps.finance.types import iso_utc
from shared import cli
from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.keys import Keys

HOURS = 400
SPIKES = {"A": (200, 300), "B": (250,), "C": ()}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"finance": find("finance")})) as test_client:
        yield test_client


def time(hour: int) -> str:
    return iso_utc((1_704_067_200 + 3600 * hour) * 10**9)


def table(spikes: dict[str, tuple[int, ...]], missing: int = 7) -> str:
    """Hourly values of each series, quiet except for its spikes; one value is missing."""
    rows = [] if len(spikes) == 1 else [f"{name},{time(h)},{value}" for name, h, value in _values(spikes, missing)]
    rows = rows or [f"{time(h)},{value}" for _, h, value in _values(spikes, missing)]
    return "\n".join([("ticker,time,close" if len(spikes) > 1 else "time,close"), *rows]) + "\n"


def _values(spikes: dict[str, tuple[int, ...]], missing: int) -> Iterator[tuple[str, int, str]]:
    for name, at in spikes.items():
        for hour in range(HOURS):
            value = 100 + (hour * 37 % 11) / 10 + 60 * (hour in at)
            yield name, hour, "" if hour == missing else f"{value:.2f}"


def hand_in(client: TestClient, spikes: dict[str, tuple[int, ...]], missing: int = 7) -> tuple[str, dict[str, Any]]:
    """The URL of the review of a case with these series, and its result."""
    file = {"files": ("prices.csv", table(spikes, missing))}
    response = client.post("/api/finance/predict", files=file, data={"events_per_1000_rows": "10"})
    assert response.status_code == 200, response.text
    return f"/api/finance/cases/{response.json()['case']}/review", response.json()["result"]


def export(client: TestClient, out: Path, *words: str) -> int:
    store = ["--store", str(client.app.state.store.folder)]  # type: ignore[attr-defined]
    return cli.main(["reviews", "finance", *store, "--out", str(out), *words])


@pytest.mark.parametrize(
    ("missed", "sentence"),
    [
        ({"start": time(3), "end": time(2)}, "is outside its series, which covers 2024-01-01T00:00:00Z"),
        ({"start": time(3), "end": time(HOURS)}, "is outside its series"),
        ({"start": "yesterday", "end": time(3)}, "'yesterday' is not a time in the format of events"),
        ({"start": "2024-02-31T00:00:00Z", "end": time(3)}, "is not a time in the format of events"),
        ({"start": time(3), "end": time(3), "series": "Z"}, "the case has a single series, which is not 'Z'"),
        ({"start": time(3)}, "missed.end: Field required"),
    ],
)
def test_a_missed_event_outside_its_series_is_refused(
    client: TestClient, missed: dict[str, Any], sentence: str
) -> None:
    home, _ = hand_in(client, {"A": (200,)})
    response = client.put(home, json={"missed": [missed]})
    assert response.status_code == 422 and sentence in response.json()["detail"]


def test_reviewed_series_are_trained_and_scored_on(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, result = hand_in(client, SPIKES)
    events = result["events"]
    assert {event["series"] for event in events} >= {"A", "B"}
    of_none = {"missed": [{"start": time(3), "end": time(3)}]}
    assert "the case has several series; name" in client.put(home, json=of_none).json()["detail"]
    first = next(n for n, event in enumerate(events, 1) if event["series"] == "A")
    verdicts = {
        str(n): "accepted" if n == first else "rejected" for n, event in enumerate(events, 1) if event["series"] != "B"
    }
    missed = [{"series": "A", "start": time(50), "end": time(52)}]
    assert client.put(home, json={"verdicts": verdicts, "missed": missed}).status_code == 200
    assert export(client, tmp_path / "out") == 0
    output = " ".join(capsys.readouterr().out.split())
    series = tmp_path / "out" / "series"
    left_out = sum(
        all(str(n) not in verdicts for n, e in enumerate(events, 1) if e["series"] == name) for name in SPIKES
    )
    assert f"series not fully reviewed: {left_out}." in output
    rows = list(csv.DictReader(min(series.iterdir()).read_text().splitlines()))
    assert len(rows) == HOURS and rows[7]["value"] == "" and float(rows[200]["value"]) == 160.8
    assert {row["ticker"] for row in rows} == {"A"} and "--data.labels label --data.series ticker" in output
    assert "A" in {item.series.name for item in Table(path=str(series), labels="label", series="ticker").cases()}
    marked = {n for n, row in enumerate(rows) if row["label"] == "1"}
    event = events[first - 1]
    found = {hour for hour in range(HOURS) if event["start"] <= time(hour) <= event["end"]}
    assert found and marked == found | {50, 51, 52}
    windows = Table(path=str(series), labels="label").cases()[0].windows
    assert (iso_utc(windows[0].start_ns), iso_utc(windows[0].end_ns)) == (time(50), time(52))
    data = ["--data", "table", "--data.path", str(series), "--data.labels", "label"]
    assert cli.main(["evaluate", "finance", *data, "--device", "cpu"]) == 0
    few = ["--limits.steps", "1", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(["train", "finance", "--recipe", "tiny", *data, *few]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def test_a_series_is_exported_after_all_files_of_its_case_were_asked_for(client: TestClient, tmp_path: Path) -> None:
    """By then the source of the files has been deleted; scores.csv has the same rows."""
    home, result = hand_in(client, {"A": (150,)}, missing=9)
    verdicts = {str(n): "accepted" for n in range(1, len(result["events"]) + 1)}
    assert client.put(home, json={"reviewer": "Ada", "verdicts": verdicts}).status_code == 200
    assert export(client, tmp_path / "before", "--reviewer", "Ada") == 0
    case = client.get(home.removesuffix("/review")).json()
    for address in (case["picture"], *case["files"].values()):
        assert client.get(address).status_code == 200
    assert export(client, tmp_path / "after", "--reviewer", "Ada") == 0
    before_file, after_file = (next((tmp_path / name / "series").iterdir()) for name in ("before", "after"))
    assert before_file.read_bytes() == after_file.read_bytes() and before_file.read_text().count(",1\n") > 0


def bars(column: str = "note") -> str:
    """Hourly bars with a spike and a column that is not scored."""
    rows = [f"{time(h)},{100 + (h * 37 % 11) / 10 + 60 * (h == 200):.2f},{h * 7 % 13},{h}" for h in range(HOURS)]
    rows[9] = f"{time(9)},,{9 * 7 % 13},9"
    return "\n".join([f"time,close,volume,{column}", *rows]) + "\n"


def test_a_table_that_the_server_keeps_is_written_whole(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = client.app.state.services["finance"]  # type: ignore[attr-defined]
    own_settings = service.settings.model_copy(update={"store": tmp_path / "store", "keep_inputs": True})
    with TestClient(create_app(own_settings, {"finance": service.app})) as keeping:
        for text in (bars(), table({"A": (200,)}), bars("label")):
            answer = keeping.post("/api/finance/predict", files={"files": ("bars.csv", text)}).json()
            verdicts = {str(n): "accepted" for n in range(1, len(answer["result"]["events"]) + 1)}
            response = keeping.put(f"/api/finance/cases/{answer['case']}/review", json={"verdicts": verdicts})
            assert response.status_code == 200 and verdicts
        assert export(keeping, tmp_path / "out") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Series written: 3, 1 of them with all columns of their table." in output
    assert "Scored columns: close, value." in output
    texts = [file.read_text() for file in sorted((tmp_path / "out" / "series").iterdir())]
    heads = ["timestamp,close,volume,note,label", "timestamp,value,label", "timestamp,value,label"]
    assert sorted(text.partition("\n")[0] for text in texts) == heads
    (whole,) = (text for text in texts if "volume" in text)
    rows = list(csv.DictReader(whole.splitlines()))
    assert [row["volume"] for row in rows] == [f"{float(h * 7 % 13)}" for h in range(HOURS)]
    assert rows[9]["close"] == "" and rows[200]["close"] == "160.8" and rows[200]["label"] == "1"
    names = {case.series.column for case in Table(path=str(tmp_path / "out" / "series"), labels="label").cases()}
    assert names == {"close", "value"}


def test_a_groups_reviewed_cases_are_exported_without_those_of_others(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = client.app.state.services["finance"]  # type: ignore[attr-defined]
    own = service.settings.model_copy(update={"store": tmp_path / "store", "require_key": True})
    cases = {}
    with TestClient(create_app(own, {"finance": service.app})) as keyed:
        stored = Keys(keyed.app.state.store.engine)  # type: ignore[attr-defined]
        for group, key in {name: stored.add(f"{name}-1", "user", name) for name in ("desk", "treasury")}.items():
            keyed.headers["X-Api-Key"] = key
            home, _ = hand_in(keyed, {"A": (200,)})  # the same table in both groups
            assert keyed.put(home, json={"verdicts": {"1": "accepted"}}).status_code == 200
            cases[group] = home.split("/")[-2]
        assert export(keyed, tmp_path / "desk", "--group", "desk") == 0
        assert "left out" not in capsys.readouterr().out, "the other group's analysis of the table does not count"
        assert [row["case"] for row in exported_cases(tmp_path / "desk")] == [cases["desk"]]
        assert export(keyed, tmp_path / "all") == 0
        assert [row["case"] for row in exported_cases(tmp_path / "all")] == [cases["treasury"]], "the last review"
        assert export(keyed, tmp_path / "none", "--group", "desk", "--reviewer", "treasury-1") == 2
        problem = " ".join(capsys.readouterr().err.split())
        assert "of the group desk that was reviewed by treasury-1; reviewers are desk-1" in problem
        assert export(keyed, tmp_path / "none", "--group", "desc") == 2
        assert "no group 'desc'; its groups are desk, treasury" in " ".join(capsys.readouterr().err.split())


def exported_cases(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "cases.csv").read_text().splitlines()))
