"""A process that reads files on request, one line of JSON each, so that a crashing reader does not end the tests.

Once its libraries are loaded, it may allocate at most ``MAX_BYTES`` more memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30


def read(app: str, files: list[Path]) -> Any:
    """Reads the files as the application ``app`` does."""
    if app == "medical":
        from apps.medical.adapters.source import read_volume

        return read_volume(files)
    if app == "driving":
        from apps.driving.adapters.registry import read_frames

        return read_frames(files)
    from apps.finance.adapters import read_contents

    return read_contents(files[0])


def limit_memory() -> None:
    """Bounds this process's data (setrlimit(2), RLIMIT_DATA)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    memory_limit = int(line.split()[1]) * 1024 + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))


def main() -> None:
    """Answers ``[application, first file, others ...]`` with ``[status or None, words, seconds]``."""
    from shared.errors import InvalidInputError

    warnings.simplefilter("ignore")
    limited = set()
    for line in sys.stdin:
        app, *names = json.loads(line)
        status, words, began = None, "", time.monotonic()
        try:
            read(app, [Path(name) for name in names])
        except InvalidInputError as refusal:
            status, words = refusal.status, str(refusal)
        except BaseException as error:
            status, words = 500, f"{type(error).__name__}: {error}"
        print(json.dumps([status, words, time.monotonic() - began]), flush=True)
        if app not in limited:  # its libraries are loaded
            limited.add(app)
            if len(limited) == 1:
                limit_memory()


if __name__ == "__main__":
    main()
