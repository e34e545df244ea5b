"""The finance form in a browser: events first, then the series; a click on an event shows it.

The network here is an untrained one, so that the page is tested apart from any artifact; the rest is the real thing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from apps.finance.app import app as finance
from apps.finance.data.csv import read_csv, write_csv
from apps.finance.data.synth.markets import market
from apps.finance.models.tft import FinanceModel
from apps.finance.predictor import FinancePredictor
from apps.finance.scoring import Calibration
from shared.app import Sample
from shared.serve.server import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import write_artifact

pytestmark = [
    pytest.mark.browser,
    # Of pytorch-forecasting and Lightning on import and on building a network.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
PAGES = Path(finance.root) / "pages"
ROWS = 1500
PATIENCE_MS = 30_000


def predictor() -> FinancePredictor:
    torch.manual_seed(0)
    model = FinanceModel(name="test", context=24, horizon=4, hidden=8, hidden_continuous=4, heads=1).build()
    return FinancePredictor(model, Calibration(threshold=0.3), stride=4, device="cpu", name="untrained")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("finance")
    (root / "pages").symlink_to(PAGES)
    write_artifact(root / "weights", 1, "finance")
    file = root / "market.csv"
    write_csv(file, market(np.random.Generator(np.random.Philox(20)), length=ROWS).series)
    judge = predictor()
    judge.judge(read_csv(file))  # the first time is slow, and the browser would wait for it
    sample = Sample(name="market", title="A market", synthetic=True, source="made here", files=lambda _: [file])
    app = replace(
        finance, root=root, models=("echo",), predictor=lambda artifacts, device: judge, samples=lambda: [sample]
    )
    settings = Settings(store=root / "store", warm=False, device="cpu")
    with serving(create_app(settings, {"finance": app})) as address:
        yield address


def drawn(page: Page) -> int:
    """How many pixels of the upper chart are not blank."""
    return page.eval_on_selector(
        ".chart canvas",
        """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) if (d[i] > 0) n += 1; return n; }""",
    )


def scale(page: Page) -> str:
    """What stands on the time axis is drawn, not written: the picture of the chart stands for it."""
    return page.eval_on_selector(".chart canvas", "canvas => canvas.toDataURL()")


def test_a_sample_shows_its_events_and_its_chart(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    page.get_by_role("button", name="A market").click()
    rows = page.locator(".events tbody tr")
    expect(rows.first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#result h2").first).to_contain_text("event")
    expect(page.locator(".chart canvas")).to_have_count(2)
    assert drawn(page) > 5000
    whole = scale(page)
    rows.first.get_by_role("button").click()
    expect(rows.first).to_have_class("current")
    page.wait_for_function("before => document.querySelector('.chart canvas').toDataURL() !== before", arg=whole)
    page.get_by_role("button", name="Whole series").click()
    page.wait_for_function("before => document.querySelector('.chart canvas').toDataURL() === before", arg=whole)
    expect(page.get_by_role("link", name="scores.csv")).to_be_visible()
    folder = os.environ.get("TRIVIUM_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/finance.png", full_page=True)


def test_another_column_of_the_same_series_is_a_choice_away(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    page.get_by_role("button", name="A market").click()
    choice = page.get_by_label("Judged column")
    expect(choice).to_have_value("close", timeout=PATIENCE_MS)
    choice.select_option("volume")
    expect(page.locator(".chart")).to_have_attribute("aria-label", re.compile("volume"), timeout=PATIENCE_MS)
    expect(page.get_by_label("Judged column")).to_have_value("volume")


def test_a_file_that_is_no_series_is_answered_with_a_sentence(page: Page, site: str, tmp_path: Path) -> None:
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    path = tmp_path / "words.csv"
    path.write_text("a,b\nx,y\nz,w\n")
    page.goto(f"{site}/finance")
    page.get_by_label("Series").set_input_files(path)
    page.get_by_role("button", name="Find anomalies").click()
    expect(page.get_by_role("alert")).to_contain_text("words.csv has no column of times", timeout=PATIENCE_MS)
