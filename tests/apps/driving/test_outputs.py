"""The outputs for frames: the picture, KITTI result files, and the viewer's files."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from apps.driving.adapters import kitti
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.outputs import kitti as results
from apps.driving.outputs import picture, view
from apps.driving.outputs.scene import SCENE, read_scene
from apps.driving.outputs.scene import scene as scene_file
from apps.driving.types import Boxes3D, Frame


@pytest.fixture(scope="module")
def frame():
    return scene(np.random.default_rng(4), sensors=Sensors(image_scale=0.2), kind="street")


@pytest.fixture(scope="module")
def found(frame):
    truth = frame.truth
    return replace(truth, scores=np.linspace(0.9, 0.2, len(truth), dtype=np.float32), box_2d=None, truncation=None)


def opened(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_the_picture_shows_the_boxes_and_is_always_the_same(frame, found):
    drawn = picture.draw(frame, found)
    assert drawn == picture.draw(frame, found)
    assert opened(drawn).width == picture.WIDTH
    bare = np.asarray(opened(picture.draw(replace(frame, truth=None), Boxes3D.empty())))
    full = np.asarray(opened(picture.draw(replace(frame, truth=None), found)))
    assert bare.shape == full.shape
    assert (bare != full).any(-1).sum() > 500


def test_a_picture_needs_neither_camera_nor_lidar(frame, found):
    assert opened(picture.draw(replace(frame, cameras={}), found)).height == picture.PLAN_HEIGHT
    alone = opened(picture.draw(replace(frame, points_lidar_m=None), found))
    assert alone.height < picture.PLAN_HEIGHT


def test_pictures_of_several_frames_are_stacked_in_one_file(frame, found, monkeypatch):
    camera_only = replace(frame, points_lidar_m=None)
    parts = [np.asarray(opened(picture.draw(*pair))) for pair in ((frame, found), (camera_only, found))]
    written, save = [], Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *args, **more: written.append(args) or save(*args, **more))
    whole = picture.draw_all([frame, camera_only], [found, found])
    assert len(written) == 1
    assert np.array_equal(np.asarray(opened(whole)), np.concatenate(parts))


def test_result_files_read_back_as_the_same_boxes(frame, found, tmp_path):
    camera = frame.cameras["image_2"]
    (tmp_path / "out.txt").write_text(results.write(found, camera))
    labels, _ = kitti.read_labels(tmp_path / "out.txt", camera)
    shown = found.take(~np.isnan(frame.truth.box_2d[:, 0]))
    assert labels.names == shown.names
    assert labels.array == pytest.approx(shown.array, abs=1e-3)
    assert labels.scores == pytest.approx(shown.scores, abs=1e-3)
    assert results.write(Boxes3D.empty(), camera) == ""


def test_a_class_name_of_several_words_becomes_one_result_column(frame, found):
    with_light = replace(found, names=("traffic light",) * len(found))
    lines = results.write(with_light, frame.cameras["image_2"]).splitlines()
    assert lines and {len(line.split()) for line in lines} == {16}
    assert {line.split()[0] for line in lines} == {"Traffic_light"}


def test_the_viewer_gets_points_image_and_boxes(frame, found):
    files = view.files([frame], [found])
    assert set(files) == {"boxes.json", "points.bin", "image.jpg"}
    points = np.frombuffer(files["points.bin"], "<f4").reshape(-1, 4)
    assert 0 < len(points) <= view.MAX_POINTS
    assert opened(files["image.jpg"]).size == (frame.cameras["image_2"].image_HWC.shape[1::-1])
    (described,) = json.loads(files["boxes.json"])["frames"]
    assert described["points"] == len(frame.points_lidar_m)
    assert len(described["boxes"]) == len(found)
    away = [box["distance_m"] for box in described["boxes"]]
    assert away == sorted(away)
    inside = ~np.isnan(frame.truth.box_2d[:, 0])
    assert sum("image_2" in box["edges_px"] for box in described["boxes"]) == inside.sum()


def test_the_picture_is_drawn_later_from_the_viewers_files(frame, found):
    frames = [frame, replace(frame, name="an/other", points_lidar_m=None, truth=None)]
    content, names = scene_file([*frames], [found, found], many=True)
    sources = {**view.files(frames, [found, found]), SCENE: content}
    restored, boxes = read_scene({name: sources[name] for name in names})
    assert [frame.name for frame in restored] == [frame.name for frame in frames]
    for restored_boxes, original_boxes in zip(boxes, (found, found), strict=True):
        np.testing.assert_array_equal(restored_boxes.array, original_boxes.array)
        assert restored_boxes.names == original_boxes.names and (restored_boxes.scores == original_boxes.scores).all()
    np.testing.assert_array_equal(restored[0].truth.array, frame.truth.array)
    assert restored[1].truth is None and restored[1].points_lidar_m is None
    as_given, later = (
        np.asarray(opened(picture.draw_all(*pair)), int) for pair in ((frames, [found] * 2), (restored, boxes))
    )
    # JPEG values are close to the image's; some of the points are dropped.
    assert later.shape == as_given.shape and np.abs(later - as_given).mean() < 4


def test_each_of_several_frames_has_its_own_files(frame, found):
    camera_only = replace(frame, name="an/other", points_lidar_m=None)
    files = view.files([replace(frame, name="1"), camera_only], [found, found])
    assert set(files) == {"boxes.json", "1_points.bin", "1_image.jpg", "an-other_image.jpg"}
    listed = json.loads(files["boxes.json"])["frames"]
    assert listed[1]["cameras"][0]["file"] == "an-other_image.jpg"
    assert listed[1]["points_file"] is None


def test_cameras_are_arranged_by_their_direction(frame, found):
    """In nuScenes' original order the left camera would be to the right of the front camera."""

    def looking(degrees):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        about_z = np.array([[c, s, 0, 0], [-s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
        ahead = frame.cameras["image_2"]
        return replace(ahead, lidar_to_camera=ahead.lidar_to_camera @ about_z)

    degrees = {"FRONT": 0, "FRONT_RIGHT": -56, "FRONT_LEFT": 55, "BACK": 180, "BACK_LEFT": 108, "BACK_RIGHT": -111}
    around = replace(frame, cameras={name: looking(turn) for name, turn in degrees.items()})
    listed = json.loads(view.files([around], [found])["boxes.json"])["frames"][0]["cameras"]
    assert [camera["name"] for camera in listed] == [
        *("FRONT_LEFT", "FRONT", "FRONT_RIGHT"),
        *("BACK_LEFT", "BACK", "BACK_RIGHT"),
    ]


def test_a_sweep_is_thinned_only_once_per_answer(frame, found, monkeypatch):
    thinned, thin = [], view.thin
    monkeypatch.setattr(view, "thin", lambda points: thinned.append(len(points)) or thin(points))
    _, names = scene_file([frame], [found], many=False)
    files = view.files([frame], [found])
    assert set(names) <= {SCENE, *files} and thinned == [len(frame.points_lidar_m)]


def test_thinning_keeps_distant_points():
    draw = np.random.default_rng(0)
    near, far = draw.uniform(-5, 5, (90_000, 4)), draw.uniform(30, 60, (2_000, 4))
    points = np.concatenate([near, far]).astype(np.float32)
    thinned = view.thin(points, 10_000)
    assert len(thinned) <= 10_000
    assert (thinned[:, 0] > 30).mean() > 3 * 2_000 / 92_000
    assert np.array_equal(view.thin(points[:500], 10_000), points[:500])


def test_the_picture_of_a_360_degree_sweep_shows_the_area_behind():
    def at(x):
        return Boxes3D(
            centre_lidar_m=np.array([[x, 0, -1]], np.float32),
            size_m=np.array([[4, 2, 1.5]], np.float32),
            yaw=np.zeros(1, np.float32),
            names=("car",),
            scores=np.array([0.9], np.float32),
        )

    angle = np.linspace(-np.pi, np.pi, 4000)
    # Denser near the vehicle, like real sweeps.
    radius = np.random.default_rng(0).exponential(6, 4000) + 2
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), -1.7 + 0 * angle, 0 * angle], 1)
    around = Frame(name="a", points_lidar_m=points.astype(np.float32), cameras={})
    empty = np.asarray(opened(picture.draw(around, Boxes3D.empty())))
    for x in (30.0, -30.0):
        drawn = np.asarray(opened(picture.draw(around, at(x))))
        rows, columns = np.nonzero((drawn != empty).any(-1))
        assert len(rows) > 100 and (columns > picture.WIDTH / 2).all() == (x > 0)
    ahead = replace(around, points_lidar_m=around.points_lidar_m[points[:, 0] > 0])
    assert around.all_round and not ahead.all_round


def test_labels_are_drawn_on_top_of_matching_boxes(frame, found):
    alone = replace(frame, cameras={})
    with_labels = np.asarray(opened(picture.draw(alone, found))).astype(int)
    without = np.asarray(opened(picture.draw(replace(alone, truth=None), found))).astype(int)
    # The boxes equal the labels, so the labels only change pixels of the boxes to white.
    changed = (with_labels != without).any(-1)
    assert changed.sum() > 200 and (with_labels[changed] == 0xE8).all()


def test_the_viewers_file_states_how_many_points_are_drawn(frame, found, monkeypatch):
    monkeypatch.setattr(view.thin, "__defaults__", (500,))
    files = view.files([frame], [found])
    (described,) = json.loads(files["boxes.json"])["frames"]
    assert described["points"] == len(frame.points_lidar_m) > 500
    assert described["points_drawn"] == len(files["points.bin"]) // 16 <= 500
