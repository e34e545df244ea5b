"""The pages in a browser: the overview of the real server, and the standard form of the test application ``echo``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import Echo, make_app

pytestmark = pytest.mark.browser


@pytest.fixture
def echo() -> Echo:
    predictor = Echo()
    predictor.gate.set()
    return predictor


@pytest.fixture
def address(tmp_path: Path, echo: Echo) -> Iterator[str]:
    app: App = make_app(tmp_path / "echo", echo)
    settings = Settings(store=tmp_path / "store", warm=False, device="cpu", max_upload_bytes=2_000_000)
    with serving(create_app(settings, {"echo": app})) as server_address:
        yield server_address


def test_the_overview_links_to_every_application(page: Page, server: str) -> None:
    page.goto(server)
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    names = [link.get_attribute("href") for link in page.locator("article h2 a").all()]
    assert names, "no application is installed"
    for name in names:
        page.goto(f"{server}{name}")
        expect(page.locator("nav a[aria-current=page]")).to_have_attribute("href", str(name))
        expect(page.get_by_role("note")).to_be_visible()
        expect(page.locator("input[type=file][name=files]")).to_be_visible()


def test_the_api_documentation_works_without_internet_access(page: Page, server: str) -> None:
    page.goto(f"{server}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    page.locator("#operations-Open_Inference_Protocol-oip_server").get_by_role("button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text('"binary_tensor_data"')


def test_a_file_is_chosen_and_analysed_and_its_case_reopened(page: Page, address: str, tmp_path: Path) -> None:
    (tmp_path / "数字.csv").write_text("4,5")
    page.goto(f"{address}/echo")
    page.get_by_label("Files").set_input_files(tmp_path / "数字.csv")
    expect(page.locator("[data-chosen]")).to_have_text("数字.csv (1 kB)")
    page.get_by_role("button", name="Analyse").click()
    result = page.get_by_role("region", name="Result")
    expect(result.locator("pre")).to_contain_text("10")
    expect(result).to_be_focused()
    expect(page).to_have_url(re.compile(r"\?case=[0-9a-f]{32}$"))
    expect(result.get_by_role("img")).to_have_js_property("complete", True)
    page.reload()
    expect(result.locator("pre")).to_contain_text("10")
    with page.expect_download() as download:
        result.get_by_role("link", name="doubled.csv").click()
    assert Path(download.value.path()).read_text() == "8.0\n10.0"
    page.goto(address)
    page.get_by_role("link", name="数字.csv").click()
    expect(result.locator("pre")).to_contain_text("10")


def test_a_result_of_an_application_without_its_own_reviews_can_be_accepted(page: Page, address: str) -> None:
    page.goto(f"{address}/echo")
    page.get_by_role("button", name="Three numbers").click()
    with page.expect_response(lambda response: response.request.method == "PUT"):
        page.get_by_label("Accept the result").check()
    page.reload()
    expect(page.get_by_label("Accept the result")).to_be_checked()
    expect(page.locator(".review")).to_contain_text("1 accepted")


def test_a_case_is_deleted_after_its_user_confirms_it(page: Page, address: str) -> None:
    page.goto(f"{address}/echo")
    page.get_by_role("button", name="Three numbers").click()
    expect(page).to_have_title(re.compile(r"^three\.csv, \d{4}-\d\d-\d\d \d\d:\d\d UTC · Echo · Trivium$"))
    page.get_by_text("Reviewer and note").click()
    page.get_by_label("Reviewer", exact=True).fill("Ada")
    page.get_by_label("Accept the result").check()
    expect(page.locator(".review")).to_contain_text("1 accepted")
    button, dialog = page.get_by_role("button", name="Delete this case"), page.get_by_role("dialog")
    button.focus()
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("three.csv")
    expect(dialog).to_contain_text("with all files and reviews that the server has of it. It cannot be undone.")
    expect(dialog.get_by_role("status")).to_have_text("It has been reviewed by Ada.")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    button.click()
    page.route("**/cases/*", lambda route: route.fulfill(status=503, json={"detail": "the server is being shut down"}))
    page.expected_errors.append("503")  # type: ignore[attr-defined]
    dialog.get_by_role("button", name="Delete the case").click()
    expect(dialog.get_by_role("alert")).to_have_text("The case could not be deleted: the server is being shut down.")
    page.unroute("**/cases/*")
    dialog.get_by_role("button", name="Delete the case").click()
    expect(page.locator("[data-status]")).to_have_text("The case was deleted.")
    expect(page.get_by_label("Files")).to_be_focused()
    expect(page.get_by_role("region", name="Result")).to_be_empty()
    expect(page).to_have_url(f"{address}/echo")
    expect(page).to_have_title("Echo · Trivium")
    page.get_by_role("link", name="All cases").click()
    expect(page.locator("main")).to_contain_text("There is no case yet.")


def test_the_form_works_with_the_keyboard_alone_and_announces_its_status(page: Page, address: str, echo: Echo) -> None:
    page.goto(f"{address}/echo")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    sample = page.get_by_role("button", name="Three numbers")
    for _ in range(20):
        page.keyboard.press("Tab")
        if sample.evaluate("node => node === document.activeElement"):
            break
    expect(sample).to_be_focused()
    echo.gate.clear()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Working …")
    expect(page.get_by_role("button", name="Analyse")).to_be_disabled()
    echo.gate.set()
    expect(page.get_by_role("region", name="Result").locator("pre")).to_contain_text("6")
    expect(page.get_by_role("status")).to_have_text("")


def test_a_request_can_be_cancelled(page: Page, address: str, echo: Echo) -> None:
    page.goto(f"{address}/echo")
    echo.gate.clear()
    sample = page.get_by_role("button", name="Three numbers")
    sample.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    # The page asks before it is left, because the analysis would be lost.
    with page.expect_event("dialog") as dialog_info:
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.close(run_before_unload=True)
    assert dialog_info.value.type == "beforeunload"
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Cancelled.")
    echo.gate.set()
    expect(sample).to_be_enabled()
    expect(sample).to_be_focused()


def test_errors_are_shown_on_the_page(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}/echo")
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("alert")).to_have_text("Choose a file or a sample first.")
    files = page.get_by_label("Files")
    expect(files).to_have_attribute("aria-invalid", "true")
    expect(files).to_have_accessible_description(re.compile("Choose a file or a sample first."))
    (tmp_path / "bad.csv").write_text("x")
    (tmp_path / "large.csv").write_bytes(b"1," * 1_500_000)
    page.get_by_label("Files").set_input_files(tmp_path / "large.csv")
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("alert")).to_contain_text("larger (3.0 MB) than this server accepts (2.0 MB)")
    expect(files).to_be_focused()
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    page.get_by_label("Files").set_input_files(tmp_path / "bad.csv")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("alert")).to_contain_text("bad.csv is not a CSV of numbers")
    page.expected_errors.append("404")  # type: ignore[attr-defined]
    page.goto(f"{address}/echo?case=none")
    expect(page.get_by_role("alert")).to_have_text("echo has no case 'none'")
    page.goto(f"{address}/nowhere")
    expect(page.get_by_role("alert")).to_contain_text("/nowhere")


def test_files_and_folders_can_be_dropped(page: Page, address: str) -> None:
    page.goto(f"{address}/echo")
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["1,2"], "a.csv"));
          transfer.items.add(new File(["3"], "b.csv"));
          const zone = document.querySelector("[data-drop]");
          for (const kind of ["dragover", "drop"]) {
            zone.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
          }
        }"""
    )
    expect(page.locator("[data-chosen]")).to_contain_text("2 files")
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("region", name="Result").locator("pre")).to_contain_text("6")


