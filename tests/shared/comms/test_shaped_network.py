"""The networks of the benchmarks leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.comms.shaped_network import missing_privileges, shaped_network

PROGRAM = """
import signal, time
from shared.comms.shaped_network import Job, shaped_network

# Not ignored, as they are below nohup and in the background of a shell.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
with shaped_network(1, 100) as hosts:
    job = Job(hosts, 1, time.sleep, 60, preload=())
    print("ready", flush=True)
    signal.pause()
"""


def namespaces(owner: int) -> set[Path]:
    """The network namespaces that the process has created."""
    return set(Path("/var/run/netns").glob(f"trivium*p{owner}n*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_network_is_removed_however_its_process_ends(number: signal.Signals) -> None:
    if reason := missing_privileges():
        pytest.skip(f"no network namespaces here: {reason}")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **options) as process:
        assert process.stdout.readline() == "ready\n" and len(namespaces(process.pid)) == 2
        process.send_signal(number)
        try:
            process.communicate(timeout=20)  # the job's process, which has inherited the pipe, ends as well
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == -number
    if number == signal.SIGKILL:  # the next one removes what a killed process has left, but not what is in use
        before = namespaces(os.getpid())  # those of other tests' networks
        with shaped_network(0, 100) as first, shaped_network(0, 100) as second:
            assert first == second == []
            assert len(namespaces(os.getpid()) - before) == 2
    assert not namespaces(process.pid)


def test_a_container_does_not_remove_the_networks_of_processes_that_it_cannot_see() -> None:
    reason = missing_privileges() or (None if shutil.which("unshare") else "the command unshare is missing")
    if reason:
        pytest.skip(f"no network namespaces here: {reason}")
    program = "from shared.comms.shaped_network import shaped_network\nwith shaped_network(0, 100): print('created')"
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    before = namespaces(os.getpid())
    with shaped_network(0, 100):
        own = namespaces(os.getpid())
        created = subprocess.run([*container, sys.executable, "-c", program], capture_output=True, text=True)
        assert created.stdout == "created\n", created.stderr
        assert namespaces(os.getpid()) == own and len(own - before) == 1
