"""Prediction on folders of any size: same answers as in one call, written one by one, resumable."""

import copy
import json
import shutil
import threading
import weakref

import numpy as np
import pytest

import trivium
from apps.driving.adapters import kitti
from apps.driving.adapters.point_files import read_points
from apps.driving.inference import video
from apps.driving.inference.detect import LidarDetector
from apps.driving.inference.folder import predict_folder
from apps.driving.inference.second_stage import SecondStage
from apps.driving.predictor import Options
from shared import cli
from shared.app import find
from shared.deploy.opening import open_predictor
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError
from shared.threads import compute_threads


@pytest.fixture
def split(synthetic, tmp_path):
    """Four frames, the second without an image."""
    root = tmp_path / "training"
    for number in range(4):
        for part, ending in (("velodyne", "bin"), ("image_2", "png"), ("calib", "txt"), ("label_2", "txt")):
            (root / part).mkdir(parents=True, exist_ok=True)
            if (number, part) != (1, "image_2"):
                shutil.copy(synthetic / part / f"synthetic.{ending}", root / part / f"{number:06d}.{ending}")
        points = read_points(root / "velodyne" / f"{number:06d}.bin")
        points[number :: number + 2].tofile(root / "velodyne" / f"{number:06d}.bin")
    return root


def lines(out):
    return [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]


def test_answers_are_the_same_as_in_one_call(ask, predictor, split, tmp_path):
    log = []
    assert predict_folder(predictor, split.parent, tmp_path / "out", Options(score=0.2), log.append) == 0
    response = ask(Request(files=(split,), options={"score": "0.2"}))
    assert lines(tmp_path / "out") == response.result["frames"]
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.txt")}
    assert written == {name: text for name, text in response.files.items() if name.endswith(".txt")}
    assert sorted(written) == ["000000.txt", "000002.txt", "000003.txt"]
    assert "4 frames, 0 of them already done" in log[0]


