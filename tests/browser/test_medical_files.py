"""The files that the medical form takes, chosen and dropped, in a browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK
from playwright.sync_api import Page, expect

from tests.apps.medical.chests import dicom_slice, medium, pack
from tests.browser.medical_site import chest, hand_in, medical_site

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def test_what_is_no_ct_is_answered_with_a_sentence(page: Page, site: str, tmp_path: Path) -> None:
    bad = tmp_path / "notes.nrrd"
    bad.write_bytes(b"nothing")
    page.goto(f"{site}/medical")
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    page.get_by_label("Chest CT").set_input_files([bad])
    page.get_by_role("button", name="Find nodules").click()
    expect(page.get_by_role("alert")).to_contain_text("notes.nrrd has no header that can be read")


def test_a_folder_of_dicom_is_shown_by_its_instance_numbers(page: Page, site: str, tmp_path: Path) -> None:
    hand_in(page, site, medium(tmp_path, chest()), folder=True)
    rows = page.locator(".findings button")
    # The nodule is in the tenth slice from the feet, the eleventh image from the head.
    expect(rows.first).to_contain_text("image 11 of 20 · R 60.0, P 0.0, F 355.0 mm")
    expect(page.locator(".slices")).to_contain_text("Image 11 of 20 (instance number) · F 355.0 mm")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".slices")).to_contain_text("Image 10 of 20 (instance number) · F 350.0 mm")
    expect(page.locator("#result")).to_contain_text("Series 1.2.3.")


def test_a_dropped_folder_and_chosen_files_without_an_ending_are_taken(page: Page, site: str, tmp_path: Path) -> None:
    files = sorted(path for path in medium(tmp_path, chest(), first=201).rglob("*") if path.is_file())
    hand_in(page, site, *files)
    expect(page.locator(".findings button").first).to_contain_text("image 211 · R 60.0")
    archive = pack(tmp_path, {f"a/IM{k}": dicom_slice(chest(), k) for k in range(20)}, "scan.zip")
    content = base64.b64encode(archive.read_bytes()).decode()
    page.evaluate(
        """content => { const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "scan.zip"));
        const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true });
        document.querySelector("#result").dispatchEvent(drop); }""",
        content,
    )
    expect(page.locator("[data-chosen]")).to_contain_text("scan.zip")
    page.get_by_role("button", name="Find nodules").click()
    expect(page.locator(".findings button").first).to_contain_text("image 11 of 20")


def test_a_folder_dropped_from_the_desktop_is_taken_with_all_that_is_in_it(
    page: Page, site: str, tmp_path: Path
) -> None:
    folder = medium(tmp_path, chest())
    # A browser reads a folder's entries a hundred at a time.
    for n in range(150):
        (folder / f"note{n}.txt").write_text("a note")
    page.goto(f"{site}/medical")
    box = page.locator("[data-drop]").bounding_box()
    assert box is not None
    dropped = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": dropped})
    expect(page.locator("[data-chosen]")).to_contain_text("171 files")
    page.get_by_role("button", name="Find nodules").click()
    expect(page.locator(".findings button").first).to_contain_text("image 11 of 20")


def test_a_header_with_its_voxels_beside_it_can_be_chosen(page: Page, site: str, tmp_path: Path) -> None:
    made = chest()
    image = SimpleITK.GetImageFromArray(made.voxels_zyx)
    image.SetSpacing(made.spacing_mm)
    image.SetOrigin(made.origin_lps_mm)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.mhd"))
    hand_in(page, site, tmp_path / "scan.mhd", tmp_path / "scan.raw")
    expect(page.locator(".findings button").first).to_contain_text("slice 10 of 20 in the file · R 60.0")
