"""The temporary folders of worker processes, which are removed even if the server that made them was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from shared.atomic_files import is_locked

_PREFIX = "trivium-worker-files-"


class WorkerFolder:
    """A new folder, at ``path``, for the temporary files of one worker: unpacked uploads may be patient data.

    This process holds a lock on it until ``remove``, or until it ends, however it ends.
    """

    def __init__(self) -> None:
        # It gets its name only when it is locked, so that a server that starts now does not take it for a leftover.
        unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
        self._descriptor = os.open(unlocked, os.O_RDONLY)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self.path = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix(".")))

    def remove(self) -> None:
        """Removes the folder with its files. May be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def remove_leftover_worker_folders() -> None:
    """Removes the folders that killed servers of this account left in the folder for temporary files."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
