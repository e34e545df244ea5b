"""The medical form in a browser: findings first, and a click brings up their slice.

The predictor here answers with known nodules, so that the page is tested apart from any model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from apps.medical.app import app as medical
from apps.medical.data.nifti import nifti
from apps.medical.data.source import read_volume
from apps.medical.outputs.files import output_files
from apps.medical.outputs.picture import picture
from apps.medical.outputs.result import Reading, result
from apps.medical.types import CTVolume, Nodule
from shared.app import App, Sample
from shared.deploy.predictor import Request, Response
from shared.serve.server import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import write_artifact

pytestmark = pytest.mark.browser
AT_MM = ((-60.0, 0.0, -355.0), (60.0, 6.0, -330.0))
BOX_MM = (-120.0, -90.0, -400.0, 100.0, 80.0, -305.0)


def chest() -> CTVolume:
    k, j, i = np.indices((20, 80, 100))
    voxels = np.full(i.shape, -1000, np.int16)
    voxels[((i - 50) / 45) ** 2 + ((j - 40) / 32) ** 2 < 1] = 40
    for middle in (30, 70):
        voxels[((i - middle) / 15) ** 2 + ((j - 40) / 22) ** 2 + ((k - 10) / 9) ** 2 < 1] = -850
    volume = CTVolume(voxels_zyx=voxels, spacing_mm=(3.0, 3.0, 5.0), origin_lps_mm=(-150.0, -120.0, -400.0))
    for centre in AT_MM:
        x, y, z = np.rint(volume.to_index_ijk(centre)).astype(int)
        voxels[z, y - 1 : y + 2, x - 1 : x + 2] = 60
    return volume


class Known:
    """Finds the two nodules; none where the option ``most`` is 1 and none are asked for."""

    def decode(self, request: Request) -> tuple[CTVolume, int]:
        return read_volume(request.files), int(request.options.get("most", "2"))

    def predict(self, batch: Sequence[tuple[CTVolume, int]]) -> list[Reading]:
        nodules = [
            Nodule(
                centre_lps_mm=centre,
                mean_diameter_mm=9.0,
                score=0.9 - 0.6 * n,
                box_lps_mm=(*(v - 4.5 for v in centre), *(v + 4.5 for v in centre)),
            )
            for n, centre in enumerate(AT_MM)
        ]
        return [Reading(volume, BOX_MM, 1500.0, False, nodules[:most], 0.5) for volume, most in batch]

    def encode(self, outputs: Reading) -> Response:
        return Response(result=result(outputs), picture=picture(outputs), files=output_files(outputs))


def _unused(*_: object) -> None:
    raise AssertionError("the server neither trains nor reproduces")


def _write(folder: Path) -> list[Path]:
    file = folder / "chest.nii.gz"
    file.write_bytes(nifti(chest()))
    return [file]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("medical")
    shutil.copytree(medical.pages, root / "pages")
    write_artifact(root / "weights", 1, "medical")
    app = App(
        name="medical",
        title=medical.title,
        summary=medical.summary,
        notice=medical.notice,
        root=root,
        models=("echo",),
        recipes=_unused,  # type: ignore[arg-type]
        dense=_unused,  # type: ignore[arg-type]
        predictor=lambda artifacts, device: Known(),
        samples=lambda: [Sample(name="chest", title="A chest", synthetic=True, source="made here", files=_write)],
        reproduce=_unused,  # type: ignore[arg-type]
    )
    with serving(create_app(Settings(store=root / "store", warm=False, device="cpu"), {"medical": app})) as address:
        yield address


def marked(page: Page) -> int:
    """How many pixels of the slice have the colour of the chosen finding's circle."""
    return page.eval_on_selector(
        ".slices canvas",
        """canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let n = 0;
        for (let i = 0; i < d.length; i += 4) if (d[i] > 240 && d[i + 1] > 190 && d[i + 2] < 90) n += 1;
        return n; }""",
    )


