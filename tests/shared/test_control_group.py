"""A process in a container uses the container's cores and memory, not those of its host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared import control_group
from shared.cli.main import main
from shared.control_group import core_limit, memory_limit_bytes
from shared.data.build_cache import parallel_imap
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.machine_memory import installed_memory_bytes, machine_memory_bytes
from shared.serve.runtime.models import network_workers
from shared.serve.settings import Settings
from shared.threads import compute_threads, usable_cores
from tests.shared.engine.line import recipe

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712
NESTED = {"pods/memory.max": 4 * GIB, "pods/cpu.max": "400000 100000", "pods/a/memory.max": "max"}

LIMITS = {
    # What a container sees, by version of the control groups, and the cores and memory that it may use.
    "version 2": ("0::/", {"cpu.max": "250000 100000", "memory.max": 3 * GIB}, 2.5, 3 * GIB),
    "version 2, no limits": ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
    "version 1": (
        "4:memory:/\n1:cpu,cpuacct:/",
        {
            "cpu/cpu.cfs_quota_us": 50_000,
            "cpu/cpu.cfs_period_us": 100_000,
            "memory/memory.limit_in_bytes": 3 * GIB,
        },
        0.5,
        3 * GIB,
    ),
    "version 1, no limits": (
        "4:memory:/\n1:cpu:/",
        {
            "cpu/cpu.cfs_quota_us": -1,
            "cpu/cpu.cfs_period_us": 100_000,
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
        },
        None,
        UNLIMITED_V1,
    ),
    "version 1, the path is that on the host": (
        "4:memory:/kubepods/pod1/c\n1:cpu:/kubepods/pod1/c",
        {
            "cpu/cpu.cfs_quota_us": 300_000,
            "cpu/cpu.cfs_period_us": 100_000,
            "memory/memory.limit_in_bytes": GIB,
        },
        3,
        GIB,
    ),
    "a limit of a group above": ("0::/pods/a", {**NESTED, "pods/a/cpu.max": "max 100000"}, 4, 4 * GIB),
    "a smaller limit of the own group": (
        "0::/pods/a",
        {**NESTED, "pods/a/cpu.max": "100000 100000", "pods/a/memory.max": GIB},
        1,
        GIB,
    ),
    "another group's limit": ("0::/other", NESTED, None, None),
    "no control groups": ("", {}, None, None),
    "version 1 without /proc": (
        "",
        {"cpu/cpu.cfs_quota_us": 150000, "cpu/cpu.cfs_period_us": 100000, "memory/memory.limit_in_bytes": GIB},
        1.5,
        GIB,
    ),
}


def limit(monkeypatch: pytest.MonkeyPatch, folder: Path, membership: str, files: dict[str, object]) -> None:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    (folder / "membership").write_text(membership + "\n")
    monkeypatch.setattr(control_group, "MOUNT", folder)
    monkeypatch.setattr(control_group, "MEMBERSHIP", folder / "membership")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("TRIVIUM_THREADS", raising=False)


@pytest.mark.parametrize("case", LIMITS)
def test_limits_of_containers_are_read(monkeypatch, tmp_path, case):
    membership, files, cores, memory = LIMITS[case]
    limit(monkeypatch, tmp_path, membership, files)
    assert (core_limit(), memory_limit_bytes()) == (cores, memory)
    assert machine_memory_bytes() == min(memory or UNLIMITED_V1, installed_memory_bytes())


def test_a_server_in_a_container_with_two_cores_on_a_large_host_computes_with_two_threads(monkeypatch, tmp_path):
    limit(monkeypatch, tmp_path, "0::/", {"cpu.max": "200000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_cores() == compute_threads() == 2
    assert [worker._spec.threads for worker in network_workers(tmp_path, Settings())] == [2]
    monkeypatch.setenv("TRIVIUM_THREADS", "5")
    assert compute_threads() == 5


@pytest.mark.parametrize(
    ("quota", "settings", "expected"),
    [
        ("200000 100000", {}, "2 2 2 None"),
        ("max 100000", {"TRIVIUM_THREADS": "3"}, "3 3 3 3"),
        ("max 100000", {}, "None None None None"),
        ("200000 100000", {"OMP_NUM_THREADS": "7"}, "7 7 7 None"),
    ],
)
def test_libraries_that_would_start_a_thread_for_each_core_of_the_host_are_limited(tmp_path, quota, settings, expected):
    (tmp_path / "cpu.max").write_text(quota)
    (tmp_path / "membership").write_text("0::/")
    script = f"""
import os, pathlib, sys
os.sched_getaffinity = lambda pid: set(range(64))
from shared import control_group
control_group.MOUNT = pathlib.Path({str(tmp_path)!r})
control_group.MEMBERSHIP = control_group.MOUNT / "membership"
sys.argv = ["trivium", "models", "none"]
from shared.cli.main import main
assert "numpy" not in sys.modules and "torch" not in sys.modules, "too late: they have started their threads"
main()
names = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "TRIVIUM_THREADS")
print(*map(os.environ.get, names))
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")} | settings
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == expected


def test_a_training_and_the_packing_of_its_data_keep_to_the_cores_of_their_container(monkeypatch, tmp_path):
    limit(monkeypatch, tmp_path, "0::/", {"cpu.max": "50000 100000"})
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit(recipe(), Run(tmp_path / "run", "line", "line"), device="cpu", quiet=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    # With one core there are no workers.
    assert set(parallel_imap(os.getpid, [(), ()])) == {os.getpid()}


@pytest.mark.parametrize(("settings", "threads"), [({}, 3), ({"TRIVIUM_THREADS": "2"}, 2)])
def test_a_training_keeps_the_threads_that_a_script_has_set_under_torchrun(monkeypatch, tmp_path, settings, threads):
    for name, value in ({"OMP_NUM_THREADS": "1"} | settings).items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit(recipe(steps=1), Run(tmp_path, "line", "line"), device="cpu", quiet=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_doctor_reports_the_cores_and_memory_of_the_container(monkeypatch, tmp_path, capsys):
    limit(monkeypatch, tmp_path, "0::/", {"cpu.max": "100000 100000", "memory.max": GIB})
    assert main(["doctor"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "1 GiB of the machine's" in output and "serving all three applications needs 8 GiB" in output
    assert "1 usable core" in output
