"""Choosing and dropping files in the medical form, in a browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK
from playwright.sync_api import Page, expect

from tests.apps.medical.chests import dicom_slice, medium, pack
from tests.browser.medical_site import chest, medical_site, upload_and_analyse

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with medical_site(tmp_path_factory.mktemp("medical")) as address:
        yield address


def test_a_file_without_a_ct_is_refused(page: Page, site: str, tmp_path: Path) -> None:
    bad = tmp_path / "notes.nrrd"
    bad.write_bytes(b"nothing")
    page.goto(f"{site}/medical")
    page.expected_errors.append("422")  # type: ignore[attr-defined]
    page.get_by_label("Chest CT").set_input_files([bad])
    page.get_by_role("button", name="Find nodules").click()
    expect(page.get_by_role("alert")).to_contain_text("notes.nrrd has no readable header")


def test_slices_of_a_dicom_folder_are_shown_with_their_instance_numbers(page: Page, site: str, tmp_path: Path) -> None:
    upload_and_analyse(page, site, medium(tmp_path, chest()), folder=True)
    rows = page.locator(".findings button")
    # The nodule is in the tenth slice from the feet, the eleventh image from the head.
    expect(rows.first).to_contain_text("image 11 of 20 · R 60.0, P 0.0, F 355.0 mm")
    expect(page.locator(".slices")).to_contain_text("Image 11 of 20 (instance number) · F 355.0 mm")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".slices")).to_contain_text("Image 10 of 20 (instance number) · F 350.0 mm")
    expect(page.locator("#result")).to_contain_text("Series 1.2.3.")


def test_files_without_a_suffix_and_a_dropped_archive_are_accepted(page: Page, site: str, tmp_path: Path) -> None:
    files = sorted(path for path in medium(tmp_path, chest(), first=201).rglob("*") if path.is_file())
    upload_and_analyse(page, site, *files)
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


def test_all_files_of_a_folder_dropped_from_the_desktop_are_taken(page: Page, site: str, tmp_path: Path) -> None:
    folder = medium(tmp_path, chest())
    # A browser returns the entries of a folder in batches of 100.
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


def test_a_header_file_can_be_chosen_together_with_its_voxel_file(page: Page, site: str, tmp_path: Path) -> None:
    volume = chest()
    image = SimpleITK.GetImageFromArray(volume.voxels_zyx)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_lps_mm)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.mhd"))
    upload_and_analyse(page, site, tmp_path / "scan.mhd", tmp_path / "scan.raw")
    expect(page.locator(".findings button").first).to_contain_text("slice 10 of 20 in the file · R 60.0")
