"""From reviews over HTTP to sweeps with labels, on which a detector is trained."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from apps.driving.adapters.custom import frame_ids, read_frame
from apps.driving.datasets.custom import Custom
from apps.driving.datasets.kitti import Kitti
from apps.driving.service import DrivingCodec
from apps.driving.types import ASSUMED_SIZE_M, Boxes3D, Detections, Frame, LidarInput, ObjectClass
from shared import cli
from shared.app import find
from shared.serve.app import create_app
from shared.serve.settings import Settings

BOX = {"centre_lidar_m": [12.0, 3.0, -0.8], "size_m": [4.2, 1.8, 1.5], "yaw": 0.25}
MISSED = {"frame": "b", "name": "van", "centre_lidar_m": [9.0, -4.0, -0.5], "size_m": [5.0, 2.0, 2.2], "yaw": 1.5}
CLASSES = (
    ObjectClass(name="car", size_m=(4.2, 1.8, 1.5), bottom_m=-1.7),
    ObjectClass(name="pedestrian", size_m=(0.8, 0.6, 1.75), bottom_m=-1.7),
    ObjectClass(name="construction_vehicle", size_m=(6.4, 2.7, 3.1), bottom_m=-1.7),
    ObjectClass(name="forklift", size_m=ASSUMED_SIZE_M, bottom_m=-1.7),
)


class Known:
    """Finds two boxes in every frame except one, which is empty."""

    second_stages: dict[str, str] = {}  # noqa: RUF012 - as the predictor has it
    detectors = {"pointpillars": SimpleNamespace(input=LidarInput(classes=CLASSES))}  # noqa: RUF012 - likewise

    def choose_model(self, frame: Frame, wanted: str | None = None) -> str:
        return "pointpillars"

    def choose_for_sensors(self, name: str, available: object, requested: str | None = None) -> str:
        return "pointpillars"

    def preferred_model(self, sensors: object) -> str:
        return "pointpillars"

    def predict(self, batch: Sequence[Frame], options: object = None) -> list[Detections]:
        detections = []
        for frame in batch:
            count = 0 if frame.name == "empty" else 2
            boxes = Boxes3D(
                centre_lidar_m=np.array([BOX["centre_lidar_m"], [30.0, 0.0, -0.8]], np.float32)[:count],
                size_m=np.array([BOX["size_m"]] * 2, np.float32)[:count],
                yaw=np.array([BOX["yaw"]] * 2, np.float32)[:count],
                names=(("traffic light" if frame.name == "lights" else "car",) * 2)[:count],
                scores=np.array([0.9, 0.4], np.float32)[:count],
            )
            detections.append(Detections(boxes=boxes, model="pointpillars"))
        return detections


def sweep(seed: int, count: int = 500) -> np.ndarray:
    points = np.random.default_rng(seed).uniform((0, -20, -2, 0), (40, 20, 1, 1), (count, 4)).astype("<f4")
    points[:80, :3] = np.asarray(BOX["centre_lidar_m"]) + points[:80, :3] % 0.5
    return points


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(store=tmp_path_factory.mktemp("store"), device="cpu", workers=0, warm=False, hosts="testserver")
    known = replace(find("driving"), predictor=lambda artifacts, device: Known(), codec=DrivingCodec)
    with TestClient(create_app(settings, {"driving": known})) as test_client:
        yield test_client


def hand_in(client: TestClient, **sweeps: np.ndarray) -> tuple[str, dict[str, Any]]:
    """The address of the review of a case with these sweeps, and its result."""
    files = [("files", (f"{name}.bin", points.tobytes())) for name, points in sweeps.items()]
    response = client.post("/api/driving/predict", files=files)
    assert response.status_code == 200, response.text
    return f"/api/driving/cases/{response.json()['case']}/review", response.json()["result"]


@pytest.mark.parametrize(
    ("missed", "sentence"),
    [
        ({"frame": "z"}, "the case has no frame 'z'"),
        ({"name": "a van"}, "missed.name"),
        ({"size_m": [1, 2, 0]}, "missed.size_m.2"),
        ({"yaw": float("inf")}, "missed.yaw"),
    ],
)
def test_a_missed_object_without_a_valid_position_is_refused(
    client: TestClient, missed: dict[str, Any], sentence: str
) -> None:
    home, _ = hand_in(client, b=sweep(1))
    body = json.dumps({"missed": [MISSED | missed]})
    response = client.put(home, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422 and sentence in response.json()["detail"]
    response = client.put(home, json={"verdicts": {"3": "accepted"}})
    assert response.json()["detail"] == "the case has no finding 3; it has findings 1 to 2"


def test_training_runs_on_reviewed_frames(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, result = hand_in(client, a=sweep(2), b=sweep(3), c=sweep(4), empty=sweep(5))
    assert [box["frame"] for box in result["boxes"]] == ["a", "a", "b", "b", "c", "c"]
    verdicts = {"1": "accepted", "2": "rejected", "3": "rejected", "4": "rejected", "5": "accepted"}
    assert client.put(home, json={"verdicts": verdicts, "missed": [MISSED]}).status_code == 200
    alone, _ = hand_in(client, empty=sweep(6))
    assert client.put(alone, json={}).status_code == 200
    words = ["--store", str(client.app.state.store.folder), "--out", str(tmp_path / "out")]  # type: ignore[attr-defined]
    assert cli.main(["reviews", "driving", *words]) == 0
    output = " ".join(capsys.readouterr().out.split())
    # In the first case, frame c has a box without a verdict, and the empty frame may not have been reviewed.
    assert "frames not fully reviewed: 2." in output and "Frames written: 3." in output
    frames = [read_frame(tmp_path / "out", name) for name in frame_ids(tmp_path / "out")]
    truth = {len(frame.truth): frame for frame in frames if frame.truth is not None and frame.truth.names != ("van",)}
    (van,) = (frame for frame in frames if frame.truth is not None and frame.truth.names == ("van",))
    assert truth.keys() == {0, 1}
    assert np.allclose(truth[1].truth.centre_lidar_m, [BOX["centre_lidar_m"]])  # type: ignore[union-attr]
    assert truth[1].truth.names == ("car",) and np.array_equal(truth[1].points_lidar_m, sweep(2))  # type: ignore[union-attr]
    assert np.allclose(van.truth.size_m, [MISSED["size_m"]]) and np.allclose(van.truth.yaw, 1.5)  # type: ignore[union-attr]
    data = ["--data", "custom", "--data.root", str(tmp_path / "out")]
    few = ["--limits.steps", "1", "--limits.batch", "1", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(["train", "driving", "--recipe", "tiny", *data, *few]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def export(client: TestClient, out: Path, *words: str) -> int:
    store = str(client.app.state.store.folder)  # type: ignore[attr-defined]
    return cli.main(["reviews", "driving", "--store", store, "--out", str(out), *words])


def test_a_class_name_of_several_words_becomes_one_label_column(client: TestClient, tmp_path: Path) -> None:
    home, _ = hand_in(client, lights=sweep(8))
    review = {"reviewer": "Lin", "verdicts": {"1": "accepted", "2": "accepted"}}
    assert client.put(home, json=review).status_code == 200
    assert export(client, tmp_path / "out", "--reviewer", "Lin") == 0
    (name,) = frame_ids(tmp_path / "out")
    truth = read_frame(tmp_path / "out", name).truth
    assert truth is not None and truth.names == ("traffic_light",) * 2


def test_an_export_that_ends_early_leaves_nothing(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = hand_in(client, a=sweep(9))
    torn, _ = hand_in(client, a=sweep(10))
    for home in (whole, torn):
        review = {"reviewer": "Kim", "verdicts": {"1": "accepted", "2": "accepted"}}
        assert client.put(home, json=review).status_code == 200
    (client.app.state.store.folder / "cases" / torn.split("/")[4] / "boxes.json").unlink()  # type: ignore[attr-defined]
    (tmp_path / "empty").mkdir()
    for out in ("new", "empty"):
        assert export(client, tmp_path / out, "--reviewer", "Kim") == 2
        assert "has no boxes.json; delete it" in capsys.readouterr().err
        assert not list((tmp_path / out).glob("*"))
    assert client.delete(torn.removesuffix("/review")).status_code == 204
    assert export(client, tmp_path / "new", "--reviewer", "Kim") == 0


def test_thinned_sweeps_are_reported(client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, _ = hand_in(client, **{"=large": sweep(7, 70_000)})
    review = {"reviewer": "Ada", "verdicts": {"1": "accepted", "2": "accepted"}}
    assert client.put(home, json=review).status_code == 200
    words = ["--store", str(client.app.state.store.folder), "--out", str(tmp_path / "out")]  # type: ignore[attr-defined]
    assert cli.main(["reviews", "driving", *words, "--reviewer", "Ada"]) == 0
    assert "keeps 60,000 points: 1." in " ".join(capsys.readouterr().out.split())
    (name,) = frame_ids(tmp_path / "out")
    points = read_frame(tmp_path / "out", name).points_lidar_m
    assert points is not None and 50_000 < len(points) <= 60_000
    # The name of the original sweep, escaped so that a spreadsheet does not evaluate it.
    (row,) = csv.DictReader((tmp_path / "out" / "frames.csv").read_text().splitlines())
    case = home.split("/")[4]
    counts = {"points": "70000", "points_kept": str(len(points)), "images": "0"}
    assert row == {"file": name, "case": case, "frame": "'=large", **counts}


CALIBRATION = "P2: 700 0 620 0 0 700 187 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
MOUNT = "Tr_velo_to_cam: 0 -1 0 0.1 0 0 -1 -0.2 1 0 0 -0.3\n"


def kitti_zip(points: np.ndarray | None, image: np.ndarray) -> tuple[str, bytes]:
    """A zip with frame 000007 in KITTI's layout."""
    packed, picture = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")
    with zipfile.ZipFile(packed, "w") as archive:
        if points is not None:
            archive.writestr("velodyne/000007.bin", points.tobytes())
        archive.writestr("image_2/000007.png", picture.getvalue())
        archive.writestr("calib/000007.txt", CALIBRATION + MOUNT)
    return "frame.zip", packed.getvalue()


