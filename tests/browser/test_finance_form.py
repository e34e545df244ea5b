"""The finance form in a browser: it shows the events, then the series; a click on an event shows it in the chart.

The network is untrained, so the page is tested without an artifact; everything else is the real application.
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
from playwright.sync_api import Page, Route, expect

from apps.finance import service
from apps.finance.app import app as finance
from apps.finance.datasets.synth.markets import market
from apps.finance.inference.scoring import Calibration
from apps.finance.models.settings import FinanceModel
from apps.finance.outputs import files, several
from apps.finance.outputs.series_csv import write_csv
from apps.finance.predictor import FinancePredictor
from apps.finance.types import FinanceInput
from shared.app import App, Sample
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.finance.reading import read_series
from tests.conftest import serving
from tests.shared.serve.echo import write_artifact

pytestmark = [
    pytest.mark.browser,
    # pytorch-forecasting and Lightning warn when they are imported and when a network is built.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]
PAGES = Path(finance.root) / "pages"
ROWS = 1500


def predictor() -> FinancePredictor:
    torch.manual_seed(0)
    model = FinanceModel(name="test", hidden=8, hidden_continuous=4, heads=1).build(FinanceInput(context=24, horizon=4))
    return FinancePredictor(
        model=model, calibration=Calibration(threshold=0.3), stride=4, device="cpu", name="untrained"
    )


def finance_app(root: Path) -> App:
    """The finance application with an untrained network, and a sample series in ``root``."""
    (root / "pages").symlink_to(PAGES)
    write_artifact(root / "weights", 1, "finance", "untrained")
    file = root / "market.csv"
    generated = market(np.random.Generator(np.random.Philox(20)), length=ROWS)
    write_csv(file, generated.series, generated.windows)
    warm = predictor()
    warm.predict([read_series(file)])  # the first prediction is slow, and the browser would have to wait for it
    sample = Sample(name="market", title="A market", synthetic=True, source="made here", files=lambda _: [file])
    return replace(
        finance, root=root, models=("untrained",), predictor=lambda artifacts, device: warm, samples=lambda: [sample]
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("finance")
    app = finance_app(root)
    settings = Settings(store=root / "store", warm=False, device="cpu")
    with serving(create_app(settings, {"finance": app})) as address:
        yield address


def count_drawn_pixels(page: Page) -> int:
    """The number of pixels of the upper chart that are not blank."""
    return page.eval_on_selector(
        ".chart canvas",
        """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) if (d[i] > 0) n += 1; return n; }""",
    )


def chart_picture(page: Page) -> str:
    """The chart's picture as a data URL. It shows the visible time range, which the page does not contain as text."""
    return page.eval_on_selector(".chart canvas", "canvas => canvas.toDataURL()")


