"""What the machine at hand is called where something was measured on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_VECTOR = ("avx", "amx", "fma", "f16c")
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@cache
def processor() -> str:
    """The processor's name and those of its instructions that networks are computed with."""
    described = _described()
    name = described.get("model name") or platform.processor() or platform.machine()
    flags = set(described.get("flags", "").split())
    found = [flag for flag in _TELLING if flag in flags]
    return f"{name} ({', '.join(found)})" if found else name


def vector_instructions() -> frozenset[str]:
    """The vector instructions of the processor, as Linux calls them; empty where the system does not say."""
    return frozenset(flag for flag in _described().get("flags", "").split() if flag.startswith(_VECTOR))


@cache
def _described() -> dict[str, str]:
    """What ``/proc/cpuinfo`` says of the first processor; empty where there is none."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return {}
    first = file.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def machine(device: str, threads: int) -> str:
    """A device with what computes on it: processor and threads, or the GPU's name."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else device
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
