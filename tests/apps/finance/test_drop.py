"""Two files dropped on a form that takes one are refused with a message."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

import shared.errors

pytestmark = pytest.mark.browser
SCRIPTS = Path(shared.errors.__file__).parent / "web" / "static"
FORM = """<!doctype html><body data-app="finance"><form data-case-form><div data-drop><input type="file" name="files">
<p data-chosen hidden></p></div><button>Go</button><button type="button" data-cancel hidden>Cancel</button>
<button type="button" data-again hidden>Again</button>
<p data-status></p><p data-error hidden></p></form>
<script type="module">import { caseForm } from "/case.js";
caseForm({ render() {} }); document.title = "ready";</script>"""
DROP = """names => {
  const transfer = new DataTransfer();
  for (const name of names) transfer.items.add(new File(["a"], name));
  document.querySelector("[data-drop]").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


def answered(route: Route) -> None:
    name = route.request.url.rpartition("/")[2]
    if name.endswith(".js"):
        route.fulfill(body=(SCRIPTS / name).read_text(encoding="utf-8"), content_type="text/javascript")
    else:
        route.fulfill(body=FORM, content_type="text/html")


def test_two_dropped_files_are_refused_with_a_message(page: Page) -> None:
    page.route("http://127.0.0.1:9/**", answered)
    page.goto("http://127.0.0.1:9/finance")
    expect(page).to_have_title("ready")
    chosen, error = page.locator("[data-chosen]"), page.locator("[data-error]")
    page.evaluate(DROP, ["one.csv"])
    expect(chosen).to_have_text("one.csv (1 kB)")
    page.evaluate(DROP, ["one.csv", "two.csv"])
    expect(error).to_contain_text("2 files were dropped and none was chosen; drop a single file")
    expect(chosen).to_be_hidden()
    page.evaluate(DROP, ["two.csv"])
    expect(chosen).to_have_text("two.csv (1 kB)")
    expect(error).to_be_hidden()
