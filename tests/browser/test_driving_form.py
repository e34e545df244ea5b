"""The driving form in a browser: it shows the boxes of the answer in all four views.

The predictor returns the labels of synthetic scenes, so the page is tested without a model.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from apps.driving.adapters import kitti
from apps.driving.datasets.synth.export import write_frame
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.outputs import picture, view
from apps.driving.types import Boxes3D, Frame
from shared.app import App, Sample
from shared.deploy.predictor import Decoded, Request, Response
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import until, write_artifact

pytestmark = pytest.mark.browser
PAGES = Path(__file__).parents[2] / "apps" / "driving" / "pages"


class LabelsAsPredictions:
    """Predictor and codec that return the labels of each frame as its boxes."""

    def decode(self, request: Request) -> Decoded[Frame]:
        return Decoded(inputs=tuple(kitti.read_files(request.files)), options=None)

    def predict(self, batch: Sequence[Frame], options: object = None) -> Sequence[Frame]:
        return batch

    def encode(self, decoded: Decoded[Frame], outputs: Sequence[Frame]) -> Response:
        boxes_of_frames = []
        for frame in outputs:
            truth = frame.truth or Boxes3D.empty()
            boxes = truth.take(np.argsort(truth.centre_lidar_m[:, 0]))
            boxes_of_frames.append(replace(boxes, scores=np.linspace(0.95, 0.5, len(boxes), dtype=np.float32)))
        return Response(
            result={
                "frames": [{"name": frame.name, "model": "labels"} for frame in outputs],
                "versions": {"labels": 1},
            },
            picture=picture.draw(outputs[0], boxes_of_frames[0]),
            files=view.files(list(outputs), boxes_of_frames),
        )


@dataclass(frozen=True)
class Site:
    address: str
    frames: Path
    truths: list[Boxes3D]


def _fail_if_called(*_: object) -> None:
    raise AssertionError("the server neither trains nor reproduces")


def write_two_frames(folder: Path) -> list[Boxes3D]:
    """Writes two synthetic frames; returns the ground truth of each."""
    truths = []
    for number, seed in enumerate((7, 8)):
        frame = scene(np.random.default_rng(seed), sensors=Sensors(image_scale=0.5), kind="street")
        write_frame(frame, folder, f"{number:06}")
        assert frame.truth is not None
        truths.append(frame.truth)
    return truths


def _first_frame(folder: Path) -> list[Path]:
    return [next(folder.glob(f"{part}/000000.*")) for part in ("velodyne", "image_2", "calib", "label_2")]


def _synthetic_frame(frames: Path) -> Path:
    """Copies the first frame under the name ``synthetic``, which the application gives to its generated scene."""
    root = frames.parent / "made"
    for file in _first_frame(frames):
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.parent.name / f"synthetic{file.suffix}")
    return root


def driving_app(root: Path) -> App:
    """The driving application, whose samples are the two frames in ``root / "frames"``."""
    shutil.copytree(PAGES, root / "pages")
    write_artifact(root / "weights", 1, "driving", "labels")
    frames = root / "frames"
    return App(
        name="driving",
        title="Objects in 3D",
        summary="Finds cars, pedestrians and cyclists.",
        notice="For tests only.",
        root=root,
        models=("labels",),
        recipes=_fail_if_called,  # type: ignore[arg-type]
        dense=_fail_if_called,  # type: ignore[arg-type]
        predictor=lambda artifacts, device: LabelsAsPredictions(),
        codec=lambda predictor: predictor,  # type: ignore[return-value, arg-type]
        samples=lambda: [
            Sample(
                name="one", title="One frame", synthetic=True, source="made here", files=lambda _: _first_frame(frames)
            ),
            Sample(
                name="own", title="Made", synthetic=True, source="made here", files=lambda _: [_synthetic_frame(frames)]
            ),
            Sample(name="two", title="Two frames", synthetic=True, source="made here", files=lambda _: [frames]),
        ],
        reproduce=_fail_if_called,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("driving")
    app, truths = driving_app(root), write_two_frames(root / "frames")
    with serving(create_app(Settings(store=root / "store", warm=False, device="cpu"), {"driving": app})) as address:
        yield Site(address, root / "frames", truths)


def count_white_pixels(page: Page, selector: str) -> int:
    """The number of nearly white pixels of a canvas; the selected box is white."""
    return page.eval_on_selector(
        selector,
        """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) if (Math.min(d[i], d[i + 1], d[i + 2]) > 250) n += 1;
        return n; }""",
    )


def test_a_sample_is_shown_in_four_linked_views(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    rows = page.locator(".objects tbody tr")
    expect(rows.first).to_be_visible()
    box_2d = site.truths[0].box_2d
    assert box_2d is not None
    expect(rows).to_have_count(int((~np.isnan(box_2d[:, 0])).sum()))
    expect(page.locator("h2.found")).to_contain_text("car")
    expect(page.locator(".figure.cloud canvas")).to_be_visible()
    plan = "canvas[aria-label^='Objects and LiDAR']"
    before = count_white_pixels(page, plan)
    rows.nth(2).hover()
    expect(rows.nth(2)).to_have_attribute("aria-selected", "true")
    until(lambda: count_white_pixels(page, plan) > before)
    # The keyboard reaches the rows too.
    rows.nth(0).get_by_role("button").focus()
    expect(rows.nth(0)).to_have_attribute("aria-selected", "true")


def test_a_click_on_a_row_selects_it_and_a_click_on_the_background_deselects(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    rows = page.locator(".objects tbody tr")
    selected = page.locator(".objects tr[aria-selected=true]")
    rows.nth(1).click()
    expect(selected).to_have_count(1)
    image = page.locator("canvas[aria-label^='Camera']")
    # A click on the background clears the selection.
    image.click(position={"x": 5, "y": 5})
    expect(selected).to_have_count(0)


def test_a_button_switches_to_another_frame(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="Two frames").click()
    expect(page.get_by_role("group", name="Frames").get_by_role("button")).to_have_count(2)
    first = page.locator("h2.found").inner_text()
    page.get_by_role("button", name="000001").click()
    expect(page.locator("h2.found")).not_to_have_text(first)
    expect(page.get_by_role("button", name="000001")).to_have_attribute("aria-pressed", "true")


def test_single_files_are_accepted_and_a_broken_file_is_refused(page: Page, site: Site, tmp_path: Path) -> None:
    files = _first_frame(site.frames)[:3]
    page.goto(f"{site.address}/driving")
    page.get_by_label("Sweep or image").set_input_files(files)
    page.get_by_role("button", name="Find objects").click()
    expect(page.locator("h2.found")).to_have_text("Nothing was found in this frame.")
    broken = tmp_path / "000001.bin"
    broken.write_bytes(b"\0" * 30)
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    page.get_by_role("button", name="Another analysis").click()
    page.get_by_label("Sweep or image").set_input_files([broken])
    page.get_by_role("button", name="Find objects").click()
    expect(page.get_by_role("alert")).to_contain_text("000001.bin has 30 bytes, not a multiple of 16")


def test_without_webgl_the_other_views_still_work(page: Page, site: Site) -> None:
    page.expected_errors.append("Error creating WebGL context")  # type: ignore[attr-defined]
    page.add_init_script(
        """const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
          return kind.startsWith("webgl") ? null : get.call(this, kind, ...rest); };"""
    )
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    expect(page.get_by_text("cannot show the point cloud in 3D")).to_be_visible()
    assert count_white_pixels(page, "canvas[aria-label^='Objects and LiDAR']") > 0
    expect(page.locator(".objects tbody tr").first).to_be_visible()


def test_the_ground_truth_of_a_synthetic_scene_is_shown_and_labelled(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="Made").click()
    truth = page.get_by_role("checkbox", name="Synthetic truth")
    expect(truth).to_be_checked()
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    labels = page.get_by_role("checkbox", name="Labels that came with the frame")
    expect(labels).not_to_be_checked()
    plan = "canvas[aria-label^='Objects and LiDAR']"
    before = count_white_pixels(page, plan)
    labels.check()
    # The predicted boxes equal the labels, so the labels' white dashes are visible only if they are drawn on top.
    number = len(site.truths[0])
    until(lambda: count_white_pixels(page, plan) > before + 40 * number)


def test_the_form_says_how_many_points_are_drawn(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    expect(page.get_by_text(re.compile(r"straight ahead\. [\d,]+ LiDAR points\.$"))).to_be_visible()
    thin = view.thin
    monkeypatch.setattr(view, "thin", lambda points: thin(points, 1000))
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="Two frames").click()
    expect(
        page.get_by_text(re.compile(r"straight ahead\. (1,000|\d{3}) of [\d,]+ LiDAR points are drawn\.$"))
    ).to_be_visible()


def stable_screenshot(canvas: Locator) -> bytes:
    """A screenshot of a canvas, taken once two in a row are the same."""
    previous = None
    while (current := canvas.screenshot()) != previous:
        previous = current
    return current


@pytest.mark.parametrize("view", ["Objects and LiDAR", "Point cloud with"])
def test_keys_move_a_view_and_step_through_its_boxes(page: Page, site: Site, view: str) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    canvas = page.locator(f"canvas[aria-label^='{view}']")
    expect(canvas).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.mouse.move(0, 0)  # it may be over a row of the table, which chooses its box
    canvas.press("Home")
    whole = before = stable_screenshot(canvas)
    for key in ("ArrowLeft", "+", "ArrowUp"):
        canvas.press(key)
        now = stable_screenshot(canvas)
        assert now != before, key
        before = now
    canvas.press("Home")
    assert stable_screenshot(canvas) == whole
    rows = page.locator(".objects tbody tr")
    canvas.press("Tab")
    canvas.press("Tab")
    expect(rows.nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".objects [role=status]")).to_contain_text("2 of")
    canvas.press("Shift+Tab")
    expect(rows.nth(0)).to_have_attribute("aria-selected", "true")
    expect(canvas).to_be_focused()
    # The focus is not trapped: after Escape, and after the last box, Tab leaves the canvas.
    canvas.press("Escape")
    expect(page.locator(".objects tr[aria-selected=true]")).to_have_count(0)
    canvas.press("Tab")
    expect(canvas).not_to_be_focused()
    canvas.focus()
    for _ in range(rows.count() + 1):
        page.keyboard.press("Tab")
    expect(canvas).not_to_be_focused()


def test_the_focus_is_visible(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    canvas = page.locator("canvas[aria-label^='Objects and LiDAR']")
    expect(canvas).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.get_by_text("Filter").focus()
    page.keyboard.press("Tab")
    expect(canvas).to_be_focused()
    assert canvas.evaluate("canvas => getComputedStyle(canvas).outlineStyle") == "solid"


def test_the_form_names_the_model_that_answered(page: Page, site: Site) -> None:
    page.goto(f"{site.address}/driving")
    page.get_by_role("button", name="One frame").click()
    expect(page.get_by_text("Model: labels version 1.", exact=True)).to_be_visible()
