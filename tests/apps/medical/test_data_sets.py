"""A folder of CTs with a table of marks as a data set: reading, splitting, training, evaluation and calibration."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import yaml

from apps.medical.adapters.nifti import nifti
from apps.medical.app import app
from apps.medical.datasets import DATA_SETS, synthetic
from apps.medical.datasets.marks import Marks
from apps.medical.datasets.packed_scans import open_scans
from apps.medical.inference.calibration import operating_point
from apps.medical.predictor import NodulePredictor, Options
from apps.medical.types import AnnotatedScan, ChestInput, Findings, Nodule
from shared import cli
from shared.data.order import Key
from shared.deploy.export import export
from shared.errors import InvalidInputError
from tests.apps.medical import data_folders
from tests.apps.medical.chests import chest, series

COARSE = ChestInput(spacing_mm=(3.0, 3.0, 5.0), patch_size=(48, 48, 16))
NODULE_IJK, NODULE_MM = (29.5, 39.5, 9.5), 11.0
pytestmark = pytest.mark.usefixtures("empty_cache")


def write_table(file: Path, rows: list[dict[str, object]], separator: str = ",") -> Path:
    with file.open("w", newline="") as content:
        writer = csv.DictWriter(content, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return file


def marked(scan: str, at: tuple[float, float, float], **more: object) -> dict[str, object]:
    return {"scan": scan, "x": at[0], "y": at[1], "z": at[2], "diameter_mm": NODULE_MM, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same chest as NIfTI, as NRRD and as a DICOM series, each with one nodule in the table."""
    root = tmp_path / "scans"
    (root / "a").mkdir(parents=True)
    (root / "a" / "one.nii.gz").write_bytes(nifti(chest()))
    data_folders.write_image(chest(), root / "two.nrrd")
    for name, content in series(chest(), PatientID="p3").items():
        (root / "three").mkdir(exist_ok=True)
        (root / "three" / name).write_bytes(content)
    centre = tuple(chest().to_lps_mm(NODULE_IJK).tolist())
    write_table(root / "marks.csv", [marked("a/one.nii.gz", centre), marked("two", centre), marked("1.2.3", centre)])
    return root


def test_scans_of_any_format_with_a_table_are_a_data_set(folder):
    data = Marks(root=folder, marks=Path("marks.csv"), validation_share=0.4)
    split = data.split()
    assert {scan.name for scan in (*split.training, *split.validation)} == {"one", "two", "1.2.3"}
    assert len(split.validation) == 1
    packed = open_scans((*split.training, *split.validation), COARSE)
    for scan in packed:
        (box,) = scan.boxes
        i, j, k = ((box[:3] + box[3:]) / 2).astype(int)
        assert scan.lungs and scan.voxels[i, j, k] > 190
        assert scan.voxels[i, j, min(k + 3, scan.voxels.shape[2] - 1)] < 60
    facts = data.facts(COARSE)
    assert facts["nodules"] == "2 for training, 1 for validation" and facts["patients in both parts"] == "0"
    assert facts["slice spacing"].startswith("5 to 5 mm")
    (scan,) = data.validation_scans()
    (nodule,) = scan.nodules
    assert nodule.centre_lps_mm == pytest.approx(chest().to_lps_mm(NODULE_IJK))
    assert "p3" not in str(data.fingerprint()) and str(folder) not in str(data.fingerprint())


def test_quantisation_uses_whole_training_scans(folder, monkeypatch):
    data = Marks(root=folder, marks=Path("marks.csv"), validation_share=0.4)
    learnt = {scan.name for scan in data.split().training}
    assert {scan.name for scan in data.training_scans(8)} == learnt and len(learnt) == 2
    assert [scan.name for scan in data.training_scans(1)] == [data.split().training[0].name]
    painted = []
    monkeypatch.setattr(synthetic, "phantoms", lambda seed, count: painted.append((seed, count)) or iter(()))
    assert not list(app.training_cases(synthetic.Synthetic(seed=20), ChestInput(), 4))
    assert painted == [(20, 4)] and synthetic.EVALUATION_SEED != 20


def test_marks_may_be_indices_or_ras_and_columns_may_have_any_names(folder):
    lps = chest().to_lps_mm(NODULE_IJK)
    rows = [{"Fall": name, "i": 29.5, "j": 39.5, "k": 9.5, "mm": NODULE_MM} for name in ("one", "two", "three")]
    write_table(folder / "voxel.csv", rows, ";")
    columns = {"scan_column": "fall", "x_column": "i", "y_column": "j", "z_column": "k", "diameter_column": "mm"}
    voxel = Marks(root=folder, marks=Path("voxel.csv"), coordinates="voxel", **columns)
    ras = Marks(root=folder, marks=folder / "ras.csv", coordinates="ras")
    write_table(folder / "ras.csv", [marked(name, (-lps[0], -lps[1], lps[2])) for name in ("one", "two", "three")])
    for data in (voxel, ras):
        for scan in (*data.split().training, *data.split().validation):
            assert scan.read_annotated().nodules[0].centre_lps_mm == pytest.approx(lps)


