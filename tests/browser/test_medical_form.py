"""The medical form in a browser: it lists the findings, and a click on a finding shows its slice.

The predictor returns fixed nodules, so the page is tested without a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from apps.medical.adapters.nifti import nifti
from apps.medical.outputs.slab import slab
from apps.medical.types import CTVolume, Findings
from tests.apps.medical.chests import dicom_slice, pack
from tests.browser.medical_site import AT_MM, BOX_MM, chest, medical_site, upload_and_analyse
from tests.shared.serve.echo import until

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def count_circle_pixels(page: Page) -> int:
    """The number of pixels of the slice with the colour of the circle around the current finding."""
    return page.eval_on_selector(
        ".slices canvas",
        """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) if (d[i] > 240 && d[i + 1] > 190 && d[i + 2] < 90) n += 1;
        return n; }""",
    )


def count_outline_pixels(page: Page) -> int:
    """The number of pixels of the slice with the colour of outlines."""
    return page.eval_on_selector(
        ".slices canvas",
        """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) n += d[i] > 180 && d[i + 1] < 150 && d[i + 2] > 100 && d[i + 2] < 190;
        return n; }""",
    )


def test_the_measured_voxels_are_outlined_on_request(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    row = page.locator(".findings button").first
    expect(row).to_contain_text("9.0 mm from head to feet · 405 mm³")
    expect(page.get_by_role("link", name="findings.nii.gz")).to_be_visible()
    button = page.get_by_role("button", name="Outline")
    expect(button).to_have_attribute("aria-pressed", "false")
    assert count_outline_pixels(page) == 0
    with page.expect_response(re.compile("findings.nii.gz")):
        button.click()
    until(lambda: count_outline_pixels(page) > 20, 30)  # after the file is decompressed
    page.keyboard.press("o")
    expect(button).to_have_attribute("aria-pressed", "false")
    until(lambda: count_outline_pixels(page) == 0, 30)


def test_an_outline_surrounds_its_voxels_in_downsampled_slices(page: Page, site: str) -> None:
    """The viewer's slices start at voxel (2, 2) of the scan, and each of their pixels is the mean of 2 by 2 voxels."""
    page.goto(f"{site}/medical")
    inside = page.evaluate(
        """async () => {
          const { outline } = await import("/static/medical/outline.js");
          const { statedGeometry } = await import("/static/medical/volume.js");
          const grid = (size_ijk, spacing_mm, origin_lps_mm) =>
            statedGeometry({ size_ijk, spacing_mm, origin_lps_mm, direction: [[1, 0, 0], [0, 1, 0], [0, 0, 1]] });
          const labels = { ...grid([10, 8, 4], [1, 1, 1], [-5, 0, 7]), voxels: new Uint8Array(320) };
          labels.voxels[2 * 80 + 3 * 10 + 4] = 1;
          const pen = new OffscreenCanvas(40, 30).getContext("2d");
          const shown = grid([4, 3, 4], [2, 2, 1], [-2.5, 2.5, 7]);
          const on = (slice) => [[10, 7.5], [15, 7.5], [12.5, 5], [12.5, 10], [12.5, 7.5]].map(([x, y]) =>
            pen.isPointInStroke(outline(labels, shown, slice, [10, 10, 0, 0]), x, y));
          return [on(2), on(1)];
        }"""
    )
    assert inside == [[True] * 4 + [False], [False] * 5]


def test_the_first_finding_is_shown_and_a_click_shows_another(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_role("heading", name="1 finding")).to_be_visible()
    rows = page.locator(".findings button")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("9.0 mm")
    expect(rows.first).to_contain_text("R 60.0, P 0.0, F 355.0 mm")
    expect(rows.nth(1)).to_contain_text("L 60.0, P 6.0, F 330.0 mm")
    expect(rows.first).to_have_attribute("aria-current", "true")
    canvas = page.get_by_role("application", name="Axial CT")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 10 of 20 in the file, lung window")
    assert count_circle_pixels(page) > 50
    rows.nth(1).click()
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 15 of 20 in the file, lung window")
    expect(rows.nth(1)).to_have_attribute("aria-current", "true")
    assert count_circle_pixels(page) > 50


