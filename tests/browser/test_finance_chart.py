"""The finance form on values that the tests make up: the chart of a series, and an event of all columns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), warm=False, device="cpu", workers=0)
    with serving(create_app(settings, {"finance": find("finance")})) as address:
        yield address


@pytest.mark.parametrize(("middle", "size"), [(0, 2.5e6), (18_000, 0.004)])
def test_the_labels_of_the_values_are_not_cut_off(page: Page, site: str, middle: float, size: float) -> None:
    """A desk's profit and loss in millions, and an index whose labels are long once zoomed in."""
    page.goto(f"{site}/finance")
    found = page.evaluate(
        """async ([middle, size]) => {
        const { drawChart } = await import("/static/finance/chart.js");
        const labels = [];
        const write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, x, ...others) {
            const start = this.getTransform().e + x - this.measureText(text).width;
            if (this.textAlign === "right") labels.push([text, start]);
            return write.call(this, text, x, ...others);
        };
        const frame = document.querySelector("#result").appendChild(document.createElement("div"));
        const times = Array.from({ length: 300 }, (_, row) => 1.7e9 + 60 * row);
        const values = times.map((_, row) => middle + size * Math.sin(row / 20) * (row < 200 ? 1 : 0.001));
        const score = times.map(() => 0.1), thresholds = times.map(() => 0.3);
        const band = { low: values, median: values, high: values };
        const data = { column: "pnl", times, values, ...band, score, thresholds, threshold: 0.3 };
        const chart = drawChart(frame, data, { events: [], interval: 60 });
        const next = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        await next();
        const [start, end] = [250, 252].map((row) => new Date(1000 * times[row]).toISOString());
        chart.show({ start, end });
        await next();
        return { labels, edges: [...frame.querySelectorAll(".u-over")].map((plot) => plot.offsetLeft) };
        }""",
        [middle, size],
    )
    assert len(found["labels"]) > 8 and min(left for _, left in found["labels"]) >= 0, found["labels"]
    assert len({*found["edges"]}) == 1, "the two charts have the same times below each other"


def test_an_event_of_all_columns_has_no_value_of_another_column(page: Page, site: str) -> None:
    day = "2024-01-02T00:00:00Z"
    event = {"series": "all columns", "start": day, "end": day, "peak": day, "score": 0.9, "observed": 3.0596}
    event |= {
        "expected": 3.061,
        "low": 2.97,
        "high": 3.17,
        "direction": "inside",
        "channel": "joint",
        "columns": ["2Y"],
    }
    event |= {"reason": "columns do not move together as before: 2Y", "size": None, "deviations": None}
    facts = {"rows": 2, "missing": 0, "start": "2024-01-01T00:00:00Z", "end": day}
    series = {**facts, "name": "a.csv", "series_column": "column", "column": "1Y", "columns": ["1Y", "2Y"], "notes": []}
    part = {**facts, "name": "all columns", "events": 1, "strongest": 0.9, "interval_s": 86400}
    result = {"events": [event], "series": series, "parts": [part], "threshold": 0.3, "score": "", "model": "a"}
    case = {"case": "1", "url": "/api/finance/cases/1", "result": result, "files": {"series.json": "/series.json"}}
    lines = {name: [3.0, 3.1] for name in ("values", "low", "median", "high", "score", "thresholds")}
    drawing = {"parts": [{"column": "1Y", "times": [1.7e9, 1.7e9 + 86400], **lines, "threshold": 0.3}]}
    page.route("**/api/finance/cases/1", lambda route: route.fulfill(json=case))
    page.route("**/api/finance/cases/1/review", lambda route: route.fulfill(json={"reviewer": None, "reviews": []}))
    page.route("**/series.json", lambda route: route.fulfill(json=drawing))
    page.goto(f"{site}/finance?case=1")
    summary = page.locator("#result .finding")
    expect(summary).to_have_text("all columns, 2024-01-02 UTC: columns do not move together as before: 2Y; score 0.9.")
    expect(page.locator(".events tbody td").nth(3)).to_have_text("–")
    expect(page.locator(".events tbody td").nth(4)).to_have_text("–")


def test_a_sudden_change_is_drawn_between_its_two_rows(page: Page, site: str) -> None:
    page.goto(f"{site}/finance")
    found = page.evaluate(
        """async () => {
        const { inView } = await import("/static/finance/view.js");
        const number = 1000;
        const names = ["times", "values", "thresholds", "low", "median", "high", "score"];
        const at = (step) => ({ ...Object.fromEntries(names.map((name) => [name, []])), step });
        const rows = at(1), thinned = at(11);
        for (const drawn of [rows, thinned]) for (let row = 0; row < number; row += drawn.step) {
            drawn.times.push(60 * row);
            drawn.values.push(row < 505 ? 1 : 2);
            drawn.score.push(row === 505 ? 1 : 0);
            for (const name of ["thresholds", "low", "median", "high"]) drawn[name].push(0);
        }
        rows.values[700] = NaN;
        const ramp = (drawn) => {
            const after = drawn.values.findIndex((value) => value === 2);
            return [drawn.times[after - 1], drawn.times[after]];
        };
        const near = inView(thinned, rows, 60 * 480, 60 * 530), far = inView(thinned, rows, 0, 60 * number, 100);
        const sorted = (drawn) => drawn.times.every((time, row) => row === 0 || time > drawn.times[row - 1]);
        const hole = inView(thinned, rows, 60 * 690, 60 * 710);
        return {
            before: ramp(thinned), near: ramp(near), ends: near.times.at(-1), every: [near.every, far.every],
            far: far.times.includes(60 * 505), sorted: [sorted(near), sorted(far)],
            gap: hole.values[hole.times.indexOf(60 * 700)],
        };
        }"""
    )
    assert found["before"] == [60 * 495, 60 * 506], "in the thinned series the change is a ramp of eleven minutes"
    assert found["near"] == [60 * 504, 60 * 505] and found["every"] == [1, 10]
    assert found["far"] and found["sorted"] == [True, True] and found["gap"] is None and found["ends"] == 60 * 990
