"""Truncated, damaged and malicious bags: refused with one sentence, little memory, and no code from them is run."""

import random
import sqlite3
import sys
import tracemalloc
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.rosbag2 import storage_mcap

from apps.driving.adapters import rosbag, rosbag_storage
from apps.driving.adapters.registry import read_frames
from apps.driving.inference.folder import predict_folder
from apps.driving.predictor import Options
from shared.errors import InvalidInputError
from tests.apps.driving.bag_files import STORES, cloud, write_ros1, write_ros2

STAMP = 1_700_000_000_000_000_000
POINTS = np.random.default_rng(5).uniform(-30, 30, (500, 4)).astype(np.float32)


def drive(*, ros1, count=6):
    return [("/lidar", STAMP + n, cloud(POINTS, ros1=ros1, stamp=STAMP + n)) for n in range(count)]


@pytest.fixture
def bags(tmp_path):
    """A drive in each of the three formats, with one or two clouds per chunk."""
    bag = write_ros1(tmp_path / "drive.bag", drive(ros1=True), chunk=9000)
    folders = [write_ros2(tmp_path / storage, drive(ros1=False), storage) for storage in ("mcap", "sqlite3")]
    return [bag, folders[0] / "mcap.mcap", folders[1] / "sqlite3.db3"]


def test_truncated_and_empty_bags_and_other_files_are_refused_with_a_remedy(bags, tmp_path):
    hints = ("rosbag reindex repairs", "mcap recover saves", "sqlite3 FILE .recover saves")
    for path, hint in zip(bags, hints, strict=True):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InvalidInputError, match=f"^{path.name} is damaged or not a supported bag: .*; {hint}"):
            read_frames([path])
        for bad_content, message in ((b"", "the file is empty"), (b"PNG" * 99, "is neither a .bag of ROS 1 nor an")):
            path.write_bytes(bad_content)
            with pytest.raises(InvalidInputError, match=f"^{path.name}: .*{message}"):
                read_frames([path])
        path.write_bytes(content)
    # The format is recognised by the first bytes, not by the name.
    renamed = bags[1].rename(tmp_path / "renamed.bag")
    assert len(read_frames([renamed])) == 6


def test_an_unclosed_recording_and_damage_in_the_middle_are_reported(predictor, bags, tmp_path):
    bag = bags[0]
    content = bytearray(bag.read_bytes())
    at = content.index(b"index_pos=") + 10
    open_recording = tmp_path / "open.bag"
    open_recording.write_bytes(content[:at] + bytes(8) + content[at + 8 :])
    with pytest.raises(InvalidInputError, match=r"Bag is not indexed.*rosbag reindex repairs"):
        read_frames([open_recording])
    # The frames before the damage are processed, and the next run retries the rest.
    at = content.index(b"op=\x02", len(content) // 2)
    content[at : at + 4] = b"????"
    bag.write_bytes(content)
    log, out = [], tmp_path / "out"
    assert predict_folder(predictor, bag, out, Options(), log.append) == 1
    answered = len((out / "frames.jsonl").read_text().splitlines())
    assert 0 < answered < 6 and any("left out: drive.bag is damaged" in line for line in log)
    assert predict_folder(predictor, bag, out, Options(), log.append) == 1
    assert len((out / "frames.jsonl").read_text().splitlines()) == answered


@pytest.mark.parametrize("number", range(3))
def test_any_damage_is_refused_with_one_sentence(number, bags):
    path, draw = bags[number], random.Random(number)
    whole = path.read_bytes()
    refusals = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3, 10))):
            # Half of the damage is in the records of the bag rather than in its points.
            at = draw.randrange(len(content)) if draw.random() < 0.5 else -draw.randrange(1, 3000)
            content[at] = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256)))
        path.write_bytes(content[: len(content) if draw.random() < 0.8 else draw.randrange(len(content))])
        try:
            read_frames([path])
        except InvalidInputError as refusal:
            refusals += 1
            assert len(str(refusal)) < 600 and "\n" not in str(refusal)
    assert refusals > 20