@pytest.mark.filterwarnings("ignore")
def test_classes_come_from_the_table(folder, tmp_path):
    centre = tuple(chest().to_lps_mm(NODULE_IJK).tolist())
    kinds = {"one": "solid", "two": "ground glass", "three": "solid"}
    write_table(folder / "marks.csv", [marked(scan, centre, kind=kind) for scan, kind in kinds.items()])
    data = Marks(root=folder, marks=Path("marks.csv"), class_column="kind", validation_share=0.6)
    grid = data.fit_input(COARSE)
    assert grid.classes == ("ground glass", "solid")
    assert data.facts(grid)["classes"] == "ground glass 1, solid 2"
    packed = open_scans((*data.split().training, *data.split().validation), grid)
    assert sorted(scan.labels.tolist() for scan in packed) == [[0], [1], [1]]
    batch = data.train(grid).batch(np.arange(2), Key(seed=0, epoch=0))
    assert [len(labels) for labels in batch["labels"]] == [len(boxes) for boxes in batch["boxes"]]
    with pytest.raises(InvalidInputError, match="of the class"):
        data.facts(ChestInput(classes=("a", "b"), spacing_mm=COARSE.spacing_mm))
    run = tmp_path / "run"
    flags = ["--data", "marks", "--data.root", str(folder), "--data.marks", "marks.csv", "--data.class-column", "kind"]
    flags += ["--input.spacing-mm", "3", "3", "5", "--input.patch-size", "32", "32", "16", "--data.train-patches", "4"]
    assert cli.main(["train", "medical", "--recipe", "tiny", *flags, "--out", str(run), "--device", "cpu"]) == 0
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())["recipe"]
    assert recipe["input"]["classes"] == ["ground glass", "solid"]
    artifact = export(run, app, tmp_path / "models", network=False)  # torch computes: ONNX takes most of a minute
    predictor = NodulePredictor.load([artifact], "cpu")
    (findings,) = predictor.predict([chest()], Options(min_score=0.0, max_findings=100))
    assert {nodule.label for nodule in findings.nodules} <= {"ground glass", "solid"}


def test_scores_are_also_given_per_class(folder, perfect):
    centre = tuple(chest().to_lps_mm(NODULE_IJK).tolist())
    rows = [marked("one", centre, kind="solid", part="test"), marked("two", centre, kind="nodule", part="test")]
    write_table(folder / "marks.csv", rows)
    data = Marks(root=folder, marks=Path("marks.csv"), class_column="kind", split_column="part")
    (note,) = [note for note in app.evaluate(perfect, data, None).notes if "classes" in note]
    assert (
        note == "The table does not distinguish classes. nodule: CPM 1.000 on 1 nodules; solid: CPM 0.000 on 1 nodules."
    )


def test_a_split_is_by_patient_or_by_the_table(folder):
    centre = tuple(chest().to_lps_mm(NODULE_IJK).tolist())
    rows = [
        marked("one", centre, who="p1", part="train"),
        marked("two", centre, who="p1", part="validation"),
        marked("three", centre, who="p2", part="train"),
    ]
    write_table(folder / "marks.csv", rows)
    drawn = Marks(root=folder, marks=Path("marks.csv"), patient_column="who")
    together = [{scan.name for scan in part} for part in (drawn.split().training, drawn.split().validation)]
    assert {"one", "two"} in together
    assert drawn.split() == drawn.split()
    split_by_column = Marks(root=folder, marks=Path("marks.csv"), patient_column="who", split_column="part")
    assert [scan.name for scan in split_by_column.split().validation] == ["two"]
    assert split_by_column.facts(COARSE)["patients in both parts"] == "1"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (marked("four", (0, 0, 0)), r"'four' \(row 2\)"),
        (marked("one", (0, 0, 0)) | {"diameter_mm": 0}, "row 2: 0, 0, 0, 0 are not a position"),
        (marked("one", (0, "left", 0)), "row 2: 0, left, 0"),
        ({"scan": "one", "x": 1}, "has no column y, z, diameter_mm; its columns are scan, x"),
    ],
)
def test_an_unusable_table_is_rejected_with_its_row(folder, row, words):
    write_table(folder / "marks.csv", [row])
    with pytest.raises(InvalidInputError, match=words):
        Marks(root=folder, marks=Path("marks.csv")).train(COARSE)


