"""Which CTs a folder holds, and whose they are."""

from __future__ import annotations

import zipfile
from pathlib import Path

from apps.medical.adapters.nifti import nifti
from apps.medical.datasets.scan_files import find_scans
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
