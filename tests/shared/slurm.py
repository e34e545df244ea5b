"""A Slurm cluster for tests: a controller and two nodes, all on this machine."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

REQUIRED_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job starts once its credential has expired, by default after two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
# srun ends a job's other tasks this many seconds after the first one, unless it is told to wait.
WaitTime=1
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=no-grace Nodes=node[1-2] PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=node[1-2] PriorityTier=2 PreemptMode=OFF
"""


def running() -> Iterator[Slurm]:
    """For a fixture: yields a Slurm and stops it after the tests. Skips them if Slurm is not installed."""
    if missing := [name for name in REQUIRED_PROGRAMS if _find_program(name) is None]:
        pytest.skip(f"Slurm is not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "state").mkdir()
        for node in ("node1", "node2"):
            (folder / f"spool-{node}").mkdir()
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().split(".")[0], user=getpass.getuser(), folder=folder, ports=_free_ports(3)
            )
        )
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        slurm = Slurm(folder, stack)
        slurm.start()
        yield slurm
        for job in slurm.run("squeue", "--noheader", "--format=%A").split():
            slurm.run("scancel", job)
        _wait_for(lambda: not slurm.run("squeue", "--noheader"))


class Slurm:
    """Two nodes and three partitions. Jobs in ``high`` preempt jobs in ``low`` (grace time 120 s) and ``no-grace``."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Starts all processes and waits until both nodes are idle."""
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self._folder}/munge.{name}" for option, name in names.items()]
        self._start_daemon("munged", "--foreground", "--force", *files)
        _wait_for((self._folder / "munge.socket").exists)
        self._start_daemon("slurmctld", "-D", "-c")
        for node in ("node1", "node2"):
            self._start_daemon("slurmd", "-D", "-N", node)
        _wait_for(lambda: self.run("sinfo", "--noheader", "--format=%T%D", "--partition=low").strip() == "idle2")

    def submit(self, *command: str | Path, **environment: str) -> str:
        """Runs ``sbatch``; returns the job's ID."""
        return self.run("sbatch", "--parsable", *map(str, command), **environment).strip()

    def run(self, program: str, *options: str, **environment: str) -> str:
        """Runs a Slurm command; returns what it prints to standard output."""
        environment = {**self._environment, **environment}
        command = [program, *options]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60).stdout

    def facts(self, job: str) -> dict[str, str]:
        """The controller's facts about a job: ``JobState``, ``Restarts``, ``ExitCode``, ..."""
        text = self.run("scontrol", "show", "job", job).partition("\n\n")[0]
        return {name: value for name, _, value in (word.partition("=") for word in text.split())}

    def wait(self, job: str, *, restarts: int | None = None, limit_s: float = 120) -> dict[str, str]:
        """Waits until the job has ended or was requeued ``restarts`` times; returns its facts."""
        end_states = {"COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL"}

        def has_ended() -> bool:
            facts = self.facts(job)
            return facts["JobState"] in end_states or facts["Restarts"] == str(restarts)

        _wait_for(has_ended, limit_s)
        return self.facts(job)

    def _start_daemon(self, name: str, *options: str) -> None:
        program = _find_program(name)
        assert program is not None
        log = self._stack.enter_context((self._folder / f"{name}-{options[-1].rpartition('/')[2]}.log").open("wb"))
        process = subprocess.Popen([program, *options], env=self._environment, stdout=log, stderr=log)
        self._stack.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _wait_for(condition: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"Slurm did not reach the expected state within {limit_s:g} s")
        time.sleep(0.1)
