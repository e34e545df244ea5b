"""The chart of a series in the finance form, drawn from values that the tests make up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

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
