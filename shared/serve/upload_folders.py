"""The folder for a server's uploads, with a folder for each request, in the store."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.atomic_files import remove_folder
from shared.store.disk import raising_disk_full

INCOMING = f"incoming-{secrets.token_hex(4)}"
"""The folder for this server's uploads. It has a random suffix because other servers may share the store."""

_MAX_UPLOAD_AGE_S = 86_400.0


@contextmanager
def upload_folder(store: Path, app: str) -> Iterator[Path]:
    """A folder for the files of one request to the application ``app``, removed afterwards.

    Raises ``DiskFull`` (507).
    """
    home = store / INCOMING
    with raising_disk_full("the upload cannot be stored"):
        home.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{app}-", dir=home))
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_leftover_uploads(store: Path, exclusive: bool) -> None:
    """Removes uploads left by killed servers: all if no other server shares the store, else those over a day old."""
    for left in store.glob("incoming*"):
        with suppress(FileNotFoundError):
            if exclusive or time.time() - left.stat().st_mtime > _MAX_UPLOAD_AGE_S:
                shutil.rmtree(left, ignore_errors=True)