def test_the_first_finding_is_shown_and_another_is_a_click_away(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    expect(page.get_by_role("heading", name="1 finding")).to_be_visible()
    rows = page.locator(".findings button")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("9.0 mm")
    expect(rows.first).to_contain_text("R 60.0, P 0.0, F 355.0 mm")
    expect(rows.nth(1)).to_contain_text("L 60.0, P 6.0, F 330.0 mm")
    expect(rows.first).to_have_attribute("aria-current", "true")
    canvas = page.get_by_role("img", name="Axial CT slice")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 10 of 20, lung window")
    assert marked(page) > 50
    rows.nth(1).click()
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 15 of 20, lung window")
    expect(rows.nth(1)).to_have_attribute("aria-current", "true")
    assert marked(page) > 50
    if folder := os.environ.get("TRIVIUM_SHOTS"):
        page.screenshot(path=f"{folder}/medical_form.png", full_page=True)


def test_keys_move_through_slices_findings_and_windows(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("img", name="Axial CT slice")
    canvas.focus()
    for key, label in (
        ("ArrowUp", "slice 11 of 20, lung"),
        ("PageDown", "slice 6 of 20, lung"),
        ("2", "slice 6 of 20, mediastinum"),
        ("n", "slice 15 of 20, mediastinum"),
        ("n", "slice 10 of 20, mediastinum"),
        ("End", "slice 20 of 20, mediastinum"),
    ):
        page.keyboard.press(key)
        expect(canvas).to_have_attribute("aria-label", f"Axial CT {label} window")
    assert marked(page) == 0
    page.keyboard.press("p")
    before = marked(page)
    page.keyboard.press("z")
    expect(page.get_by_role("button", name="Zoom")).to_have_attribute("aria-pressed", "true")
    assert marked(page) > before


def test_keys_work_wherever_the_focus_is_but_in_a_field(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("img", name="Axial CT slice")
    rows = page.locator(".findings button")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 10 of 20, lung window")
    # Nothing was clicked, then a finding, then a window's button, then the slider.
    page.keyboard.press("ArrowUp")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 11 of 20, lung window")
    rows.nth(1).click()
    page.keyboard.press("p")
    expect(rows.first).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Bone").click()
    page.keyboard.press("n")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 15 of 20, bone window")
    page.get_by_role("slider", name="Slice").focus()
    page.keyboard.press("ArrowRight")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 16 of 20, bone window")
    page.get_by_label("Chest CT").focus()
    page.keyboard.press("n")
    page.keyboard.press("1")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 16 of 20, bone window")
    # Another result has a viewer of its own: one key is one step.
    page.get_by_role("button", name="A chest").click()
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 10 of 20, lung window")
    page.keyboard.press("ArrowUp")
    expect(canvas).to_have_attribute("aria-label", "Axial CT slice 11 of 20, lung window")


def test_the_readout_gives_hounsfield_units_in_the_patient_s_frame(page: Page, site: str) -> None:
    page.goto(f"{site}/medical")
    page.get_by_role("button", name="A chest").click()
    canvas = page.get_by_role("img", name="Axial CT slice")
    expect(canvas).to_be_visible()
    canvas.focus()
    page.keyboard.press("z")
    box = canvas.bounding_box()
    assert box is not None
    # Zoomed, the chosen finding lies in the middle.
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator(".slices")).to_contain_text("60 HU at R 60.0, P 0.0, F 355.0 mm")


def test_what_is_no_ct_is_answered_with_a_sentence(page: Page, site: str, tmp_path: Path) -> None:
    bad = tmp_path / "notes.nrrd"
    bad.write_bytes(b"nothing")
    page.goto(f"{site}/medical")
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    page.get_by_label("Chest CT").set_input_files([bad])
    page.get_by_role("button", name="Find nodules").click()
    expect(page.get_by_role("alert")).to_contain_text("notes.nrrd cannot be read")
