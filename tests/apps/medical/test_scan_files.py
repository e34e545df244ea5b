"""The CTs in a folder, and their patients."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from apps.medical.adapters.nifti import nifti
from apps.medical.datasets.packed_scans import pack_name
from apps.medical.datasets.scan_files import find_scans
from apps.medical.types import ChestInput
from tests.apps.medical.chests import chest, series


def test_archives_of_one_patient_stay_in_one_part(tmp_path: Path):
    for name in ("visit1", "visit2"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("readme.txt", "of the PACS")
            for image, content in series(chest(), PatientID="p3").items():
                archive.writestr(f"{name}/{image}", content)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("one.nii.gz", nifti(chest()))
    found = find_scans(tmp_path)
    assert {found[name].patient for name in ("visit1", "visit2.zip")} == {"p3"}
    assert found["other"].patient == "other"


def test_a_series_in_several_folders_is_one_scan(tmp_path: Path):
    """As some PACS export it, with a fixed number of files per folder."""
    volume = chest()
    for number, (name, content) in enumerate(sorted(series(volume, PatientID="p3").items())):
        home = tmp_path / "ct" / "p3" / f"DIR{number // 8}"
        home.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    found = find_scans(tmp_path / "ct")
    assert {"1.2.3", "p3", "p3/DIR0", "DIR2"} <= found.keys() and len({*found.values()}) == 1
    scan = found["1.2.3"]
    assert np.array_equal(scan.read().voxels_zyx, volume.voxels_zyx)
    before = pack_name(scan, ChestInput())
    (tmp_path / "ct" / "p3" / "DIR2" / "new").write_bytes(b"")
    assert pack_name(scan, ChestInput()) != before


def test_equal_identifiers_of_another_patient_or_study_are_another_scan(tmp_path: Path):
    for folder, tags in (("a", {}), ("b", {"PatientID": "p4"}), ("c", {"StudyInstanceUID": "9"})):
        (tmp_path / folder).mkdir()
        for name, content in series(chest(), **{"PatientID": "p3", **tags}).items():
            (tmp_path / folder / name).write_bytes(content)
    found = find_scans(tmp_path)
    assert found.keys() == {"a", "b", "c"} and [found[name].folders for name in "abc"] == [()] * 3


def test_a_subfolder_of_a_series_folder_is_read_once(tmp_path: Path):
    parts = list(series(chest()).items())
    (tmp_path / "a" / "more").mkdir(parents=True)
    for number, (name, content) in enumerate(parts):
        (tmp_path / "a" / ("more" if number > 9 else "") / name).write_bytes(content)
    scan = find_scans(tmp_path)["1.2.3"]
    assert np.array_equal(scan.read().voxels_zyx, chest().voxels_zyx)
