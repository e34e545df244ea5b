"""Archives from untrusted sources: unsafe paths, links, encryption, duplicates and zip bombs are refused."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import PurePosixPath

import pytest

from shared.data.archive import ArchiveLimits, open_archive, unpack, unpacked
from shared.errors import InvalidInputError

LIMITS = ArchiveLimits()


def pack(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return path


def assert_refused(archive, words, tmp_path, limits=LIMITS, status=422):
    """``open_archive`` and ``unpack`` both refuse, and nothing is written outside the folder."""
    with pytest.raises(InvalidInputError, match=words) as raised, open_archive(archive, limits) as members:
        for member in members:
            member.read()
    assert raised.value.status == status
    with pytest.raises(InvalidInputError, match=words):
        unpack(archive, tmp_path / "into", limits)


def test_members_are_read_and_unpacked_under_their_own_names(tmp_path):
    content = {"a/scan.raw": b"\1\2" * 100_000, "b\\notes.txt": b"hello", "c": b""}
    archive = pack(tmp_path / "case.zip", [("a/", b""), *content.items(), ("__MACOSX/a/._scan.raw", b"x")])
    pack(tmp_path / "more.zip", [(".DS_Store", b"x"), ("x/.DS_Store", b"x"), ("x/y", b"1")])
    with open_archive(archive) as members:
        assert [m.path for m in members] == [
            PurePosixPath("a/scan.raw"),
            PurePosixPath("b/notes.txt"),
            PurePosixPath("c"),
        ]
        assert [m.size for m in members] == [200_000, 5, 0]
        assert [m.read() for m in members] == list(content.values())
        assert members[0].read() == b"".join(members[0].chunks())
    with unpacked(archive) as folder:
        assert folder.name == "case.zip"
        assert (folder / "a/scan.raw").read_bytes() == content["a/scan.raw"]
        assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["c", "notes.txt", "scan.raw"]
    assert not folder.exists()
    with unpacked(tmp_path / "more.zip") as folder:
        assert [p.name for p in folder.rglob("*") if p.is_file()] == ["y"]


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "..\\x", "C:/x", "C:\\x", "\\\\host\\x", ".", "/", "x/..", "./../x"],
)
def test_no_member_is_written_outside_the_folder(tmp_path, name):
    assert_refused(pack(tmp_path / "evil.zip", [("fine", b"1"), (name, b"x")]), "points outside the archive", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["evil.zip"], ["evil.zip", "into"])


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("velodyne")
    link.external_attr = 0o120777 << 16
    assert_refused(pack(tmp_path / "evil.zip", [(link, "/etc")]), "contains a link", tmp_path)


@pytest.mark.parametrize("flag", [0x1, 0x40])
def test_encrypted_archives_are_refused(tmp_path, flag):
    archive = pack(tmp_path / "locked.zip", [("a", b"hello")])
    content = bytearray(archive.read_bytes())
    content[6] |= flag
    content[content.index(b"PK\1\2") + 8] |= flag
    archive.write_bytes(content)
    assert_refused(archive, "is encrypted", tmp_path)


def test_a_duplicate_name_or_a_file_that_is_also_a_folder_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = pack(tmp_path / "twice.zip", [("a", b"1"), ("a", b"2")])
    for archive in (twice, pack(tmp_path / "both.zip", [("a", b"1"), ("a/b", b"2")])):
        with pytest.raises(InvalidInputError, match=r"zip contains 'a(/b)?' twice"):
            unpack(archive, tmp_path / archive.stem)
    long = pack(tmp_path / "long.zip", [("a" * 300, b"1")])
    with pytest.raises(InvalidInputError, match="cannot be written to disk"):
        unpack(long, tmp_path / "long")


def test_archives_that_exceed_the_limits_are_refused(tmp_path):
    assert_refused(
        pack(tmp_path / "bomb.zip", [("zeros", b"\0" * 40_000_000)]), "would unpack to 38.1 MiB", tmp_path, status=413
    )
    much = pack(tmp_path / "much.zip", [("a", bytes(range(256)) * 100), ("b", b"1")], zipfile.ZIP_STORED)
    assert_refused(much, r"the maximum is 0\.0 MiB", tmp_path, ArchiveLimits(unpacked_bytes=10_000), status=413)
    assert_refused(much, "contains 2 files; the maximum is 1", tmp_path, ArchiveLimits(files=1), status=413)


def test_an_archive_with_very_many_names_is_refused_before_they_are_read(tmp_path):
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 300_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    archive = tmp_path / "names.zip"
    archive.write_bytes(directory + end)
    with zipfile.ZipFile(archive) as whole:
        assert len(whole.namelist()) == 300_000  # the library itself reads them all
    tracemalloc.start()
    assert_refused(archive, "lists more than the maximum of 10000 files", tmp_path, status=413)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 << 20


def test_a_member_beyond_its_stated_size_is_not_read_into_memory(tmp_path):
    """200 MB of zeros with a stated size of 100 kB."""
    archive = pack(tmp_path / "liar.zip", [("zeros", b"\0" * 200_000_000)])
    content = bytearray(archive.read_bytes())
    stated_size = (100_000).to_bytes(4, "little")
    content[22:26] = stated_size
    at = content.index(b"PK\1\2")
    content[at + 24 : at + 28] = stated_size
    archive.write_bytes(content)
    tracemalloc.start()
    assert_refused(archive, "zeros cannot be unpacked", tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
def test_compression_that_cannot_be_decompressed_in_chunks_is_refused(tmp_path, method, name):
    """180 bytes of bzip2 expand to 200 MB, and the library decompresses them in one call."""
    assert_refused(pack(tmp_path / "case.zip", [("a", b"hello")], method), f"is compressed with {name}", tmp_path)


def test_damaged_archives_are_refused_with_the_cause(tmp_path):
    archive = pack(tmp_path / "torn.zip", [("a", bytes(range(256)) * 40)])
    content = bytearray(archive.read_bytes())
    content[60:90] = b"\xff" * 30
    archive.write_bytes(content)
    assert_refused(archive, "torn.zip: a cannot be unpacked", tmp_path)
    archive.write_bytes(b"PK no zip")
    assert_refused(archive, "cannot be read as a zip", tmp_path)
    whole = pack(tmp_path / "cut.zip", [("a", b"hello" * 1000)])
    whole.write_bytes(whole.read_bytes()[:-30])
    assert_refused(whole, "cannot be read as a zip", tmp_path)