@pytest.fixture
def keeping(client: TestClient, tmp_path: Path) -> Iterator[TestClient]:
    """A server that keeps its inputs in full."""
    service = client.app.state.services["driving"]  # type: ignore[attr-defined]
    own_settings = service.settings.model_copy(update={"store": tmp_path / "store", "keep_inputs": True})
    with TestClient(create_app(own_settings, {"driving": service.app})) as found:
        yield found


def test_inputs_kept_in_full_are_exported_in_full(
    keeping: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points, image = sweep(11, 70_000), np.random.default_rng(1).integers(0, 256, (375, 1242, 3), np.uint8)
    out, verdicts = tmp_path / "out", {"1": "accepted", "2": "rejected"}
    for cloud in (points, None):
        case = keeping.post("/api/driving/predict", files=[("files", kitti_zip(cloud, image))]).json()
        missed = [MISSED | {"frame": "000007"}]
        response = keeping.put(
            f"/api/driving/cases/{case['case']}/review", json={"verdicts": verdicts, "missed": missed}
        )
        assert response.status_code == 200, response.text
    assert export(keeping, out) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Sweeps written: 1, of these from complete frames 1, from the viewer's files 0." in output
    assert "Images written, in full: 2." in output and "60,000" not in output
    (name,) = frame_ids(out)
    assert np.array_equal(read_frame(out, name).points_lidar_m, points)
    frames = Kitti(root=out).frames("train")
    frame = replace(frames, ids=(*frames.ids, *Kitti(root=out).frames("validation").ids)).read(1)
    camera = frame.cameras["image_2"]
    assert np.array_equal(camera.image_HWC, image)
    assert np.allclose(camera.lidar_to_camera[:3], np.array(MOUNT.split()[1:], float).reshape(3, 4))
    assert frame.truth is not None and frame.truth.names == ("car", "van")
    assert np.allclose(frame.truth.centre_lidar_m, [BOX["centre_lidar_m"], MISSED["centre_lidar_m"]], atol=1e-3)
    assert np.allclose(frame.truth.yaw, [BOX["yaw"], MISSED["yaw"]], atol=1e-3)


def surround(frames: int) -> list[tuple[str, tuple[str, bytes]]]:
    """Key frames of three cameras each, described by a sample.json."""
    files, described = [], []
    for number in range(frames):
        views = {}
        for camera in ("CAM_FRONT", "CAM_LEFT", "CAM_RIGHT"):
            picture = io.BytesIO()
            Image.fromarray(np.full((48, 64, 3), number, np.uint8)).save(picture, "PNG")
            files.append(("files", (f"{camera}_{number}.png", picture.getvalue())))
            turn = [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
            cam2img = [[40, 0, 32], [0, 40, 24], [0, 0, 1]]
            views[camera] = {"img_path": f"{camera}_{number}.png", "cam2img": cam2img, "lidar2cam": turn}
        described.append({"token": f"t{number}", "images": views})
    info = json.dumps({"metainfo": {"categories": {}}, "data_list": described})
    return [("files", ("sample.json", info.encode())), *files]


def reviewed_by(keeping: TestClient, files: list[tuple[str, tuple[str, bytes]]], boxes: int) -> None:
    response = keeping.post("/api/driving/predict", files=files)
    assert response.status_code == 200, response.text
    review = {"verdicts": {str(number): "accepted" for number in range(1, boxes + 1)}}
    assert keeping.put(f"/api/driving/cases/{response.json()['case']}/review", json=review).status_code == 200


def test_the_cameras_of_a_frame_are_in_the_same_split(
    keeping: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviewed_by(keeping, surround(6), 12)
    assert export(keeping, tmp_path / "out") == 0
    assert "All are from one case" in capsys.readouterr().out
    parts = [Kitti(root=tmp_path / "out").frames(split).ids for split in ("train", "validation")]
    assert [len(part) for part in parts] == [15, 3]
    training, validating = ({name.rpartition("-CAM")[0] for name in part} for part in parts)
    assert len(training) == 5 and len(validating) == 1 and not training & validating
    assert (tmp_path / "out" / "training" / "image_2" / f"{parts[1][0]}.png").is_file()


def test_the_frames_of_a_case_are_in_the_same_split(
    keeping: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (2, 3, 6):
        reviewed_by(keeping, surround(count), 2 * count)
        sweeps = [("files", (f"{number}.bin", sweep(number).tobytes())) for number in range(count)]
        reviewed_by(keeping, sweeps, 2 * count)
    assert export(keeping, tmp_path / "out") == 0
    assert "All are from one case" not in capsys.readouterr().out
    for data, rows in ((Kitti(root=tmp_path / "out"), 3), (Custom(root=tmp_path / "out"), 1)):
        parts = [data.frames(split).ids for split in ("train", "validation")]
        assert [len(part) for part in parts] == [9 * rows, 2 * rows]
        learning, validating = ({name.partition("-")[0] for name in part} for part in parts)
        assert len(learning) == 2 and len(validating) == 1 and not learning & validating


def test_images_that_the_store_does_not_keep_are_skipped(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = client.post(
        "/api/driving/predict", files=[("files", kitti_zip(None, np.zeros((375, 1242, 3), np.uint8)))]
    ).json()
    review = {"reviewer": "Eva", "verdicts": {"1": "accepted", "2": "accepted"}}
    assert client.put(f"/api/driving/cases/{case['case']}/review", json=review).status_code == 200
    assert export(client, tmp_path / "out", "--reviewer", "Eva") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "frames with images only: 1." in output and "TRIVIUM_KEEP_INPUTS" in output
    assert not (tmp_path / "out" / "training").exists()