def test_message_definitions_in_a_bag_are_never_compiled(tmp_path, monkeypatch):
    # rosbags compiles definitions to Python and runs it when they are registered; our code never registers them.
    def refuse(*_):
        raise AssertionError("a definition was registered")

    monkeypatch.setattr(type(STORES[True]), "register", refuse)
    sys.modules.pop("rosbags.usertypes", None)
    bag = write_ros1(tmp_path / "drive.bag", drive(ros1=True, count=1))
    content = bag.read_bytes()
    assert content.count(b"uint32 height") == 2  # in the chunk and in the index
    bag.write_bytes(content.replace(b"uint32 height", b"uint32 (eight"))
    assert len(read_frames([bag])) == 1
    assert "rosbags.usertypes" not in sys.modules


def test_a_chunk_is_not_decompressed_beyond_its_stated_size(tmp_path):
    zeros = cloud(np.zeros((2_000_000, 4), np.float32))
    small = write_ros2(tmp_path / "zeros", [("/lidar", STAMP, zeros)], "mcap", "storage") / "zeros.mcap"
    assert small.stat().st_size < 100_000
    with pytest.raises(
        InvalidInputError, match=r"a chunk of \d+ bytes states a decompressed size of \d+; at most \d+ are accepted"
    ):
        read_frames([small])
    for name, pack in (("zstd", storage_mcap.zstd.compress), ("lz4", rosbag_storage.lz4.frame.compress)):
        packed = pack(bytes(100_000_000))
        tracemalloc.start()
        with pytest.raises(InvalidInputError, match="decompresses to more than its stated size"):
            storage_mcap.DECOMPRESSORS[name](packed, 1000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
    one_by_one = write_ros2(tmp_path / "messages", [("/lidar", STAMP, zeros)], "sqlite3", "message")
    whole = write_ros2(tmp_path / "file", [("/lidar", STAMP, zeros)], "sqlite3", "file")
    for folder, message in (
        (one_by_one, "decompresses to more than its stated size"),
        (whole, "more than 200 times its size"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            read_frames([folder])


def test_a_recording_is_not_decompressed_beyond_half_of_the_free_disk_space(tmp_path, monkeypatch):
    messages = [("/lidar", STAMP, cloud(POINTS))] * 20
    folder = write_ros2(tmp_path / "file", messages, "sqlite3", "file")
    assert len(list(folder.rglob("*.zstd"))) == 1
    free = SimpleNamespace(free=100_000)
    monkeypatch.setattr(rosbag_storage.shutil, "disk_usage", lambda _: free)
    with pytest.raises(InvalidInputError, match=r"half of the free space in .*; decompress it elsewhere") as raised:
        read_frames([folder])
    assert raised.value.status == 413
    free.free = 10_000_000
    assert len(read_frames([folder])) == 20


def test_a_database_with_views_is_refused(bags):
    with closing(sqlite3.connect(bags[2])) as database:
        database.execute("CREATE TABLE other (a INTEGER, b INTEGER GENERATED ALWAYS AS (a * 2))")
        database.execute("DROP TABLE other")
        database.execute("DROP TABLE schema")
        database.execute("CREATE VIEW schema AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                         "SELECT count(*) AS schema_version FROM n")  # fmt: skip
        database.commit()
    with pytest.raises(InvalidInputError, match="it has views or computed columns, which no recorder writes"):
        read_frames([bags[2]])


def test_a_path_is_not_parsed_as_a_uri(bags, tmp_path):
    (tmp_path / "a%2fb").mkdir()
    odd = bags[2].rename(tmp_path / "a%2fb" / "drive?mode=rw#1.db3")
    assert len(read_frames([odd])) == 6


def test_without_rosbags_the_error_says_what_to_install(bags, monkeypatch):
    monkeypatch.setitem(sys.modules, "rosbags.rosbag1", None)
    monkeypatch.delitem(sys.modules, "apps.driving.adapters.rosbag_storage")
    monkeypatch.delattr("apps.driving.adapters.rosbag_storage", raising=False)
    with pytest.raises(InvalidInputError, match=r"ROS bags need the package rosbags.*; install trivium\[ros\]"):
        rosbag.read(bags[:1])
