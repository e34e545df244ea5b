"""MONAI's list of data, as its detection tutorial has it for LUNA16, in place of a table of marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.apps.detection.transforms.dictionary import AffineBoxToImageCoordinated, ConvertBoxToStandardModed
from monai.data import MetaTensor, load_decathlon_datalist

from apps.medical.adapters.nifti import nifti
from apps.medical.datasets.marks import Marks
from apps.medical.types import ChestInput
from shared import cli
from shared.errors import InvalidInputError
from tests.apps.medical import data_folders
from tests.apps.medical.chests import chest, series

NODULE_IJK = (29.5, 39.5, 9.5)
BOX = [*chest().to_lps_mm(NODULE_IJK).tolist(), 12.0, 10.0, 15.0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same chest four times: as in MONAI's tutorial, as MetaImage, as DICOM, and once outside any list."""
    folder = tmp_path / "scans"
    for name in ("one", "four"):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.nii.gz").write_bytes(nifti(chest()))
    data_folders.write_image(chest(), folder / "two.mhd")
    (folder / "1.2.3").mkdir()
    for name, content in series(chest()).items():
        (folder / "1.2.3" / name).write_bytes(content)
    return folder


def write(root: Path, **parts: list[dict[str, Any]]) -> Marks:
    (root / "dataset_fold0.json").write_text(json.dumps(parts))
    return Marks(root=root, marks=Path("dataset_fold0.json"))


def entry(image: str, *boxes: list[float], **more: Any) -> dict[str, Any]:
    return {"image": image, "box": list(boxes), "label": [0] * len(boxes), **more}


def test_a_list_determines_the_split(root: Path) -> None:
    data = write(
        root,
        training=[entry("one/one.nii.gz", BOX), entry("two/two.nii.gz")],
        validation=[entry("1.2.3/1.2.3.nii.gz", BOX, BOX)],
    )
    split = data.split()
    assert [(scan.name, len(scan.nodules)) for scan in split.training] == [("one", 1), ("two", 0)]
    assert [(scan.name, len(scan.nodules)) for scan in split.validation] == [("1.2.3", 2)]
    (scan,) = split.validation_scans()
    assert scan.nodules[0].mean_diameter_mm == 11.0 and scan.nodules[0].label == "nodule"
    assert data.fingerprint()["scans"] == [2, 1] and data.fingerprint()["nodules"] == [1, 2]


def test_nodules_are_where_monai_s_transforms_place_them(root: Path) -> None:
    data = write(root, training=[entry("one/one.nii.gz", BOX)], validation=[entry("two.mhd")])
    (listed,) = load_decathlon_datalist(str(root / "dataset_fold0.json"), True, "training", base_dir=str(root))
    ras = np.diag([-3.0, -3.0, 5.0, 1.0])
    ras[:3, 3] = np.array(chest().origin_lps_mm) * (-1, -1, 1)  # what MONAI's ITKReader gives with affine_lps_to_ras
    sample = {"image": MetaTensor(torch.zeros(1, 100, 80, 20), affine=ras), "box": np.array(listed["box"])}
    sample = ConvertBoxToStandardModed(box_keys="box", mode="cccwhd")(sample)
    (box,) = AffineBoxToImageCoordinated("box", box_ref_image_keys="image", affine_lps_to_ras=True)(sample)["box"]
    (scan,) = data.split().training_scans(1)
    ours = scan.volume.to_index_ijk(scan.nodules[0].centre_lps_mm)
    assert ours == pytest.approx((np.array(box[:3]) + box[3:]) / 2, abs=1e-4)


def test_labels_are_classes_on_request(root: Path) -> None:
    write(root, training=[entry("one", BOX, BOX, label=[1, 0])], validation=[entry("two", BOX)])
    data = Marks(root=root, marks=Path("dataset_fold0.json"), class_column="label")
    assert data.fit_input(ChestInput()).classes == ("0", "1")
    assert [mark.label for mark in data.split().training[0].nodules] == ["1", "0"]
    with pytest.raises(InvalidInputError, match="has its classes in label, not in kind"):
        Marks(root=root, marks=Path("dataset_fold0.json"), class_column="kind").split()


def test_without_a_validation_list_patients_are_drawn(root: Path) -> None:
    split = write(root, training=[entry("one", BOX), entry("two.mhd"), entry("four")]).split()
    assert (len(split.training), len(split.validation)) == (2, 1)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"images": []}, 'no list "training" or "validation"'),
        ({"training": [{"box": [BOX]}]}, 'entry 1 names no file in "image"'),
        ({"training": [entry("one"), {"image": "two"}]}, 'entry 2 has no list "box"'),
        ({"training": [entry("one", BOX, label=[])]}, None),
        ({"training": [entry("one", BOX, label=[0, 0])]}, '"label" does not have one number for each box'),
        ({"training": [entry("one", BOX[:5])]}, "entry 1: a box does not consist of 6 numbers"),
        ({"training": [entry("one", [*BOX[:5], -15.0])]}, r"not a centre and a size above 0 mm \(cccwhd\)"),
        ({"training": [entry("one", BOX), entry("five", BOX)]}, r"names match no file.*'five' \(entry 2\)"),
        ({"training": [entry("one", BOX), entry("a/one.nii.gz", BOX)]}, "lists one and a/one.nii.gz, but .* for both"),
    ],
)
def test_an_invalid_list_is_rejected_with_its_entry(root: Path, parts: Any, words: str | None) -> None:
    data = write(root, **parts)
    if words is None:
        parts["training"] += [entry("two")]
        assert len(write(root, **parts).split().training) == 1
        return
    with pytest.raises(InvalidInputError, match=words):
        data.split()


def test_files_that_are_not_tables_are_rejected_with_a_short_message(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "list.csv").write_text(json.dumps({"training": [entry("one", *[BOX] * 200)]}))
    (root / "069.xml").write_text("<LidcReadMessage/>")
    for name, words in (("list.csv", "has no column scan"), ("069.xml", "use --data lidc")):
        assert cli.main(["train", "medical", "--data", "marks", "--data.root", str(root), "--data.marks", name]) == 2
        stderr = capsys.readouterr().err
        assert words in stderr and len(stderr) < 500