def test_a_sample_is_analysed_as_a_job(page: Page, site: str) -> None:
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_role("heading", name="1 finding")).to_be_visible()
    assert [url.removeprefix(site) for url in posted] == ["/api/medical/jobs"]
    expect(page).to_have_url(re.compile(r"\?case=[0-9a-f]{32}$"))


def test_keys_move_through_slices_findings_and_windows(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("application", name="Axial CT")
    canvas.focus()
    for key, label in (
        ("ArrowUp", "slice 11 of 20 in the file, lung"),
        ("PageDown", "slice 6 of 20 in the file, lung"),
        ("2", "slice 6 of 20 in the file, mediastinum"),
        ("n", "slice 15 of 20 in the file, mediastinum"),
        ("n", "slice 10 of 20 in the file, mediastinum"),
        ("End", "slice 20 of 20 in the file, mediastinum"),
    ):
        page.keyboard.press(key)
        expect(canvas).to_have_attribute("aria-label", f"Axial CT, {label} window")
    assert count_circle_pixels(page) == 0
    page.keyboard.press("p")
    before = count_circle_pixels(page)
    page.keyboard.press("z")
    expect(page.get_by_role("button", name="Zoom")).to_have_attribute("aria-pressed", "true")
    assert count_circle_pixels(page) > before


def test_keys_work_everywhere_except_in_a_field(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("application", name="Axial CT")
    rows = page.locator(".findings button")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 10 of 20 in the file, lung window")
    # First without any click, then with the focus on a finding, on a window button, and on the slider.
    page.keyboard.press("ArrowUp")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 11 of 20 in the file, lung window")
    rows.nth(1).click()
    page.keyboard.press("p")
    expect(rows.first).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Bone").click()
    page.keyboard.press("n")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 15 of 20 in the file, bone window")
    page.get_by_role("slider", name="Slice").focus()
    page.keyboard.press("ArrowRight")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 16 of 20 in the file, bone window")
    page.get_by_role("button", name="Another analysis").click()
    page.get_by_label("Chest CT").focus()
    page.keyboard.press("n")
    page.keyboard.press("1")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 16 of 20 in the file, bone window")
    # A new result has a new viewer, and a key still moves by one step.
    page.get_by_role("button", name="A chest").click()
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 10 of 20 in the file, lung window")
    page.keyboard.press("ArrowUp")
    expect(canvas).to_have_attribute("aria-label", "Axial CT, slice 11 of 20 in the file, lung window")


def test_the_readout_shows_hounsfield_units_and_patient_coordinates(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("application", name="Axial CT")
    expect(canvas).to_be_visible()
    canvas.focus()
    page.keyboard.press("z")
    canvas.scroll_into_view_if_needed()  # waits until the layout is stable
    box = canvas.bounding_box()
    assert box is not None
    # With zoom, the current finding is in the centre.
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator(".slices")).to_contain_text("60 HU at R 60.0, P 0.0, F 355.0 mm")


def circle_centre_and_grey(page: Page) -> tuple[float, float, int]:
    """The centre of the current finding's circle as fractions of the image, and the grey value there."""
    x, y, grey = page.eval_on_selector(
        ".slices canvas",
        """canvas => { const { width, height } = canvas;
        const d = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        let [left, right, top, bottom] = [width, 0, height, 0];
        for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
          const i = 4 * (y * width + x);
          if (d[i] > 240 && d[i + 1] > 190 && d[i + 2] < 90) {
            [left, right] = [Math.min(left, x), Math.max(right, x)];
            [top, bottom] = [Math.min(top, y), Math.max(bottom, y)]; } }
        // The label extends the box to the right, so the circle's width is taken from its height.
        const y = (top + bottom) / 2, x = left + (bottom - top) / 2;
        return [x / width, y / height, d[4 * (Math.round(y) * width + Math.round(x))]]; }""",
    )
    return x, y, grey


ORIENTATIONS = {
    "left, back, head": (slice(None), slice(None), slice(None)),
    "right, front, head": (slice(None), slice(None, None, -1), slice(None, None, -1)),
    "right, back, feet": (slice(None, None, -1), slice(None), slice(None, None, -1)),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_right_of_the_patient_is_on_the_left_for_every_orientation_of_the_scan(
    page: Page, site: str, tmp_path: Path, orientation: str
) -> None:
    volume = chest()
    flips = ORIENTATIONS[orientation]
    signs = [-1.0 if part.step == -1 else 1.0 for part in flips[::-1]]
    first = [n - 1 if sign < 0 else 0 for n, sign in zip(volume.size_ijk, signs, strict=True)]
    x, y, z = volume.to_lps_mm(first).tolist()
    flipped = CTVolume(
        voxels_zyx=volume.voxels_zyx[flips].copy(),
        spacing_mm=volume.spacing_mm,
        origin_lps_mm=(x, y, z),
        direction=np.diag(signs),
    )
    (tmp_path / "scan.nii.gz").write_bytes(nifti(flipped))
    upload_and_analyse(page, site, tmp_path / "scan.nii.gz")
    rows = page.locator(".findings button")
    expect(rows.first).to_contain_text("R 60.0, P 0.0, F 355.0 mm")
    x, y, grey = circle_centre_and_grey(page)
    assert 0.2 < x < 0.4 and 0.4 < y < 0.6, "the right lung's nodule is on the left, halfway between front and back"
    assert grey > 200, "the marked nodule is bright"
    rows.nth(1).click()
    x, _, grey = circle_centre_and_grey(page)
    assert 0.6 < x < 0.8 and grey > 200


def test_a_click_shows_a_position_and_a_drag_measures(page: Page, site: str) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("application", name="Axial CT")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    # The image shows the lungs and their surroundings, scaled to fit its frame.
    slab_volume = slab(chest(), Findings(nodules=(), operating_score=0.5, lung_box_lps_mm=BOX_MM))
    wide, high = slab_volume.size_ijk[0] * 3.0, slab_volume.size_ijk[1] * 3.0
    scale = min(box["width"] / wide, box["height"] / high)
    left, top = box["x"] + (box["width"] - wide * scale) / 2, box["y"] + (box["height"] - high * scale) / 2
    across, down, _ = (slab_volume.to_index_ijk(AT_MM[0]) + 0.5) * 3.0
    readout = page.locator(".slices")
    page.mouse.click(left + across * scale, top + down * scale)
    expect(readout).to_contain_text(re.compile(r"60 HU at R (59|60)\.\d, [AP] 0\.\d, F 355\.0 mm"))
    page.keyboard.press("Escape")
    page.mouse.move(left + 60 * scale, top + 60 * scale)
    page.mouse.down()
    page.mouse.move(left + 160 * scale, top + 60 * scale, steps=4)
    page.mouse.up()
    expect(readout).to_contain_text(re.compile(r"(99\.[5-9]|100\.[0-5]) mm measured"))
    page.keyboard.press("Escape")
    expect(readout).not_to_contain_text("measured")


def test_findings_can_be_reordered_and_the_keys_follow_the_order(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    rows = page.locator(".findings button")
    expect(rows.first).to_contain_text("R 60.0")
    page.get_by_label("Order:").select_option("from head to feet")
    expect(rows.first).to_contain_text("L 60.0")
    expect(page.get_by_role("list", name="Findings, from head to feet")).to_be_visible()
    expect(rows.nth(1)).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Lung", exact=True).focus()
    page.keyboard.press("p")
    expect(rows.first).to_have_attribute("aria-current", "true")


def test_the_limits_of_the_result_are_stated_beside_it(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    result = page.locator("#result")
    expect(result).to_contain_text("unmarked regions are not cleared. The model was trained on synthetic chests only")
    expect(result).to_contain_text("9.5 × 8.5 mm axial · 9.0 mm from head to feet")
    page.get_by_role("button", name="Another analysis").click()
    page.get_by_label("with a score of at least").fill("1")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_role("heading", name="No nodule found")).to_be_visible()
    expect(result).to_contain_text("This does not mean that there are no nodules.")
    expect(page.get_by_role("application", name="Axial CT")).to_be_visible()


@pytest.mark.parametrize("size", [(1280, 800), (1024, 768), (390, 844)], ids=lambda size: str(size[0]))
def test_the_heading_and_the_whole_slice_are_visible(page: Page, site: str, size: tuple[int, int]) -> None:
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_role("heading", name="1 finding")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("application", name="Axial CT")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_in_a_low_window_the_measures_of_a_finding_fit_on_one_line(page: Page, site: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    line = (
        page.locator(".findings button .where").filter(has_text="9.5 × 8.5 mm axial · 9.0 mm from head to feet").first
    )
    expect(line).to_be_visible()
    assert line.evaluate("node => node.clientHeight") < 30
    expect(page.get_by_role("application", name="Axial CT")).to_be_in_viewport(ratio=1)


def test_labels_of_neighbouring_marks_do_not_overlap(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    marks = [{"x": x, "y": y, "radius": 20, "width": 70} for x, y in ((300, 300), (306, 304), (296, 296), (690, 300))]
    places = page.evaluate(
        """async marks => (await import("/static/medical/labels.js")).placeLabels(marks, 18, [720, 560])""", marks
    )
    for n, (label, mark) in enumerate(zip(places, marks, strict=True)):
        assert label["x"] >= 0 and label["x"] + mark["width"] <= 720
        assert abs(label["x"] - mark["x"]) < 120 and abs(label["y"] - mark["y"]) < 120
        for earlier_label in places[:n]:
            apart = abs(label["x"] - earlier_label["x"]) > 70 or abs(label["y"] - earlier_label["y"]) >= 18
            assert apart, places


def test_a_long_series_uid_does_not_widen_the_page(page: Page, site: str, tmp_path: Path) -> None:
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001." + "7" * 27
    scan = chest()
    parts = {f"IM{k}": dicom_slice(scan, k, SeriesInstanceUID=uid) for k in range(len(scan.voxels_zyx))}
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{site}/medical")
    page.locator("input[type=file]").first.set_input_files(pack(tmp_path, parts))
    page.get_by_role("button", name="Find nodules").click()
    expect(page.get_by_text(uid)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_findings_are_ordered_by_score_and_the_score_is_explained(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_label("Order:")).to_have_value("highest score first")
    expect(page.get_by_text("not that it is malignant")).to_be_visible()


def test_the_overview_lists_a_case_with_its_size_and_findings(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_role("heading", name="1 finding")).to_be_visible()
    page.goto(site)
    expect(page.locator(".recent a").first).to_contain_text("1 finding, 100 × 80 × 20 voxels (nii.gz file")


def test_progress_and_errors_are_scrolled_into_view(page: Page, site: str, tmp_path: Path) -> None:
    page.expected_errors += ["422"]  # type: ignore[attr-defined]
    page.set_viewport_size({"width": 1280, "height": 400})
    page.goto(f"{site}/medical")
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    page.get_by_label("Chest CT").set_input_files(tmp_path / "scan.nii.gz")
    held_routes: list[Route] = []
    page.route(re.compile("/api/medical/(predict|jobs)$"), lambda route: held_routes.append(route))
    # Scroll until the button is at the bottom edge of the window.
    page.get_by_role("button", name="Find nodules").evaluate(
        "button => { button.scrollIntoView({ block: 'end' }); button.click(); }"
    )
    expect(page.locator("[data-status]")).to_have_text(re.compile("Working|Uploaded|Uploading"))
    expect(page.locator("[data-status]")).to_be_in_viewport(ratio=1)
    held_routes[0].continue_()
    expect(page.locator("[data-error]")).to_contain_text("scan.nii.gz")
    expect(page.locator("[data-error]")).to_be_in_viewport(ratio=1)
