"""Annotation files with a wrong value anywhere: each upload is read, or refused with one sentence."""

import io
import json
import shutil
import struct
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from pyarrow import feather

from apps.driving.adapters import nuscenes, nuscenes_tables
from apps.driving.adapters.image_files import read_image
from apps.driving.adapters.registry import read_frames
from apps.driving.types import Frame
from shared.errors import InvalidInputError
from tests.fuzzing import repeatable

EXAMPLES = 150
NAME = "aachen_000000_000019"
DEEP = "deep"
VALUES = st.sampled_from(
    [None, True, "", "x", "../../x", "\0", [], {}, [[]], [None], -1, 0, 1e30, 1e308, -1e400, 10**30, [1e400] * 16, DEEP]
)
BOX = {"bbox_3d": [1.0, 2, 0, 4, 2, 1.5, 0.1], "bbox_label_3d": 0, "num_lidar_pts": 3}
SAMPLE = {
    "metainfo": {"categories": {"car": 0}},
    "data_list": [
        {
            "token": "a",
            "timestamp": 1.5e9,
            "lidar_points": {"lidar_path": "sweep.bin"},
            "lidar_sweeps": [
                {"timestamp": 1.4e9, "lidar_points": {"lidar_path": "sweep.bin", "lidar2sensor": np.eye(4).tolist()}}
            ],
            # From nuScenes' LiDAR (y forward) to a camera that faces forward.
            "images": {
                "CAM_FRONT": {
                    "img_path": "front.jpg",
                    "lidar2cam": [[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
                    "cam2img": [[50.0, 0, 16], [0, 50, 8], [0, 0, 1]],
                }
            },
            "instances": [BOX],
        }
    ],
}
CITY = {
    "imgHeight": 16,
    "imgWidth": 32,
    "sensor": {"fx": 50.0, "fy": 50.0, "u0": 16.0, "v0": 8.0, "sensor_T_ISO_8855": np.eye(4)[:3].tolist()},
    "objects": [
        {
            "label": "car",
            "3d": {"center": [10.0, 0, 0], "dimensions": [4.0, 2, 1.5], "rotation": [1.0, 0, 0, 0]},
            "2d": {"amodal": [1.0, 2, 3, 4]},
            "occlusion": 0.0,
            "truncation": 0.0,
        }
    ],
    "ignore": [{"2d": [1, 2, 3, 4], "label": "car"}],
}
POSE = {"qw": [1.0, 0.5], "qx": [0.0, -0.5], "qy": [0.0, 0.5], "qz": [0.0, -0.5]}
LOG = {
    "calibration/egovehicle_SE3_sensor.feather": {
        "sensor_name": ["up_lidar", "ring_front_center"],
        **POSE,
        **{f"t{axis}_m": [0.0, 1.6] for axis in "xyz"},
    },
    "calibration/intrinsics.feather": {
        "sensor_name": ["ring_front_center"],
        **{name: [50.0] for name in ("fx_px", "fy_px", "cx_px", "cy_px")},
    },
    "annotations.feather": {
        "timestamp_ns": [1000, 1000],
        "category": ["BUS", "DOG"],
        **{name: [2.0, 1.0] for name in ("length_m", "width_m", "height_m", "tx_m", "ty_m", "tz_m")},
        **POSE,
        "num_interior_pts": [3, 4],
    },
    "sensors/lidar/1000.feather": {name: [1.0, 2.0] for name in ("x", "y", "z", "intensity")},
}
COLUMNS = st.sampled_from(
    [
        None,
        pa.array([], pa.float64()),
        pa.array(["x", "y"]),
        pa.array([None, 1.0]),
        pa.array([1e30, float("nan")]),
        pa.array([[1.0], []]),
        pa.array([2**63 - 1, -1]),
        pa.array([1.0, 2.0], pa.float16()),
        pa.array([b"\xff", b""]),
        pa.nulls(2),
    ]
)


def places(node, at=()):
    """The paths of all values in a JSON document, including containers."""
    yield at
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def replaced(document, at, value):
    """A copy of the document with ``value`` at a path, as JSON text."""
    whole = json.loads(json.dumps(document))
    if at:
        node = whole
        for key in at[:-1]:
            node = node[key]
        node[at[-1]] = value
    else:
        whole = value
    return json.dumps(whole).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)


@cache
def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 16)).save(content, "png")
    return content.getvalue()


def read_or_refused(files: list[Path]) -> list[Frame]:
    try:
        frames = read_frames(files)
    except InvalidInputError as refusal:
        assert str(refusal) and len(str(refusal)) < 2000
        return []
    assert all(isinstance(frame, Frame) for frame in frames)
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotations")


def sample_in(folder: Path, text: str) -> list[Frame]:
    (folder / "sample.json").write_text(text)
    (folder / "front.jpg").write_bytes(picture())
    (folder / "sweep.bin").write_bytes(np.ones((4, 5), "<f4").tobytes())
    return read_or_refused([folder / name for name in ("sample.json", "front.jpg", "sweep.bin")])


def city_in(folder: Path, text: str) -> list[Frame]:
    labels, image = folder / f"{NAME}_gtBbox3d.json", folder / f"{NAME}_leftImg8bit.png"
    labels.write_text(text)
    image.write_bytes(picture())
    return read_or_refused([labels, image])


def log_in(folder: Path, tables: dict) -> list[Frame]:
    shutil.rmtree(folder / "log", ignore_errors=True)
    for name, columns in tables.items():
        (folder / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        feather.write_feather(pa.table(columns), folder / "log" / name)
    camera = folder / "log" / "sensors" / "cameras" / "ring_front_center"
    camera.mkdir(parents=True)
    (camera / "1000.jpg").write_bytes(picture())
    return read_or_refused([folder / "log"])


def test_the_unchanged_files_are_read(folder):
    (frame,) = sample_in(folder, json.dumps(SAMPLE))
    assert len(frame.truth) == 1 and list(frame.cameras) == ["CAM_FRONT"] and len(frame.earlier_sweeps) == 1
    (frame,) = city_in(folder, json.dumps(CITY))
    assert frame.truth.names == ("car",)
    (frame,) = log_in(folder, LOG)
    assert frame.truth.names == ("bus", "dog") and list(frame.cameras) == ["ring_front_center"]


@repeatable(EXAMPLES)
@given(at=st.sampled_from(list(places(SAMPLE))), value=VALUES)
def test_a_nuscenes_description(folder, at, value):
    sample_in(folder, replaced(SAMPLE, at, value))


@pytest.mark.parametrize("what", ["img_path", "lidar_path"])
def test_a_description_naming_one_file_thousands_of_times_is_refused_before_reading(folder, what, monkeypatch):
    frame = SAMPLE["data_list"][0]
    image = frame["images"]["CAM_FRONT"]
    several = [
        {**frame, "lidar_points": None if what == "img_path" else frame["lidar_points"], "images": {"CAM_FRONT": image}}
        if number == 0 or what == "img_path"
        else {**frame, "images": {"CAM_FRONT": {**image, "img_path": f"{number}.jpg"}}}
        for number in range(5000)
    ]
    (folder / "sample.json").write_text(json.dumps({**SAMPLE, "data_list": several}))
    (folder / "front.jpg").write_bytes(picture())
    (folder / "sweep.bin").write_bytes(np.ones((4, 5), "<f4").tobytes())
    monkeypatch.setattr(nuscenes, "read_image", lambda path: pytest.fail("it was read"))
    with pytest.raises(InvalidInputError, match=r"names (front\.jpg|sweep\.bin) twice"):
        read_frames([folder / name for name in ("sample.json", "front.jpg", "sweep.bin")])
    with pytest.raises(InvalidInputError, match="without images and without a sweep"):
        (folder / "sample.json").write_text(json.dumps({**SAMPLE, "data_list": [{"images": {}}] * 100_000}))
        read_frames([folder / "sample.json"])


def test_an_earlier_sweep_shared_by_many_frames_is_read_once(folder, monkeypatch):
    read, files = nuscenes.read_points, []
    monkeypatch.setattr(nuscenes, "read_points", lambda path: files.append(path.name) or read(path))
    frame = SAMPLE["data_list"][0]
    own = ("sweep.bin", "second.bin")
    for name in own:
        (folder / name).write_bytes(np.ones((4, 5), "<f4").tobytes())
    several = [{**frame, "token": name, "lidar_points": {"lidar_path": name}, "images": {}} for name in own]
    (folder / "sample.json").write_text(json.dumps({**SAMPLE, "data_list": several}))
    frames = read_frames([folder / name for name in ("sample.json", *own)])
    assert [len(frame.earlier_sweeps) for frame in frames] == [1, 1]
    assert sorted(files) == ["second.bin", "sweep.bin", "sweep.bin"], (
        "two as frames of their own, one as a sweep before"
    )


@cache
def tables() -> dict[str, list]:
    """nuScenes' own tables of one key frame with a sweep before it."""
    rotation = {"rotation": [1.0, 0, 0, 0], "translation": [0.0, 0, 0]}
    recording = {"sample_token": "s", "ego_pose_token": "e", "timestamp": 2e15, "is_key_frame": True}
    return {
        "sample": [{"token": "s", "scene_token": "c", "timestamp": 2e15}],
        "scene": [{"token": "c", "name": "scene-0001"}],
        "sensor": [{"token": "l", "channel": "LIDAR_TOP"}, {"token": "f", "channel": "CAM_FRONT"}],
        "calibrated_sensor": [
            {"token": "cl", "sensor_token": "l", **rotation, "camera_intrinsic": []},
            {"token": "cf", "sensor_token": "f", **rotation, "camera_intrinsic": np.eye(3).tolist()},
        ],
        "ego_pose": [{"token": "e", **rotation}],
        "instance": [{"token": "i", "category_token": "k"}],
        "category": [{"token": "k", "name": "vehicle.car"}],
        "sample_data": [
            {**recording, "token": "d", "calibrated_sensor_token": "cl", "filename": "a.bin", "prev": "p"},
            {**recording, "token": "p", "calibrated_sensor_token": "cl", "filename": "b.bin", "is_key_frame": False},
            {**recording, "token": "q", "calibrated_sensor_token": "cf", "filename": "a.jpg"},
        ],
        "sample_annotation": [{"sample_token": "s", "instance_token": "i", "size": [2.0, 4, 1.5], **rotation}],
    }


def described(folder: Path, name: str, text: str) -> list[Any]:
    for table, rows in tables().items():
        (folder / "v1.0-mini").mkdir(exist_ok=True)
        (folder / "v1.0-mini" / f"{table}.json").write_text(text if table == name else json.dumps(rows))
    try:
        return list(nuscenes_tables.key_frames(folder, "v1.0-mini"))
    except InvalidInputError as refusal:
        assert str(refusal) and len(str(refusal)) < 2000
        return []


def test_the_unchanged_tables_are_read(folder):
    ((scene, frame),) = described(folder, "", "")
    assert scene == "scene-0001" and frame["instances"][0]["name"] == "car" and len(frame["lidar_sweeps"]) == 1
    assert list(frame["images"]) == ["CAM_FRONT"]


@repeatable(EXAMPLES)
@given(place=st.sampled_from([(name, at) for name, rows in tables().items() for at in places(rows)]), value=VALUES)
def test_a_table_of_nuscenes(folder, place, value):
    name, at = place
    described(folder, name, replaced(tables()[name], at, value))


@repeatable(EXAMPLES)
@given(at=st.sampled_from(list(places(CITY))), value=VALUES)
def test_a_label_file_of_cityscapes(folder, at, value):
    city_in(folder, replaced(CITY, at, value))


@repeatable(EXAMPLES)
@given(
    place=st.sampled_from([(name, column) for name, columns in LOG.items() for column in columns]),
    column=COLUMNS,
)
def test_a_log_of_argoverse(folder, place, column):
    name, changed = place
    tables = {table: {label: pa.array(cells) for label, cells in columns.items()} for table, columns in LOG.items()}
    if column is None:
        del tables[name][changed]
    elif len(column) == len(tables[name][changed]):
        tables[name][changed] = column
    else:
        tables[name] = dict.fromkeys(tables[name], column)
    log_in(folder, tables)


def test_texts_beyond_a_feather_table_are_not_read(folder):
    """Arrow would read the worker's memory from there: it checks offsets only if it is told to."""
    log_in(folder, LOG)
    file = folder / "log" / "annotations.feather"
    feather.write_feather(pa.table(LOG["annotations.feather"]), file, compression="uncompressed")
    content, offsets = file.read_bytes(), struct.pack("<3i", 0, 3, 6)
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, struct.pack("<3i", 0, 3, 100_000)))
    with pytest.raises(InvalidInputError, match=r"annotations\.feather cannot be read as a feather table .*Invalid"):
        read_frames([folder / "log"])


def test_an_image_with_too_many_pixels_is_refused_before_decoding(folder):
    Image.new("1", (9000, 9000)).save(folder / "large.png")
    assert (folder / "large.png").stat().st_size < 20_000
    began = time.process_time()
    with pytest.raises(InvalidInputError, match="9000 x 9000 pixels; at most 40 million"):
        read_image(folder / "large.png")
    assert time.process_time() - began < 1


def test_only_png_and_jpeg_are_decoded(folder, monkeypatch):
    """Pillow starts Ghostscript, if it is installed, for a file with the content of EPS."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append("gs"))
    for name, kind in (("page.png", "EPS"), ("page.jpg", "TIFF")):
        Image.new("RGB", (8, 8)).save(folder / name, format=kind)
        with pytest.raises(InvalidInputError, match=rf"{name} cannot be read as an image: it is neither PNG nor JPEG"):
            read_image(folder / name)
    assert started == []
