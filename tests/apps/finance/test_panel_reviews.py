"""A panel whose series are named by two columns, from the server with an imported network to reviews, a calibration and
further training."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared import cli
from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.finance.library_tables import saved
from tests.apps.finance.test_imported_panels import panel, panel_data

pytestmark = [
    # Warnings of pytorch-forecasting and Lightning on import, on building a network and on saving one.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SERIES = [f"Agency {agency}+sku-{sku}" for agency in range(3) for sku in range(2)][:5]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a registry of the network imported from a checkpoint over it."""
    folder = tmp_path_factory.mktemp("panel")
    panel().drop(columns="month").to_csv(folder / "panel.csv", index=False)
    words = ["import", "finance", str(saved(panel_data(panel()), folder / "tft.ckpt")), "--registry"]
    words += [str(folder / "models"), "--data", "table", "--data.path", str(folder / "panel.csv")]
    words += ["--data.time", "date", "--data.value", "sales", "--data.series", "agency+sku"]
    assert cli.main(words) == 0
    return folder


@pytest.fixture(scope="module")
def client(registry: Path) -> Iterator[TestClient]:
    settings = Settings(
        store=registry / "store",
        registry=registry / "models",
        device="cpu",
        workers=0,
        warm=False,
        keep_inputs=True,
        hosts="testserver",
    )
    with TestClient(create_app(settings, {"finance": find("finance")})) as test_client:
        yield test_client


def hand_in(client: TestClient, folder: Path, options: dict[str, str]) -> Any:
    return client.post(
        "/api/finance/predict", files={"files": ("panel.csv", (folder / "panel.csv").read_bytes())}, data=options
    )


def test_a_reviewed_panel_calibrates_and_trains_the_imported_network_further(client, registry, tmp_path, capsys):
    answered = hand_in(client, registry, {"series": "agency+sku", "events_per_1000_rows": "10"})
    assert answered.status_code == 200, answered.text
    result = answered.json()["result"]
    assert [part["name"] for part in result["parts"]] == SERIES
    missed = {"series": SERIES[1], "start": "2019-01-01T00:00:00Z", "end": "2019-02-01T00:00:00Z"}
    verdicts = {str(number): "accepted" for number in range(1, len(result["events"]) + 1)}
    review = client.put(
        f"/api/finance/cases/{answered.json()['case']}/review", json={"verdicts": verdicts, "missed": [missed]}
    )
    assert review.status_code == 200, review.text
    reviewed = tmp_path / "reviewed"
    capsys.readouterr()
    assert cli.main(["reviews", "finance", "--store", str(registry / "store"), "--out", str(reviewed)]) == 0
    data = ["--data", "table", "--data.path", str(reviewed / "series"), "--data.labels", "label"]
    data += ["--data.value", "sales", "--data.series", "agency+sku"]
    assert "Series written: 5, 5 of them" in capsys.readouterr().out
    artifact = str(registry / "models" / "tft-anomaly" / "1")
    assert (
        cli.main(["calibrate", "finance", "--artifact", artifact, *data, "--registry", str(tmp_path / "models")]) == 0
    )
    assert "measured.windows: 0 -> " in capsys.readouterr().out
    words = ["train", "finance", "--init", artifact, *data, "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main([*words, "--limits.steps", "1"]) == 0, capsys.readouterr().err
    assert "tensors start from these weights" in capsys.readouterr().out
    assert cli.main([*words, "--data.observed", "price"]) == 2
    assert (
        "the imported network has covariates of its own; leave out data.known, data.observed" in capsys.readouterr().err
    )


def test_the_form_and_the_refusals_say_which_columns_name_the_series(client, registry):
    page = html.unescape(client.get("/finance").text)
    assert "times, 'sales', the value, 'agency' and 'sku', which name the series together, 'population', " in page
    assert "Several columns are joined by a plus: exchange+symbol" in page
    for wanted in ("agency", "sku+agency"):
        refused = hand_in(client, registry, {"series": wanted})
        named = "but the network was trained on series named by agency+sku, in this order; leave out the option"
        assert (refused.status_code, named in refused.json()["detail"]) == (422, True), refused.text
