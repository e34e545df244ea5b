"""Describes this machine in the records of measurements."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_VECTOR_PREFIXES = ("avx", "amx", "fma", "f16c")
_REPORTED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@cache
def describe_processor() -> str:
    """The processor's name and those of its instruction sets that speed up networks."""
    info = _cpu_info()
    name = info.get("model name") or platform.processor() or platform.machine()
    flags = set(info.get("flags", "").split())
    reported = [flag for flag in _REPORTED_FLAGS if flag in flags]
    return f"{name} ({', '.join(reported)})" if reported else name


def vector_instructions() -> frozenset[str]:
    """The vector instruction sets of the processor by their Linux names; empty if the system does not report them."""
    return frozenset(flag for flag in _cpu_info().get("flags", "").split() if flag.startswith(_VECTOR_PREFIXES))


@cache
def _cpu_info() -> dict[str, str]:
    """The entries of ``/proc/cpuinfo`` for the first processor; empty if the file does not exist."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return {}
    first_processor = file.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first_processor.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def describe_machine(device: str, threads: int) -> str:
    """The processor and the number of threads, or the GPU's name."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else device
    return f"{describe_processor()}, {threads} thread{'s' if threads > 1 else ''}"
