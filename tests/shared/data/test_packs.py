"""Packs: built once, complete, on all processor cores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared import cli
from shared.data.build_cache import KEPT_DAYS, get_or_build, packs_folder, parallel_imap, parallel_map, remove_packs
from shared.errors import InvalidInputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_pack_is_built_once_for_all_callers() -> None:
    built_folders = []

    def make(folder: Path) -> None:
        built_folders.append(folder)
        (folder / "content").write_text("1")

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: get_or_build("one", make), range(16)))
    assert (
        found == {packs_folder() / "one"}
        and len(built_folders) == 1
        and (packs_folder() / "one" / "content").read_text() == "1"
    )


def test_a_failed_build_leaves_nothing_and_is_repeated() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        get_or_build("one", fail)
    assert [path.name for path in packs_folder().iterdir()] == ["one.lock"]
    assert get_or_build("one", lambda folder: (folder / "whole").touch()) == packs_folder() / "one"
    assert [path.name for path in (packs_folder() / "one").iterdir()] == ["whole"]


def test_a_cache_that_is_no_folder_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    with pytest.raises(InvalidInputError, match="cannot be created: Not a directory; set XDG_CACHE_HOME"):
        get_or_build("one", lambda folder: None)


def test_parallel_map_makes_every_call(tmp_path: Path) -> None:
    parallel_map(Path.touch, ((tmp_path / str(number),) for number in range(5)), "touching")
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1", "2", "3", "4"}


def test_a_failure_in_a_process_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parallel_map(Path.read_text, ((tmp_path / str(number),) for number in range(2)), "reading")


def test_results_come_in_call_order_and_few_are_computed_ahead(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number:02}") for number in range(20)]
    results = parallel_imap(shutil.copy, ((__file__, name) for name in names))
    assert [next(results), next(results)] == names[:2]
    # Two are consumed, and at most one per core plus one may be in progress.
    assert len(list(tmp_path.iterdir())) <= 3 + len(os.sched_getaffinity(0))
    assert list(results) == names[2:]


def test_a_failure_ahead_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    results = parallel_imap(Path.read_text, [(tmp_path / "there",), (tmp_path / "missing",)])
    assert next(results) == ""
    with pytest.raises(FileNotFoundError):
        next(results)


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Workers that import the caller's script would wait forever for the lock that it holds."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from shared.data.build_cache import get_or_build, parallel_map\n"
        "get_or_build('one', lambda folder: parallel_map(Path.touch, [(folder / 'a',), (folder / 'b',)], 'touching'))\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=60, cwd=Path(__file__).parents[3])
    assert {path.name for path in (packs_folder() / "one").iterdir()} == {"a", "b"}


def test_an_incomplete_pack_of_a_killed_process_is_deleted() -> None:
    program = (
        "import os, signal\n"
        "from shared.data.build_cache import get_or_build\n"
        "get_or_build('one', lambda folder: (folder / 'half').touch() or os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, cwd=Path(__file__).parents[3])
    assert [path.name for path in packs_folder().glob(".one-*/*")] == ["half"]
    assert get_or_build("two", lambda folder: None).is_dir()
    assert {path.name for path in packs_folder().iterdir()} == {"one.lock", "two", "two.lock"}


def test_a_pack_unused_for_a_month_is_deleted() -> None:
    for name in ("old", "used", "new"):
        get_or_build(name, lambda folder: (folder / "content").write_bytes(bytes(1000)) and None)
    for name in ("old", "used"):
        os.utime(packs_folder() / name, times=(0, time.time() - (KEPT_DAYS + 1) * 86400))
    get_or_build("used", lambda folder: pytest.fail("it is there"))
    get_or_build("another", lambda folder: None)
    assert {path.name for path in packs_folder().iterdir() if path.is_dir()} == {"used", "new", "another"}


def test_the_cache_is_cleared_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    get_or_build("one", lambda folder: (folder / "content").write_bytes(bytes(2_000_000)) and None)
    assert cli.main(["data", "clear"]) == 0
    assert f"2 MB removed from {packs_folder()}" in capsys.readouterr().out
    assert not (packs_folder() / "one").exists() and remove_packs() == 0
    assert cli.main(["data", "clear", "one"]) == 2
    assert "takes no name" in capsys.readouterr().err


def test_a_pack_that_another_process_builds_is_not_deleted(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "content").touch()
        get_or_build("inner", lambda inner: None)
        assert (folder / "content").is_file()

    get_or_build("outer", make)