def test_a_sample_is_shown_with_its_events_and_its_chart(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    page.get_by_role("button", name="A market").click()
    rows = page.locator(".events tbody tr")
    expect(rows.first).to_be_visible()
    expect(page.locator("#result h2").first).to_contain_text("event")
    expect(page.locator(".chart canvas")).to_have_count(2)
    assert count_drawn_pixels(page) > 5000
    whole = chart_picture(page)
    rows.first.get_by_role("button").click()
    expect(rows.first).to_have_class("current")
    page.wait_for_function("before => document.querySelector('.chart canvas').toDataURL() !== before", arg=whole)
    page.get_by_role("button", name="Whole series").click()
    page.wait_for_function("before => document.querySelector('.chart canvas').toDataURL() === before", arg=whole)
    expect(page.get_by_role("link", name="scores.csv")).to_be_visible()
    expect(page.locator("#result .facts").last).to_have_text("Model: untrained.")
    folder = os.environ.get("TRIVIUM_SCREENSHOTS")
    if folder:
        page.screenshot(path=f"{folder}/finance.png", full_page=True)


def test_events_are_sorted_and_filtered_by_score(page: Page, site: str, tmp_path: Path) -> None:
    prices = 100 + np.cumsum(0.1 * np.random.default_rng(3).standard_normal(ROWS))
    prices[400:1440:130] += np.array([4, -6, 8, -10, 12, -14, 16, -18])
    path = tmp_path / "prints.csv"
    rows_of = (f"{1_700_000_000 + 300 * row},{price:.4f}" for row, price in enumerate(prices.tolist()))
    path.write_text("\n".join(["time,close", *rows_of]))
    page.goto(f"{site}/finance")
    page.get_by_label("Series", exact=True).set_input_files(path)
    page.get_by_role("button", name="Find anomalies").click()
    rows = page.locator(".events tbody tr")
    expect(rows.nth(6)).to_be_visible()

    def strengths() -> list[float]:
        cells = page.locator(".events tbody tr:not([hidden]) td[data-label=Score]")
        return [float(text) for text in cells.all_text_contents()]

    order, min_score = page.locator(".tools select"), page.get_by_label("with a score of at least")
    order.select_option("time")
    by_time = strengths()
    assert by_time != sorted(by_time, reverse=True)
    order.select_option("strength")
    by_strength = sorted(by_time, reverse=True)
    assert strengths() == by_strength
    min_score.fill(str(by_strength[2]))
    expect(page.locator(".events tbody tr:not([hidden])")).to_have_count(
        sum(score >= by_strength[2] for score in by_time)
    )
    assert strengths()[:3] == by_strength[:3]


def test_events_sorted_before_the_chart_is_loaded_stay_sorted(page: Page, site: str) -> None:
    held_routes: list[Route] = []
    page.route("**/series.json", lambda route: held_routes.append(route))
    page.goto(f"{site}/finance")
    page.get_by_label("Events wanted per 1,000 rows").fill("8")
    with page.expect_request("**/series.json"):
        page.get_by_role("button", name="A market").click()
    page.locator(".tools select").first.select_option("strength")
    rows = page.locator(".events tbody tr")
    strongest = rows.first.inner_text()
    rows.first.get_by_role("button").first.click()
    for route in held_routes:
        route.continue_()
    expect(page.locator(".chart canvas")).to_have_count(2)
    assert rows.first.inner_text() == strongest
    expect(rows.first).to_have_class("current")


def test_keys_step_through_the_events_in_list_order_and_announce_their_start(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    page.get_by_label("Events wanted per 1,000 rows").fill("8")
    page.get_by_role("button", name="A market").click()
    rows = page.locator(".events tbody tr")
    expect(rows.nth(6)).to_be_visible()
    page.locator(".tools select").first.select_option("strength")
    start = rows.first.get_by_role("button").inner_text()
    expect(page.locator("#result .finding")).to_contain_text(f"The strongest: {start} UTC")
    chart = page.get_by_role("group", name=re.compile("Chart of close"))
    chart.focus()
    status = page.get_by_role("status").filter(has_text="Event")
    for place in range(3):
        page.keyboard.press("ArrowDown")
        expect(rows.nth(place)).to_have_class("current")
        start = rows.nth(place).get_by_role("button").inner_text()
        expect(status).to_contain_text(f"Event {place + 1} of {rows.count()}: {start} UTC")
    second = rows.nth(1).locator("td[data-label=Score]").inner_text()
    page.get_by_label("with a score of at least").fill(second)
    remaining = page.locator(".events tbody tr:not([hidden])").count()
    chart.focus()
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    expect(status).to_contain_text(f"Event {remaining} of {remaining}: ")


def test_another_column_of_the_series_can_be_selected(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    page.get_by_role("button", name="A market").click()
    choice = page.get_by_label("Scored column")
    expect(choice).to_have_value("close")
    choice.select_option("volume")
    expect(page.locator(".chart")).to_have_attribute("aria-label", re.compile("volume"))
    expect(page.get_by_label("Scored column")).to_have_value("volume")


def test_a_file_without_a_series_is_refused(page: Page, site: str, tmp_path: Path) -> None:
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    path = tmp_path / "words.csv"
    path.write_text("a,b\nx,y\nz,w\n")
    page.goto(f"{site}/finance")
    page.get_by_label("Series", exact=True).set_input_files(path)
    page.get_by_role("button", name="Find anomalies").click()
    expect(page.get_by_role("alert")).to_contain_text("words.csv has no column of times")
    # The field of the option that the refusal names is in a section that was closed, under another label.
    expect(page.get_by_label("Column of times")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Column of times")).to_be_visible()
    expect(page.get_by_label("Time zone")).to_have_attribute("aria-invalid", "false")


def open_sample(page: Page, site: str) -> str:
    """Opens the sample; returns the picture of its chart."""
    page.goto(f"{site}/finance")
    page.get_by_role("button", name="A market").click()
    expect(page.locator(".chart canvas")).to_have_count(2)
    page.wait_for_function("() => document.querySelector('.chart canvas').width > 0")
    return chart_picture(page)


def wait_for_other_picture(page: Page, before: str) -> str:
    """Waits until the chart differs from ``before``; returns its picture."""
    page.wait_for_function("before => document.querySelector('.chart canvas').toDataURL() !== before", arg=before)
    return chart_picture(page)


def test_the_summary_comes_first_and_the_synthetic_truth_is_labelled(page: Page, site: str) -> None:
    open_sample(page, site)
    expect(page.locator("#result > *").nth(0)).to_contain_text("event")
    expect(page.locator("#result > *").nth(1)).to_contain_text("UTC")
    expect(page.locator("#result .rate")).to_contain_text(re.compile(r"[\d.]+ events in 1,000 rows, [\d.]+ a day"))
    # The first decision of a user is how many events are wanted.
    expect(page.locator("fieldset input").first).to_have_attribute("name", "events_per_1000_rows")
    truth = page.locator("details.truth")
    expect(truth).to_contain_text("Synthetic truth: 4 windows")
    expect(truth.locator("li").first).to_be_hidden()
    truth.locator("summary").click()
    expect(truth.locator("li")).to_have_count(4)


def test_keys_move_the_chart_and_its_position_is_announced(page: Page, site: str) -> None:
    whole = open_sample(page, site)
    chart, rows = page.get_by_role("group", name=re.compile("Chart of close")), page.locator(".events tbody tr")
    page.get_by_role("button", name="Later").focus()
    page.keyboard.press("Tab")
    expect(chart).to_be_focused()
    assert chart.evaluate("chart => getComputedStyle(chart).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")
    expect(rows.nth(0)).to_have_class("current")
    expect(rows.nth(0).get_by_role("button")).to_have_attribute("aria-current", "true")
    number = rows.count()
    status = page.get_by_role("status").filter(has_text="Event")
    expect(status).to_contain_text(f"Event 1 of {number}: 20")
    event = wait_for_other_picture(page, whole)
    page.keyboard.press("End")
    end = wait_for_other_picture(page, event)
    page.keyboard.press("ArrowLeft")
    moved = wait_for_other_picture(page, end)
    page.keyboard.press("+")
    nearer = wait_for_other_picture(page, moved)
    page.keyboard.press("Home")
    home = wait_for_other_picture(page, nearer)
    for _ in range(20):
        page.keyboard.press("-")
    # Zooming out completely shows the whole series, in which the current event is still highlighted.
    assert wait_for_other_picture(page, home) != whole
    page.keyboard.press("ArrowUp")
    expect(rows.nth(0)).to_have_class("current")
    page.keyboard.press("0")
    page.wait_for_function("before => document.querySelector('.chart canvas').toDataURL() === before", arg=whole)
    expect(page.locator(".events tr.current")).to_have_count(0)
    expect(page.get_by_role("status").filter(has_text="The whole series")).to_be_visible()


def test_nothing_is_cut_off_on_a_phone(page: Page, site: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_sample(page, site)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    frame = page.locator(".events")
    assert frame.evaluate("frame => frame.scrollWidth <= frame.clientWidth")
    for cell in page.locator(".events tbody tr").first.locator("td").all():
        box = cell.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    expect(page.locator(".events tbody td").nth(2)).to_have_attribute("data-label", "Score")
    expect(page.locator(".events tbody td").nth(5)).to_contain_text(
        re.compile(
            r"(a sudden change|than usual|a value|a new level|rows unlike|values unlike).*[\d.,]+ robust deviations"
        )
    )


def test_the_series_of_one_file_are_listed_searched_and_opened(page: Page, site: str, tmp_path: Path) -> None:
    prices = market(np.random.Generator(np.random.Philox(20)), length=400).series.target
    names = ["0700", "600519", *(f"T{number}" for number in range(10))]
    lines = ["time,ticker,close"]
    for place, name in enumerate(names):
        levels = np.where((place < 2) & (np.arange(400) >= 300), 1.5 + place, 1.0) * prices
        lines += [f"{1_700_000_000 + 300 * row},{name},{value:.2f}" for row, value in enumerate(levels.tolist())]
    path = tmp_path / "several.csv"
    path.write_text("\n".join(lines))
    page.goto(f"{site}/finance")
    page.get_by_label("Series", exact=True).set_input_files(path)
    page.get_by_role("button", name="Find anomalies").click()
    expect(page.locator("#result h2").first).to_contain_text("of 12 series")
    series = page.locator(".parts tbody tr")
    expect(series).to_have_count(12)
    strongest = [float(text.replace("–", "0")) for text in page.locator(".parts td:nth-child(3)").all_inner_texts()]
    assert strongest == sorted(strongest, reverse=True)
    current, heading = page.locator(".parts tr.current"), page.locator("#result h2").nth(1)
    first = current.get_by_role("button").inner_text()
    expect(heading).to_contain_text(first)
    page.get_by_role("button", name="Next series").click()
    second = series.nth(1).get_by_role("button").inner_text()
    expect(heading).to_contain_text(second)
    expect(page.locator(".chart")).to_have_attribute("aria-label", re.compile(f"^Chart of {second}, close"))
    page.get_by_label("Find a series").fill("0700")
    expect(series.filter(visible=True)).to_have_count(1)
    page.get_by_role("button", name="0700").click()
    expect(heading).to_contain_text("0700")
    expect(page.locator(".chart canvas")).to_have_count(2)


def test_a_long_series_is_drawn_row_by_row_when_zoomed_in(
    page: Page, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (files, several):
        monkeypatch.setattr(module, "MAX_POINTS", ROWS // 5)
    open_sample(page, site)
    thinning = page.locator(".thinning")
    expect(thinning).to_contain_text("Of every 5 rows")
    with page.expect_response(re.compile(r"rows\.bin")):
        page.locator(".events tbody tr").first.get_by_role("button").click()
    expect(thinning).to_have_text("Every row in view is drawn.")


def test_a_small_file_with_too_many_rows_for_a_prediction_becomes_a_job(
    page: Page, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = market(np.random.Generator(np.random.Philox(20)), length=ROWS)
    write_csv(tmp_path / "market.csv", generated.series, generated.windows)
    monkeypatch.setattr(service, "ROWS_PER_SECOND", 1)
    page.expected_errors.append("413")  # type: ignore[attr-defined]
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    page.goto(f"{site}/finance")
    page.get_by_label("Series", exact=True).set_input_files(tmp_path / "market.csv")
    page.get_by_role("button", name="Find anomalies").click()
    expect(page).to_have_url(re.compile(r"\?case=[0-9a-f]{32}$"))
    assert [url.removeprefix(site) for url in posted] == ["/api/finance/predict", "/api/finance/jobs"]
    expect(page.locator("[data-error]")).to_be_hidden()


def test_a_file_too_large_even_for_a_job_is_not_sent_again(page: Page, site: str, tmp_path: Path) -> None:
    page.expected_errors.append("413")  # type: ignore[attr-defined]
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    detail = "the request needs more memory than a worker may use"
    page.route("**/api/finance/predict", lambda route: route.fulfill(status=413, json={"detail": detail}))
    page.goto(f"{site}/finance")
    page.get_by_label("Series", exact=True).set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": b"1"})
    page.get_by_role("button", name="Find anomalies").click()
    expect(page.locator("[data-error]")).to_have_text(detail)
    assert [url.removeprefix(site) for url in posted] == ["/api/finance/predict"]


def test_a_label_and_its_field_stay_together_among_the_options_of_the_table(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    page.get_by_text("Format of the table").click()
    lines = page.locator(".options details label").evaluate_all("all => all.map((one) => one.getClientRects().length)")
    assert lines == [1] * 5