def test_the_page_handles_dragged_files_everywhere_but_not_dragged_text(page: Page, address: str) -> None:
    page.goto(f"{address}/echo")
    is_handled = page.evaluate(
        """() => ["file", "text"].map((kind) => {
          const transfer = new DataTransfer();
          if (kind === "file") transfer.items.add(new File(["1"], "a.csv"));
          else transfer.setData("text/plain", "0.5");
          const drag = new DragEvent("dragover", { dataTransfer: transfer, bubbles: true, cancelable: true });
          return !document.body.dispatchEvent(drag);
        })"""
    )
    assert is_handled == [True, False]


def test_beside_a_result_the_form_collapses_to_one_button(page: Page, address: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    page.goto(f"{address}/echo")
    page.get_by_label("Files").set_input_files(tmp_path / "a.csv")
    page.get_by_role("button", name="Analyse").click()
    result, chosen = page.get_by_role("region", name="Result"), page.locator("[data-chosen]")
    expect(result.locator("pre")).to_contain_text("doubled")
    expect(page.get_by_label("Files")).to_be_hidden()
    page.reload()
    expect(result.locator("pre")).to_contain_text("doubled")
    expect(page.get_by_label("Files")).to_be_hidden()
    page.get_by_role("button", name="Another analysis").click()
    expect(page.get_by_label("Files")).to_be_focused()
    expect(page.get_by_role("button", name="Another analysis")).to_be_hidden()
    expect(chosen).to_be_hidden()
    page.expected_errors.append("404")  # type: ignore[attr-defined]
    page.goto(f"{address}/echo?case=none")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Files")).to_be_visible()


def test_no_page_is_wider_than_a_phone(page: Page, server: str) -> None:
    page.set_viewport_size({"width": 320, "height": 568})  # also 1280 pixels at 400 %, as WCAG 2.2, 1.4.10 asks
    for path in ("/", "/docs", "/medical", "/medical/cases", "/driving", "/finance"):
        page.goto(server + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, path


def test_file_options_and_button_are_in_view_on_a_laptop(page: Page, server: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 600})  # what a browser leaves of 1280 by 720 pixels
    for app in ("medical", "driving", "finance"):
        page.goto(f"{server}/{app}")
        for part in ("input[type=file][name=files]", ".options", "button[type=submit]"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)


def test_the_browser_has_webgl_2(page: Page, server: str) -> None:
    page.goto(server)
    assert page.evaluate("!!document.createElement('canvas').getContext('webgl2')")


def test_a_large_file_becomes_a_job_whose_progress_survives_a_reload(
    page: Page, address: str, echo: Echo, tmp_path: Path
) -> None:
    (tmp_path / "large.csv").write_text(",".join(["7"] * 1000))
    echo.gate.clear()
    page.goto(f"{address}/echo")
    page.get_by_label("Files").set_input_files(tmp_path / "large.csv")
    page.get_by_role("button", name="Analyse").click()
    status = page.locator("[data-status]")
    expect(status).to_contain_text("Doubling, part 1 of 2")
    expect(page).to_have_url(re.compile(r"\?job=[0-9a-f]{32}$"))
    page.reload()
    expect(status).to_contain_text("Doubling, part 1 of 2")
    expect(page.get_by_role("button", name="Analyse")).to_be_disabled()
    echo.gate.set()
    result = page.get_by_role("region", name="Result")
    expect(result.locator("pre")).to_contain_text("14")
    expect(page).to_have_url(re.compile(r"\?case=[0-9a-f]{32}$"))
    expect(status).to_have_text("")


def test_a_job_can_be_cancelled_and_a_failed_job_says_why(page: Page, address: str, echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "large.csv").write_text(",".join(["7"] * 1000))
    (tmp_path / "bad.csv").write_text("seven," * 500)
    echo.gate.clear()
    page.goto(f"{address}/echo")
    page.get_by_label("Files").set_input_files(tmp_path / "large.csv")
    page.get_by_role("button", name="Analyse").click()
    expect(page.locator("[data-status]")).to_contain_text("Doubling")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Analyse")).to_be_enabled()
    echo.gate.set()
    page.get_by_label("Files").set_input_files(tmp_path / "bad.csv")
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("alert")).to_contain_text("the file is not a CSV of numbers")


