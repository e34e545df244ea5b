"""The lock without what only GPUs need: ``python cpu_lock.py [--torch] requirements.lock``.

Prints the blocks of all packages but torch, torchvision, triton and CUDA's libraries; with ``--torch`` the versions of
torch and torchvision instead, which come from an index of builds for CPUs.
"""

import re
import sys
from pathlib import Path

_TORCH = ("torch", "torchvision")
_GPU = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)\Z")


def blocks(lock: str) -> list[tuple[str, str]]:
    """Each package's name and version as in ``name==1``, and its lines with the hashes."""
    found = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return [(block.split()[0].rstrip("\\"), block) for block in found if block.strip()]


def main(arguments: list[str]) -> int:
    """Prints what is asked for."""
    found = blocks(Path(arguments[-1]).read_text(encoding="utf-8"))
    names = {pinned: pinned.split("==")[0] for pinned, _ in found}
    if "--torch" in arguments:
        sys.stdout.write(" ".join(pinned for pinned, _ in found if names[pinned] in _TORCH) + "\n")
    else:
        sys.stdout.write("".join(block for pinned, block in found if not _GPU.match(names[pinned])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
