"""nuScenes submissions: the scorer reads back what was written, in the global frame."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from apps.driving.adapters import nuscenes
from apps.driving.app import app
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.inference.folder import predict_folder
from apps.driving.metrics.nuscenes_files import read_submission
from apps.driving.outputs.nuscenes import MAX_BOXES, submission
from apps.driving.outputs.result import frame_line
from apps.driving.predictor import Options
from apps.driving.types import Detections
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError
from tests.apps.driving.test_data_sets import write_tables


@pytest.fixture
def data_set(data_root, tmp_path):
    """The real key frame in the layout of the data set, with the sensor files at the paths in its tables."""
    source = data_root / "driving" / "nuscenes_sample"
    (tmp_path / "nuscenes").mkdir()
    write_tables(json.loads((source / "sample.json").read_text()), tmp_path / "nuscenes")
    for file in source.iterdir():
        if file.suffix != ".json":
            folder = tmp_path / "nuscenes" / "samples" / file.name.split("__")[1]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder)
    return tmp_path / "nuscenes"


@pytest.mark.realdata
def test_labels_written_as_a_submission_read_back_as_the_ground_truth(data_set, tmp_path):
    frame = NuScenes(root=data_set, version="v1.0-mini").all_frames().read(0)
    truth = frame.truth
    found = replace(truth, scores=np.linspace(1, 0.5, len(truth)).astype(np.float32))
    text = "".join(submission([frame_line(frame, Detections(boxes=found, model="pointpillars"))]))
    assert json.loads(text)["meta"] == {
        "use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": True,
    }  # fmt: skip
    (tmp_path / "results_nusc.json").write_text(text)
    read = read_submission(tmp_path / "results_nusc.json", data_set / "v1.0-mini")
    known = np.isin(read.truth.names_N, read.detections.names_N)
    assert len(read.detections.names_N) == known.sum() > 30
    for name in set(read.detections.names_N):
        mine, theirs = (part.take(part.names_N == name) for part in (read.detections, read.truth))
        away = np.linalg.norm(mine.centre_m_N2[:, None] - theirs.centre_m_N2, axis=-1)
        nearest = away.argmin(axis=1)
        assert len(set(nearest)) == len(nearest) and away.min(axis=1).max() < 5e-3
        assert mine.size_m_N3 == pytest.approx(theirs.size_m_N3[nearest], abs=2e-3)
        turn = mine.yaw_N - theirs.yaw_N[nearest]
        assert np.abs(np.arctan2(np.sin(turn), np.cos(turn))).max() < 2e-3
    scored = app.score_files({"labels": data_set / "v1.0-mini", "results": tmp_path / "results_nusc.json"})
    assert any("1.000" in cell for row in scored.rows for cell in row)


@pytest.mark.realdata
def test_a_data_set_gives_the_same_as_a_single_key_frame(ask, predictor, data_root, data_set, tmp_path):
    log, out = [], tmp_path / "out"
    for folder in (data_set, data_set / "v1.0-mini"):  # the second run finds all frames done
        assert predict_folder(predictor, folder, out, Options(score=0.2), log.append) == 0
        written = json.loads((out / "results_nusc.json").read_text())
    assert "1 frames, 1 of them already done" in log[-3]
    shutil.copytree(data_set / "v1.0-mini", data_set / "v1.0-test")
    with pytest.raises(InvalidInputError, match=r"nuscenes contains v1\.0-mini, v1\.0-test; give one of these folders"):
        predict_folder(predictor, data_set, out, Options(), log.append)
    shutil.rmtree(data_set / "v1.0-test")
    (line,) = [json.loads(text) for text in (out / "frames.jsonl").read_text().splitlines()]
    assert list(written["results"]) == [line["name"]]
    boxes = written["results"][line["name"]]
    assert 0 < len(boxes) == min(len(line["boxes"]), MAX_BOXES)
    assert read_submission(out / "results_nusc.json", data_set / "v1.0-mini").samples == 1
    # The info file has other poses than these tables, so the boxes agree except for their global positions.
    response = ask(Request(files=(data_root / "driving" / "nuscenes_sample",), options={"score": "0.2"}))
    alone = json.loads(response.files["results_nusc.json"])["results"]["ca9a282c9e77460f8360f564131a8af5"]
    assert response.result["frames"][0]["boxes"] == line["boxes"]
    assert [box["size"] for box in alone] == [box["size"] for box in boxes]
    frame = nuscenes.read(data_root / "driving" / "nuscenes_sample")[0]
    centre = frame.lidar_to_global @ [*line["boxes"][0]["centre_lidar_m"], 1]
    assert alone[0]["translation"] == pytest.approx(centre[:3].tolist())
    with pytest.raises(
        InvalidInputError, match=r"is one of nuScenes' own tables.*trivium predict driving NUSCENES --each"
    ):
        ask(Request(files=(data_set,)))


def test_a_submission_has_at_most_500_boxes_of_its_classes():
    boxes = [
        {"name": name, "score": score, "centre_lidar_m": [1, 2, 3], "size_m": [4, 2, 1.5], "yaw": 0.5}
        for score in np.linspace(0.1, 0.9, 300).tolist()
        for name in ("car", "cyclist", "tram")
    ]
    line = {"name": "token", "model": "fcos3d", "boxes": boxes, "lidar_to_global": np.eye(4).tolist()}
    content = json.loads("".join(submission([line, {"name": "elsewhere", "model": "fcos3d", "boxes": boxes}])))
    assert content["meta"]["use_camera"] and not content["meta"]["use_lidar"]
    (found,) = content["results"].values()
    assert len(found) == 500 and {box["detection_name"] for box in found} == {"car", "bicycle"}
    assert min(box["detection_score"] for box in found) > 0.23
    assert found[0] == {
        "sample_token": "token", "translation": [1, 2, 3], "size": [2, 4, 1.5],
        "rotation": pytest.approx([np.cos(0.25), 0, 0, np.sin(0.25)]), "velocity": [0, 0],
        "detection_name": "car", "detection_score": 0.9, "attribute_name": "",
    }  # fmt: skip
    assert json.loads("".join(submission([])))["results"] == {}
