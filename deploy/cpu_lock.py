"""Prints the lock file without packages for GPUs: ``python cpu_lock.py [--torch] requirements.lock``.

Prints the blocks of all packages except torch, torchvision, triton and CUDA's libraries. With ``--torch``, prints the
versions of torch and torchvision instead, which are installed from an index with CPU builds.
"""

import re
import sys
from pathlib import Path

_TORCH_PACKAGES = ("torch", "torchvision")
_GPU_PACKAGES = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)\Z")


def split_packages(lock: str) -> list[tuple[str, str]]:
    """Splits the lock into packages. Returns each package as ``name==version`` with its lines, hashes included."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return [(block.split()[0].rstrip("\\"), block) for block in blocks if block.strip()]


def main(arguments: list[str]) -> int:
    """Prints the CPU lock, or with ``--torch`` torch's pinned versions. Returns 0."""
    packages = split_packages(Path(arguments[-1]).read_text(encoding="utf-8"))
    names = {pinned: pinned.split("==")[0] for pinned, _ in packages}
    if "--torch" in arguments:
        sys.stdout.write(" ".join(pinned for pinned, _ in packages if names[pinned] in _TORCH_PACKAGES) + "\n")
    else:
        sys.stdout.write("".join(block for pinned, block in packages if not _GPU_PACKAGES.match(names[pinned])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
