"""Checks the machine and the installation, and gives a remedy for each fault."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from shared.machine_memory import installed_memory_bytes, machine_memory_bytes
from shared.threads import usable_cores

_PACKAGES = ("torch", "monai", "mmdet3d", "pytorch-forecasting", "fastapi", "onnxruntime")
_COMPROMISED = {"lightning": {"2.6.2", "2.6.3"}, "pytorch-lightning": {"2.6.2", "2.6.3"}}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found and, if it is a fault, the remedy."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """The results of all checks: Python and the machine, packages, then devices."""
    return [*_python(), *_packages(), *_devices()]


def _python() -> Iterator[Check]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check("Python", supported, platform.python_version(), "" if supported else "install Python 3.11 to 3.13")
    yield Check("processor", True, f"{platform.machine()}, {usable_cores()} usable cores")
    usable, installed = machine_memory_bytes(), installed_memory_bytes()
    if usable is not None:
        enough = usable > 7 * 2**30
        found = f"{usable / 2**30:.0f} GiB"
        if installed is not None and usable < installed:
            found += f" of the machine's {installed / 2**30:.0f} GiB"
        yield Check("memory", enough, found, "" if enough else "serving all three applications needs 8 GiB")


def _packages() -> Iterator[Check]:
    for name in _PACKAGES:
        try:
            yield Check(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, False, "not installed", "pip install --no-deps -r requirements.lock")
    for name, versions in _COMPROMISED.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        compromised = version in versions
        yield Check(
            name,
            not compromised,
            version,
            "a compromised release: remove it and change all credentials" if compromised else "",
        )


def _devices() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(f"GPU {index}", True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        yield Check("GPU", True, "none; everything runs on the processor")