def test_an_interrupted_run_resumes(predictor, split, tmp_path, monkeypatch):
    out, looked, log = tmp_path / "out", [], []
    compute = type(predictor).compute

    def stopped_at_the_third(self, prepared):
        looked.append(prepared.frame.name)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return compute(self, prepared)

    monkeypatch.setattr(type(predictor), "compute", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(predictor, split, out, Options(), log.append)
    assert "the last frame done is 000001" in log[-1]
    # The run was interrupted in the middle of a line.
    with (out / "frames.jsonl").open("a") as file:
        file.write('{"name": "0000')
    assert predict_folder(predictor, split, out, Options(), log.append) == 0
    assert looked == ["000000", "000001", "000002", "000002", "000003"]
    assert [line["name"] for line in lines(out)] == ["000000", "000001", "000002", "000003"]
    assert predict_folder(predictor, split, out, Options(), log.append) == 0
    assert len(looked) == 5


def test_an_unreadable_frame_is_skipped_and_retried(predictor, split, tmp_path):
    sweep, log = split / "velodyne" / "000002.bin", []
    good = sweep.read_bytes()
    sweep.write_bytes(good[:-3])
    assert predict_folder(predictor, split, tmp_path / "out", Options(), log.append) == 1
    assert any("left out: 000002.bin has" in text for text in log) and "frames left out: 1" in log[-1]
    assert not (tmp_path / "out" / "000002.txt").exists()
    sweep.write_bytes(good)
    assert predict_folder(predictor, split, tmp_path / "out", Options(), log.append) == 0
    assert {line["name"] for line in lines(tmp_path / "out")} == {f"{n:06d}" for n in range(4)}


def test_a_split_with_an_implausible_sensor_height_gets_one_remark(predictor, split, tmp_path):
    for sweep in (split / "velodyne").iterdir():
        (read_points(sweep) + np.float32([0, 0, 1.73, 0])).tofile(sweep)
    log = []
    assert predict_folder(predictor, split, tmp_path / "out", Options(), log.append) == 0
    assert sum("The lowest points ahead lie at z" in text for text in log) == 1
    assert log[-1] == "frames with remarks: 4; see frames.jsonl"
    assert all(line["remarks"] for line in lines(tmp_path / "out"))


def test_answers_of_other_options_or_folders_are_not_mixed(predictor, split, tmp_path):
    predict_folder(predictor, split, tmp_path / "out", Options(), print)
    shutil.copytree(split, tmp_path / "other")
    for root, options in (
        (split, Options(score=0.5)),
        (split, Options(model="fcos3d")),
        (tmp_path / "other", Options()),
    ):
        with pytest.raises(InvalidInputError, match="choose another directory"):
            predict_folder(predictor, root, tmp_path / "out", options, print)
    calibrated = copy.copy(predictor)
    calibrated.least_scores = {"pointpillars": {"car": 0.7}}
    with pytest.raises(InvalidInputError, match="choose another directory"):
        predict_folder(calibrated, split, tmp_path / "out", Options(), print)


def test_the_next_frame_is_read_while_a_network_computes(predictor, split, tmp_path, monkeypatch):
    begun = [threading.Event() for _ in range(5)]
    begun[4].set()  # there is no fifth
    read, compute = kitti.read_frame, type(predictor).compute

    def noted(root, frame_id, **settings):
        begun[int(frame_id)].set()
        return read(root, frame_id, **settings)

    def only_beside_the_next(self, prepared):
        assert begun[int(prepared.frame.name) + 1].wait(timeout=60)
        return compute(self, prepared)

    monkeypatch.setattr(kitti, "read_frame", noted)
    monkeypatch.setattr(type(predictor), "compute", only_beside_the_next)
    assert predict_folder(predictor, split, tmp_path / "out", Options(), print) == 0
    assert len(lines(tmp_path / "out")) == 4


def test_three_frames_are_in_memory_at_a_time(predictor, split, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "usable_cores", lambda: 2)
    frames_alive, most = weakref.WeakValueDictionary(), []
    read = kitti.read_sweep

    def counted(path):
        most.append(len(frames_alive))
        points, remarks = read(path)
        points = points.view(Points)
        frames_alive[len(most)] = points
        return points, remarks

    monkeypatch.setattr(kitti, "read_sweep", counted)
    predict_folder(predictor, split, tmp_path / "out", Options(model="pointpillars"), print)
    # While a frame is read, the network computes the previous one, and the boxes of the one before that are decoded.
    assert len(most) == 4 and max(most) <= 2


class Points(np.ndarray):
    """An array that supports weak references."""


def test_the_command_processes_a_folder(split, tmp_path, capsys):
    (split / "velodyne" / "000002.bin").write_bytes(b"torn")
    (split / "image_2" / "000002.png").unlink()
    command = ["predict", "driving", str(split), "--each", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    assert "4 frames, 0 of them already done" in (log := capsys.readouterr().out) and "left out: 000002.bin" in log
    assert len(lines(tmp_path / "out")) == 3


def test_the_command_processes_sweeps_directly_in_a_folder(split, tmp_path, capsys):
    (split / "velodyne" / "notes.md").write_text("of the drive")
    np.save(split / "velodyne" / "000009.npy", read_points(split / "velodyne" / "000000.bin"))
    command = ["predict", "driving", str(split / "velodyne"), "--each", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "5 frames, 0 of them already done" in capsys.readouterr().out
    names = [line["name"] for line in lines(tmp_path / "out")]
    assert names == ["000000", "000001", "000002", "000003", "000009"]
    shutil.copy(split / "velodyne" / "000003.bin", split / "velodyne" / "000009.bin")
    assert cli.main(command) == 2
    assert "two files could be the sweep 000009" in capsys.readouterr().err


def test_the_command_refuses_bad_input_with_one_sentence(split, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "log" / "sensors" / "lidar").mkdir(parents=True)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "sample.json").write_text("[]")
    for app, inputs, words in (
        ("driving", [tmp_path / "empty"], "empty contains nothing that --each reads: sweeps (.bin, .pcd, .npy)"),
        ("driving", [tmp_path / "log"], "log contains no Argoverse 2 sweep (sensors/lidar/TIMESTAMP.feather)"),
        ("driving", [tmp_path / "tables"], "tables/sample.json is one of nuScenes' own tables"),
        ("driving", [split, split], "--each takes one folder"),
        ("driving", [split / "velodyne" / "000000.bin"], "--each takes a folder or a ROS bag"),
        ("finance", [split], "finance cannot predict the cases of a folder one by one; omit --each"),
    ):
        assert cli.main(["predict", app, *map(str, inputs), "--each", "--out", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


def test_the_second_stage_overlaps_with_the_next_sweep_using_half_of_the_threads(split, tmp_path, monkeypatch):
    shipped = trivium.load("driving").predictor
    shutil.rmtree(split / "image_2")
    begun, threads = [threading.Event() for _ in range(5)], []
    begun[4].set()  # there is no fifth
    compute, refined = LidarDetector.compute, SecondStage.refine

    def noted(self, frame):
        begun[int(frame.name)].set()
        threads.append(compute_threads())
        return compute(self, frame)

    names = iter(range(4))

    def only_beside_the_next(self, found, points):
        assert begun[next(names) + 1].wait(timeout=60)
        threads.append(compute_threads())
        return refined(self, found, points)

    monkeypatch.setattr(LidarDetector, "compute", noted)
    monkeypatch.setattr(SecondStage, "refine", only_beside_the_next)
    monkeypatch.setenv("TRIVIUM_THREADS", "6")
    assert predict_folder(shipped, split, tmp_path / "out", Options(), print) == 0
    assert threads == [3] * 8 and compute_threads() == 6
    assert any(line["boxes"] for line in lines(tmp_path / "out"))


@pytest.mark.realdata
def test_argoverse_2_logs_give_the_same_as_in_one_call(ask, predictor, data_root, tmp_path):
    log = data_root / "driving" / "av2_7fab2350"
    assert predict_folder(predictor, log, tmp_path / "one", Options(score=0.2), print) == 0
    at_once = ask(Request(files=(log,), options={"score": "0.2"})).result["frames"]
    assert len(at_once) == 2 and [boxes_of(line) for line in lines(tmp_path / "one")] == [*map(boxes_of, at_once)]
    for name in ("b", "a"):
        shutil.copytree(log, tmp_path / "split" / "val" / name)
    (tmp_path / "split" / "val" / "b" / "sensors" / "lidar" / "315966265360032000.feather").write_bytes(b"torn")
    lines_logged = []
    assert predict_folder(predictor, tmp_path / "split", tmp_path / "two", Options(score=0.2), lines_logged.append) == 1
    names = [line["name"] for line in lines(tmp_path / "two")]
    assert names == ["a_315966265259836000", "a_315966265360032000", "b_315966265259836000"]
    assert any("left out" in line and "315966265360032000.feather" in line for line in lines_logged)


def boxes_of(line):
    return [line["name"], line["model"], line["boxes"]]


@pytest.mark.realdata
def test_key_frames_of_a_sample_json_give_the_same_as_in_one_call(ask, predictor, data_root, tmp_path):
    root = tmp_path / "key"
    shutil.copytree(data_root / "driving" / "nuscenes_sample", root)
    content = json.loads((root / "sample.json").read_text())
    (sample,) = content["data_list"]
    second_sample = copy.deepcopy(sample)
    second_sample["token"] = "second"
    for described in (second_sample["lidar_points"], *second_sample["images"].values()):
        (key,) = {"lidar_path", "img_path"} & described.keys()
        shutil.copy(root / described[key], root / f"second_{described[key]}")
        described[key] = f"second_{described[key]}"
    (root / f"second_{sample['lidar_points']['lidar_path']}").write_bytes(b"torn")
    (root / "sample.json").write_text(json.dumps(content | {"data_list": [second_sample, sample]}))
    log = []
    assert predict_folder(predictor, root, tmp_path / "out", Options(score=0.2), log.append) == 1
    assert any("left out" in line and "not a multiple of 20" in line for line in log)
    (root / "sample.json").write_text(json.dumps(content))
    at_once = ask(Request(files=(root,), options={"score": "0.2"}))
    assert [boxes_of(line) for line in lines(tmp_path / "out")] == [*map(boxes_of, at_once.result["frames"])]
    assert (tmp_path / "out" / "results_nusc.json").read_bytes() == at_once.files["results_nusc.json"]
    sample_file = root / "sample.json"
    assert predict_folder(predictor, sample_file, tmp_path / "images", Options(model="fcos3d"), log.append) == 0
    assert lines(tmp_path / "images")[0]["model"] == "fcos3d"


def test_programs_are_loaded_before_the_first_frame_is_read(split, tmp_path, monkeypatch):
    """Programs are chosen by timing, which reading or correcting a frame at the same time would distort."""
    opened = open_predictor(find("driving"), lazy=True).predictor
    needed, loaded = [opened.programs[name] for name in ("pointpillars", "lidar_rcnn")], []
    assert all(program.opener is not None for program in needed)
    read = kitti.read_frame

    def noted(root, frame_id, **settings):
        loaded.append([program.opener is None for program in needed])
        return read(root, frame_id, **settings)

    monkeypatch.setattr(kitti, "read_frame", noted)
    assert predict_folder(opened, split, tmp_path / "out", Options(), print) == 0
    assert loaded == [[True, True]] * 4
    assert opened.programs["fcos3d"].opener is not None  # no frame needs it
