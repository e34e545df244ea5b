"""Reviews over HTTP are exported in LUNA16's layout, with which a detector is trained and scored."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from apps.medical.adapters.images import read_image
from apps.medical.datasets.luna16 import Luna16
from apps.medical.outputs.whole_scan import read_whole_scan, whole_scan
from apps.medical.types import CTVolume
from shared import cli
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.apps.medical.chests import pack, series
from tests.browser.medical_site import AT_MM, chest, medical_app

UIDS = ("1.2.826.0.1.3680043.1", "1.2.826.0.1.3680043.2", "1.2.826.0.1.3680043.3")
MISSED = {"centre_lps_mm": [-55.0, 10.0, -340.0], "diameter_mm": 7.5}
REVIEWS = (
    {"verdicts": {"1": "accepted", "2": "rejected"}, "note": "Doe^John again"},
    {"verdicts": {"1": "accepted"}, "missed": [MISSED]},
    {"note": "not looked at yet"},
)
"""Reviews of three scans of two studies: the second leaves a finding undecided, the third has no verdict."""


def hand_in(client: TestClient, folder: Path, uid: str, study: str) -> str:
    """Submits a scan. Returns the address of its case's review."""
    tags = {"SeriesInstanceUID": uid, "StudyInstanceUID": study, "PatientName": "Doe^John", "PatientID": "4711"}
    file = pack(folder, series(chest(), **tags), f"Doe-{uid}.zip")
    response = client.post(
        "/api/medical/predict", files={"files": (file.name, file.read_bytes())}, data={"patient": "yes"}
    )
    assert response.status_code == 200, response.text
    return f"/api/medical/cases/{response.json()['case']}/review"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of a running server, with the reviewed cases."""
    root = tmp_path_factory.mktemp("medical")
    settings = Settings(store=root / "store", device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"medical": medical_app(root)})) as client:
        for uid, study, review in zip(UIDS, ("1.2.1", "1.2.2", "1.2.2"), REVIEWS, strict=True):
            home = hand_in(client, root, uid, study)
            # An earlier review by the same reader, and an older one by another, do not count.
            for saved_review in (
                {"reviewer": "Grace", "verdicts": {"1": "rejected"}},
                {"verdicts": {"2": "accepted"}},
                review,
            ):
                assert client.put(home, json=saved_review).status_code == 200
        yield settings.store


@pytest.fixture(scope="module")
def exported(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reviewed"
    assert cli.main(["reviews", "medical", "--store", str(store), "--out", str(out)]) == 0
    return out


def rows(file: Path) -> list[list[str]]:
    return list(csv.reader(file.read_text().splitlines()))


def test_the_tables_have_each_finding_by_its_verdict(exported: Path) -> None:
    first, second = ([f"{value:.1f}" for value in centre] for centre in AT_MM)
    missed = [str(value) for value in MISSED["centre_lps_mm"]]  # type: ignore[attr-defined]
    assert rows(exported / "annotations.csv") == [
        ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"],
        [UIDS[0], *first, "9.0"],
        [UIDS[1], *first, "9.0"],
        [UIDS[1], *missed, "7.5"],
    ]
    assert rows(exported / "annotations_excluded.csv")[1:] == [[UIDS[1], *second, "9.0"]]
    assert rows(exported / "candidates.csv")[1:] == [
        [UIDS[0], *first, "1"],
        [UIDS[0], *second, "0"],
        [UIDS[1], *first, "1"],
        [UIDS[1], *missed, "1"],
    ]
    heading, *cases = rows(exported / "cases.csv")
    assert heading[-4:] == ["accepted", "rejected", "undecided", "missed"]
    assert [case[2:4] + case[-4:] for case in cases] == [
        ["known", "1", "1", "1", "0", "0"],
        ["known", "1", "1", "0", "1", "1"],
        ["known", "1", "0", "0", "2", "0"],
    ]


def test_the_scans_have_the_voxels_and_positions_of_the_store(exported: Path) -> None:
    files = sorted(file.relative_to(exported).as_posix() for file in exported.rglob("*.mhd"))
    assert files == [f"subset0/{UIDS[0]}.mhd", f"subset1/{UIDS[1]}.mhd"]
    scan, whole = read_image([exported / files[0]]), chest()
    for centre in AT_MM:
        at, place = (np.rint(volume.to_index_ijk(centre)).astype(int) for volume in (scan, whole))
        assert scan.voxels_zyx[tuple(at[::-1])] == whole.voxels_zyx[tuple(place[::-1])] == 60
    assert scan.spacing_mm == whole.spacing_mm
    assert exported.stat().st_mode & 0o077 == 0


def test_no_reviewer_is_named(exported: Path) -> None:
    for file in exported.rglob("*"):
        assert "Doe" not in file.name and "4711" not in file.name
        content = file.read_bytes() if file.is_file() else b""
        assert not [name for name in (b"Doe", b"4711", b"Grace", b"again") if name in content], file


def test_other_scans_in_luna16s_layout_are_not_called_luna16(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    for subset, uid in enumerate(("1.3.6.1.4.1.14519.5.2.1.6279.6001.1", "1.2.3")):
        (tmp_path / f"subset{subset}").mkdir()
        (tmp_path / f"subset{subset}" / f"{uid}.mhd").touch()
    assert Luna16(root=tmp_path).fingerprint()["description"] == "scans in LUNA16's layout, validated on subset 0"
    (tmp_path / "subset1" / "1.2.3.mhd").rename(tmp_path / "subset1" / "1.3.6.1.4.1.14519.5.2.1.6279.6001.2.mhd")
    assert Luna16(root=tmp_path).fingerprint()["description"] == "LUNA16 (LIDC-IDRI), validated on subset 0"


def test_the_data_set_has_the_marks(exported: Path) -> None:
    data = Luna16(root=exported)
    # A model trained on it does not state LUNA16 as its training data.
    assert data.fingerprint()["description"] == "reviewed cases, validated on subset 0"
    split = data.split()
    (training,), (validation,) = split.training, split.validation
    assert [mark.centre for mark in validation.nodules] == [AT_MM[0]]
    assert validation.candidates == (AT_MM[1],)
    assert [mark.diameter_mm for mark in training.nodules] == [9.0, 7.5]
    assert [mark.centre for mark in training.excluded] == [AT_MM[1]]


def test_a_detector_is_trained_and_scored_on_it(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "luna16", "--data.root", str(exported)]
    words = ["--recipe", "small", "--out", str(tmp_path / "run"), "--device", "cpu", "--limits.steps", "1"]
    few = ["--data.train-patches", "1", "--data.validation-patches", "1", "--limits.batch", "1"]
    assert cli.main(["train", "medical", *words, *data, *few]) == 0
    assert "nodules: 2 for training, 1 for validation" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--reviewer", "nobody"], "holds no case of medical that was reviewed by nobody; reviewers are Grace"),
        (["--out", "."], "already exists; name a new folder with --out"),
        (["--store", "none"], "there is no store in none"),
    ],
)
def test_invalid_exports_are_refused(
    store: Path,
    words: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["reviews", "medical", "--store", str(store), "--out", "new", *words]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("words", "setting"), [(["--store", "nowhere"], "--store"), ([], "TRIVIUM_STORE")])
def test_the_error_about_a_missing_store_names_its_setting(
    words: list[str],
    setting: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIVIUM_STORE", "nowhere")
    assert cli.main(["reviews", "medical", "--out", "new", *words]) == 2
    assert f"there is no store in nowhere; set {setting} to the folder of the server's store" in capsys.readouterr().err


def test_one_reviewers_reviews_are_exported(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--store", str(store), "--out", str(tmp_path / "out"), "--reviewer", "Grace"]
    assert cli.main(["reviews", "medical", *words]) == 0
    assert len(rows(tmp_path / "out" / "annotations.csv")) == 1
    assert [row[-1] for row in rows(tmp_path / "out" / "candidates.csv")[1:]] == ["0"] * 3
    assert "several reviewers" not in capsys.readouterr().out


def test_only_rows_are_written_for_a_scan_kept_at_lower_resolution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.medical.outputs.slab.MAX_VOXELS", 20_000)
    settings = Settings(store=tmp_path / "store", device="cpu", workers=0, warm=False, hosts="testserver")
    with TestClient(create_app(settings, {"medical": medical_app(tmp_path)})) as client:
        home = hand_in(client, tmp_path, UIDS[0], "1.2.1")
        assert client.put(home, json=REVIEWS[0]).status_code == 200
        out = tmp_path / "out"
        assert cli.main(["reviews", "medical", "--store", str(settings.store), "--out", str(out)]) == 0
    assert "Scans not stored at full resolution: 1." in " ".join(capsys.readouterr().out.split())
    assert len(rows(out / "annotations.csv")) == 2 and not list(out.glob("subset*"))


def test_a_scan_that_the_server_keeps_is_written_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.medical.outputs.slab.MAX_VOXELS", 20_000)
    settings = Settings(store=tmp_path / "store", device="cpu", workers=0, warm=False, hosts="testserver")
    app, out = medical_app(tmp_path), tmp_path / "out"
    for keep_inputs, uid in zip((False, True), UIDS[:2], strict=True):
        own_settings = settings.model_copy(update={"keep_inputs": keep_inputs})
        with TestClient(create_app(own_settings, {"medical": app})) as client:
            assert client.put(hand_in(client, tmp_path, uid, uid), json=REVIEWS[0]).status_code == 200
    assert cli.main(["reviews", "medical", "--store", str(settings.store), "--out", str(out)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Scans written whole, as they were analysed: 1." in output
    assert "Scans not stored at full resolution: 1." in output and "as the viewer has them" not in output
    (file,) = out.rglob("*.mhd")
    scan, expected = read_image([file]), chest()
    assert file.stem == UIDS[1] and np.array_equal(scan.voxels_zyx, expected.voxels_zyx)
    assert np.array_equal(scan.to_lps_mm([3, 5, 7]), expected.to_lps_mm([3, 5, 7]))
    (stored_input,) = settings.store.rglob(".input-*")
    content = stored_input.read_bytes()
    assert not [word for word in ("Doe", "4711", *UIDS, "1.2.840") if word.encode() in content]


@pytest.mark.parametrize("high", [32767, 60])
def test_a_whole_scan_is_restored_exactly(high: int) -> None:
    voxels = np.random.default_rng(high).integers(-32768, high, (3, 5, 7), np.int16, endpoint=True)
    voxels[0, 0, :4] = -32768, high, -1, 0
    turned = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    volume = CTVolume(voxels_zyx=voxels, spacing_mm=(0.7, 0.6, 1.25), origin_lps_mm=(-3.5, 2.0, 1e-3), direction=turned)
    found = read_whole_scan(whole_scan(volume))
    assert np.array_equal(found.voxels_zyx, voxels) and np.array_equal(found.direction, turned)
    assert (found.spacing_mm, found.origin_lps_mm) == (volume.spacing_mm, volume.origin_lps_mm)
