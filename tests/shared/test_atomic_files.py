"""Removing a folder to which another thread or process is still writing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from shared.atomic_files import remove_folder


def test_a_folder_is_removed_although_files_are_still_written_to_it(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        with suppress(FileNotFoundError):
            for number in range(100_000):
                (folder / str(number)).write_bytes(b"")
                has_begun.set()
                if is_removed.is_set():
                    return

    for attempt in range(20):
        folder, has_begun, is_removed = tmp_path / str(attempt), threading.Event(), threading.Event()
        folder.mkdir()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write, folder)
            assert has_begun.wait(60)
            remove_folder(folder)
            is_removed.set()
            writing.result(60)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_no_error(tmp_path: Path) -> None:
    remove_folder(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []
