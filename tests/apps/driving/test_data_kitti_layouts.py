"""KITTI's tracking sequences and raw drives in their published folder layouts."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from apps.driving.adapters import kitti
from apps.driving.adapters.registry import read_frames
from apps.driving.inference.folder import predict_folder
from apps.driving.predictor import Options
from shared.errors import InvalidInputError


@pytest.fixture
def tracking(synthetic, tmp_path):
    """Two sequences of two frames and one, in the layout of data_tracking_velodyne, image_2, calib and label_2."""
    root = tmp_path / "training"
    for sequence, numbers in (("0000", (0, 1)), ("0007", (5,))):
        for folder, suffix in (("velodyne", "bin"), ("image_02", "png")):
            (root / folder / sequence).mkdir(parents=True)
            for number in numbers:
                source = synthetic / {"image_02": "image_2"}.get(folder, folder) / f"synthetic.{suffix}"
                shutil.copy(source, root / folder / sequence / f"{number:06d}.{suffix}")
        for folder in ("calib", "label_02"):
            (root / folder).mkdir(exist_ok=True)
        text = (synthetic / "calib" / "synthetic.txt").read_text()
        spelt = text.replace("R0_rect:", "R_rect").replace("Tr_velo_to_cam:", "Tr_velo_cam")
        (root / "calib" / f"{sequence}.txt").write_text(spelt)
        labels = (synthetic / "label_2" / "synthetic.txt").read_text().splitlines()
        rows = [f"{number} {track} {line}" for number in numbers for track, line in enumerate(labels[: 2 + number])]
        (root / "label_02" / f"{sequence}.txt").write_text("\n".join(rows))
    return root


@pytest.fixture
def drive(synthetic, tmp_path):
    """A synchronised raw drive with two frames; its calibration files are in the day's folder."""
    day = tmp_path / "2011_09_26"
    root = day / "2011_09_26_drive_0001_sync"
    for folder, suffix in (("velodyne_points", "bin"), ("image_02", "png"), ("image_03", "png")):
        (root / folder / "data").mkdir(parents=True)
        for number in (0, 1):
            source = synthetic / ("velodyne" if suffix == "bin" else "image_2") / f"synthetic.{suffix}"
            shutil.copy(source, root / folder / "data" / f"{number:010d}.{suffix}")
    calibration = kitti.read_calibration(synthetic / "calib" / "synthetic.txt")
    offset, mount = calibration.reference_offset_m, calibration.lidar_to_camera.astype(np.float64)
    projection = calibration.intrinsics.astype(np.float64) @ np.column_stack([np.eye(3), offset])

    def row(name, values):
        return f"{name}: {' '.join(f'{value:.9e}' for value in np.ravel(values))}\n"

    (day / "calib_cam_to_cam.txt").write_text(row("P_rect_02", projection) + row("R_rect_00", np.eye(3)))
    (day / "calib_velo_to_cam.txt").write_text(row("R", mount[:3, :3]) + row("T", mount[:3, 3] - offset))
    return root


def test_a_tracking_folder_gives_the_frames_of_its_sequences(tracking, synthetic):
    (expected,) = kitti.read(synthetic)
    frames = read_frames([tracking])
    assert [frame.name for frame in frames] == ["0000_000000", "0000_000001", "0007_000005"]
    for frame in frames:
        assert np.array_equal(frame.points_lidar_m, expected.points_lidar_m)
        camera, known = frame.cameras["image_2"], expected.cameras["image_2"]
        assert camera.lidar_to_camera == pytest.approx(known.lidar_to_camera, abs=1e-5)
    assert [len(frame.truth) for frame in frames] == [2, 3, min(7, len(expected.truth))]
    assert frames[1].truth.array == pytest.approx(expected.truth.array[:3], abs=1e-3)


def test_a_raw_drive_gives_its_frames(drive, synthetic):
    (expected,) = kitti.read(synthetic)
    for handed in (drive, drive.parent):
        frames = read_frames([handed])
        assert [frame.name for frame in frames] == ["0000000000", "0000000001"]
        assert np.array_equal(frames[0].points_lidar_m, expected.points_lidar_m)
        camera, known = frames[0].cameras["image_2"], expected.cameras["image_2"]
        assert camera.lidar_to_camera == pytest.approx(known.lidar_to_camera, abs=1e-5)
        assert camera.intrinsics == pytest.approx(known.intrinsics, abs=1e-3) and frames[0].truth is None
    (drive.parent / "calib_cam_to_cam.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"0000000000\.png has no calibration"):
        read_frames([drive])


def test_sequences_are_processed_one_frame_at_a_time(predictor, tracking, tmp_path):
    log = []
    assert predict_folder(predictor, tracking, tmp_path / "out", Options(model="pointpillars"), log.append) == 0
    written = sorted(file.name for file in (tmp_path / "out").glob("*.txt"))
    assert written == ["0000_000000.txt", "0000_000001.txt", "0007_000005.txt"]
    predict_folder(predictor, tracking, tmp_path / "out", Options(model="pointpillars"), log.append)
    assert any("3 frames, 3 of them already done" in line for line in log)


def test_images_without_sweeps_are_read_with_the_calibrations_beside_them(synthetic, monkeypatch):
    (expected,) = kitti.read(synthetic)
    for handed in (synthetic / "image_2", Path()):
        monkeypatch.chdir(synthetic / "image_2")
        (frame,) = read_frames([handed])
        assert frame.name == expected.name and frame.points_lidar_m is None and frame.truth is None
        assert np.array_equal(frame.cameras["image_2"].intrinsics, expected.cameras["image_2"].intrinsics)


@pytest.mark.parametrize(("text", "fault"), [("", "is empty"), ("hello\n:\n", "has no row P2")])
def test_an_invalid_calibration_is_not_reported_as_missing(synthetic, tmp_path, text, fault):
    for part in ("image_2/synthetic.png", "velodyne/synthetic.bin"):
        shutil.copy(synthetic / part, tmp_path)
    calibration = tmp_path / "synthetic.txt"
    calibration.write_text(text)
    for file_name, advice in (("synthetic.png", r"Tr_velo_to_cam\)$"), ("synthetic.bin", "leave synthetic.txt out")):
        with pytest.raises(InvalidInputError, match=rf"synthetic\.txt {fault}.*, so it is not the .*{advice}"):
            read_frames([tmp_path / file_name, calibration])
    copy = shutil.copytree(synthetic, tmp_path / "tree")
    (copy / "calib" / "synthetic.txt").write_text(text)
    with pytest.raises(InvalidInputError, match=rf"synthetic\.txt {fault}; a KITTI calibration needs P2, R0_rect and"):
        read_frames([copy])
    with pytest.raises(InvalidInputError, match=rf"synthetic\.txt {fault}; a KITTI calibration needs P2, R0_rect and"):
        read_frames([copy / "image_2" / "synthetic.png", copy / "calib" / "synthetic.txt"])


def test_files_of_an_argoverse_log_without_their_folders_are_refused(tmp_path):
    """A sweep by itself, and the files of a log as they arrive when its folder is dropped on the form."""
    sweep, calibration = tmp_path / "1.feather", tmp_path / "egovehicle_SE3_sensor.feather"
    for file in (sweep, calibration):
        file.touch()
    for files in ([sweep], [sweep, calibration]):
        with pytest.raises(
            InvalidInputError, match=r"part of an Argoverse 2 log.*give the folder of the log, or a zip"
        ):
            read_frames(files)
