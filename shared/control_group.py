"""The limits of the control groups that this process is in: those of its container, systemd unit or Slurm job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_limit_bytes() -> int | None:
    """The smallest memory limit of the groups in bytes; None if there is none. Version 1 writes a huge one for none."""
    values = [text for folder in _folders("memory") for text in _read(folder, "memory.max", "memory.limit_in_bytes")]
    return min((int(value) for value in values if value.isdecimal()), default=None)


def core_limit() -> float | None:
    """The smallest quota of processor time of the groups, in cores; None if there is none."""
    limits = []
    for folder in _folders("cpu"):
        quotas = [text.split() for text in _read(folder, "cpu.max")]
        quotas += [[quota, period] for quota in _read(folder, "cpu.cfs_quota_us") for period in _read(folder, _PERIOD)]
        # "max" in version 2 and -1 in version 1 mean no quota.
        limits += [int(quota) / int(period) for quota, period in quotas if quota.isdecimal() and int(quota)]
    return min(limits, default=None)


_PERIOD = "cpu.cfs_period_us"


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's group and of the groups above it, in version 2 and for a controller in version 1.

    A group limits all groups below it. In a container the path to the group is often that on the host, which does not
    exist here: then only the mount, where the container's own group is, has the files. So it is without /proc.
    """
    groups = []
    with suppress(OSError):
        groups = [line.split(":", 2) for line in MEMBERSHIP.read_text().splitlines()]
    at_mounts = [["0", "", "/"], ["1", controller, "/"]]
    for number, controllers, path in [group for group in groups if len(group) == 3] or at_mounts:
        if number == "0" or controller in controllers.split(","):
            mount = MOUNT if number == "0" else MOUNT / controller
            parts = [part for part in path.split("/") if part and part != ".."]
            for count in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:count])


def _read(folder: Path, *names: str) -> Iterator[str]:
    for name in names:
        with suppress(OSError):
            yield (folder / name).read_text().strip()