def test_marks_outside_their_scans_are_counted_and_reported(folder):
    write_table(folder / "marks.csv", [marked(name, (0, 0, 5000)) for name in ("one", "two", "three")])
    data = Marks(root=folder, marks=Path("marks.csv"))
    assert data.facts(COARSE)["marks outside their scan"].startswith("2 for training, 1 for")
    with pytest.raises(
        InvalidInputError,
        match="none of the 2 training scans has a nodule within its volume and near its lungs; 2 marks are",
    ):
        data.train(COARSE)


def test_the_error_names_a_damaged_scan(folder):
    (folder / "two.nrrd").write_bytes((folder / "two.nrrd").read_bytes()[:5000])
    with pytest.raises(InvalidInputError, match=r"two\.nrrd"):
        Marks(root=folder, marks=Path("marks.csv")).facts(COARSE)


def test_every_data_set_has_a_name():
    assert list(DATA_SETS) == ["luna16", "lidc", "marks", "synthetic"]


def test_indices_are_rejected_for_a_scan_stored_in_sagittal_slices(folder):
    image = SimpleITK.PermuteAxes(SimpleITK.ReadImage(str(folder / "two.nrrd")), [2, 0, 1])
    SimpleITK.WriteImage(image, str(folder / "two.nrrd"))
    write_table(folder / "marks.csv", [marked("two", (1, 2, 3))])
    data = Marks(root=folder, marks=Path("marks.csv"), coordinates="voxel")
    with pytest.raises(InvalidInputError, match="give its marks in LPS mm"):
        data.facts(COARSE)


def test_evaluation_counts_hits_and_false_positives(folder, perfect):
    data = Marks(root=folder, marks=Path("marks.csv"), validation_share=0.6)
    table = app.evaluate(perfect, data, None)
    figures = {row[0]: row[1] for row in table.rows}
    assert figures["scans"] == "2" and figures["nodules found at any score"] == "2"
    assert figures["CPM"] == "1.0000" and figures["false positives"] == "2"
    assert {row[0]: row[1] for row in app.evaluate(perfect, data, 1).rows}["scans"] == "1"
    assert any(note == "Mean error of the diameter: 1.0 mm, on 2 detected nodules." for note in table.notes)


def test_an_operating_point_is_set_on_the_user_s_scans(folder, perfect):
    scans = Marks(root=folder, marks=Path("marks.csv"), validation_share=0.6).validation_scans()
    point = operating_point(perfect, scans, synthetic=False)
    assert point["operating_score"] == 0.2 and point["sensitivity"] == 1.0 and point["scans"] == 2
    assert point["synthetic"] is False
    empty = operating_point(perfect, [AnnotatedScan(name="1", volume=chest(), nodules=())], synthetic=False)
    assert empty["operating_score"] == 0.5 and empty["calibrated"] is False
    assert empty["reason"] == "none of the 1 validation scans has a nodule"
    write_table(folder / "none.csv", [marked("one", (0, 0, 0), split="train")])
    with pytest.raises(InvalidInputError, match="no validation scan"):
        Marks(root=folder, marks=Path("none.csv"), split_column="split").validation_scans()


@pytest.fixture
def perfect(untrained, monkeypatch):
    """A predictor that finds the chest's nodule with a diameter 1 mm too large, and has one false positive."""
    x, y, z = chest().to_lps_mm(NODULE_IJK)

    def predict(batch, options=None):
        nodules = [(x, 0.9), (x + 60, 0.2)]
        findings = tuple(
            Nodule(
                centre_lps_mm=(at, y, z),
                mean_diameter_mm=NODULE_MM + 1,
                score=score,
                box_lps_mm=(at - 5, y - 5, z - 5, at + 5, y + 5, z + 5),
            )
            for at, score in nodules
        )
        return [Findings(nodules=findings, operating_score=0.5) for _ in batch]

    monkeypatch.setattr(untrained, "predict", predict)
    return untrained


@pytest.mark.filterwarnings("ignore")
def test_the_command_trains_on_a_folder_with_marks(folder, tmp_path):
    run = tmp_path / "run"
    where = ["--data", "marks", "--data.root", str(folder), "--data.marks", "marks.csv", "--data.train-patches", "4"]
    grid = ["--input.spacing-mm", "3", "3", "5", "--input.patch-size", "32", "32", "16"]
    command = ["train", "medical", "--recipe", "tiny", *where, *grid, "--out", str(run), "--device", "cpu"]
    assert cli.main(command) == 0
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())["recipe"]
    assert recipe["input"]["spacing_mm"] == [3.0, 3.0, 5.0] and recipe["data"]["marks"] == "marks.csv"
