"""What the machine at hand is called where something was measured on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@cache
def processor() -> str:
    """The processor's name and those of its instructions that networks are computed with."""
    name, flags = platform.processor() or platform.machine(), set()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    found = [flag for flag in _TELLING if flag in flags]
    return f"{name} ({', '.join(found)})" if found else name


def machine(device: str, threads: int) -> str:
    """A device with what computes on it: processor and threads, or the GPU's name."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else device
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