def test_the_back_button_shows_the_previous_case(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}/echo")
    result = page.get_by_role("region", name="Result")
    for number in ("1", "7"):
        (tmp_path / f"{number}.csv").write_text(number)
        if number == "7":
            page.get_by_role("button", name="Another analysis").click()
        page.get_by_label("Files").set_input_files(tmp_path / f"{number}.csv")
        page.get_by_role("button", name="Analyse").click()
        expect(result.locator("pre")).to_contain_text(str(2 * int(number)))
    page.go_back()
    expect(result.locator("pre")).to_contain_text("2")
    expect(result.locator("pre")).not_to_contain_text("14")
    page.go_forward()
    expect(result.locator("pre")).to_contain_text("14")


def test_a_job_reports_a_lost_connection_and_continues_when_the_server_is_back(
    page: Page, address: str, echo: Echo, tmp_path: Path
) -> None:
    (tmp_path / "large.csv").write_text(",".join(["7"] * 1000))
    echo.gate.clear()
    page.expected_errors.append("ERR_")  # type: ignore[attr-defined]
    page.goto(f"{address}/echo")
    page.route("**/events", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Files").set_input_files(tmp_path / "large.csv")
    page.get_by_role("button", name="Analyse").click()
    status = page.locator("[data-status]")
    expect(status).to_have_text("The server cannot be reached. Trying again …")
    page.unroute("**/events")
    expect(status).to_contain_text("Doubling")
    echo.gate.set()
    expect(page.get_by_role("region", name="Result").locator("pre")).to_contain_text("14")


def test_a_case_that_cannot_be_loaded_shows_what_to_do(page: Page, address: str) -> None:
    page.expected_errors.append("ERR_")  # type: ignore[attr-defined]
    page.route("**/cases/*", lambda route: route.abort("connectionrefused"))
    page.goto(f"{address}/echo?case=any")
    expect(page.get_by_role("alert")).to_have_text(
        "The server could not be reached. Is it still running? Reload the page to try again."
    )
