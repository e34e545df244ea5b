"""A small cluster on one machine: hosts as network namespaces, with a link between them as slow as is asked for.

Linux only, by iproute2 and as root. What the hosts send to each other goes through a bridge and a token bucket
(``tc tbf``); what processes of a host say to each other does not. Everything disappears with the context.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import shutil
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError

MTU = 9000
"""Bytes in a packet, as clusters set it; the headers of an Ethernet frame with TCP and its time stamps take 66 more."""
HEADER_BYTES = 66
_NEW_UTS, _NEW_NET = 0x04000000, 0x40000000
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one interface, ``eth0``; without a namespace this machine as it is, by its interface ``lo``."""

    name: str
    namespace: str
    address: str

    def enter(self) -> None:
        """Moves the calling process onto this host: its network and its name. It must have one thread."""
        if not self.namespace:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/var/run/netns/{self.namespace}").open() as file:
            if libc.setns(file.fileno(), _NEW_NET) or libc.unshare(_NEW_UTS):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")
        socket.sethostname(self.name)


HERE = Host(socket.gethostname(), "", "127.0.0.1")
"""This machine: what runs on it needs no rights."""


def missing_rights() -> str | None:
    """Why no network can be made here, or None where it can."""
    if not shutil.which("ip") or not shutil.which("tc"):
        return "there are no ip and tc here (Debian: iproute2)"
    namespace = f"trivium{os.getpid()}probe"
    try:
        _run("ip", "netns", "add", namespace)
    except InvalidInputError as error:
        return str(error)
    _run("ip", "netns", "delete", namespace)
    return None


@contextmanager
def shaped_network(hosts: int, mbit_s: float) -> Iterator[list[Host]]:
    """``hosts`` hosts on a bridge, each with ``mbit_s`` Mbit/s in either direction; called node0, node1 and so on."""
    prefix = f"trivium{os.getpid()}n{next(_numbers)}"
    bridge = f"{prefix}b"
    made = [Host(f"node{number}", f"{prefix}h{number}", f"10.213.0.{number + 1}") for number in range(hosts)]
    # The queue holds 200 ms, as a switch's does: shorter ones drop what several connections send at once. A larger
    # burst lets small messages pass faster than the rate.
    shape = ("tbf", "rate", f"{mbit_s}mbit", "burst", "32kb", "latency", "200ms")
    try:
        _run("ip", "netns", "add", bridge)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up", "mtu", str(MTU))
        for number, host in enumerate(made):
            port = f"port{number}"
            _run("ip", "netns", "add", host.namespace)
            link = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _run("ip", "-n", bridge, "link", "add", port, "mtu", str(MTU), *link)
            _run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _run("ip", "-n", host.namespace, "link", "set", "eth0", "up", "mtu", str(MTU))
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            _run("tc", "-n", host.namespace, "qdisc", "add", "dev", "eth0", "root", *shape)
            if hosts > 2:
                # Several hosts may send to one at once.
                _run("tc", "-n", bridge, "qdisc", "add", "dev", port, "root", *shape)
        yield made
    finally:
        for namespace in (bridge, *(host.namespace for host in made)):
            with suppress(InvalidInputError):
                _run("ip", "netns", "delete", namespace)


class Job:
    """Processes on the hosts of a network, each running ``function(*arguments)``, as ``torchrun`` would start them.

    ``per_host`` processes a host; ranks go host by host, or in turns where ``interleaved``. The function is importable
    and finds RANK, WORLD_SIZE, LOCAL_RANK and the address of the first process in the environment. ``preload`` is what
    is imported once for all processes (DDP imports torch._dynamo).
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        per_host: int,
        function: Callable[..., Any],
        *arguments: Any,
        interleaved: bool = False,
        preload: Sequence[str] = ("torch", "torch.distributed", "torch._dynamo", "torch.distributed.fsdp"),
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*preload, function.__module__])
        places = [(host, local) for host in hosts for local in range(per_host)]
        if interleaved:
            places.sort(key=lambda place: place[1])
        first = places[0][0]
        port = 29500 if first.namespace else _free_port()
        self.processes: list[Any] = []
        self._ends: list[Connection] = []
        for rank, (host, local) in enumerate(places):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(places)),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(per_host),
                "MASTER_ADDR": first.address,
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "eth0" if first.namespace else "lo",
            }
            own, theirs = context.Pipe()
            process = context.Process(
                target=_on_host, args=(host, environment, theirs, function, arguments), daemon=True
            )
            with _quiet_torch():
                process.start()
            theirs.close()
            self.processes.append(process)
            self._ends.append(own)

    def result(self, rank: int, timeout_s: float = 120.0) -> Any:
        """What a process returned: a ``ProcessError`` where it raised, None where it was killed or takes longer."""
        with suppress(EOFError):
            if self._ends[rank].poll(timeout_s):
                return self._ends[rank].recv()
        return None

    def results(self, timeout_s: float = 120.0) -> list[Any]:
        """The results of all processes by rank, none of which is left afterwards."""
        found = [self.result(rank, timeout_s) for rank in range(len(self.processes))]
        self.end(wait_s=10)
        return found

    def end(self, wait_s: float = 0.0) -> None:
        """Kills the processes that do not end by themselves within ``wait_s``."""
        for process in self.processes:
            process.join(timeout=wait_s)
            process.kill()
            process.join()


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Within it a process is started that does not warn of addresses without a name, of which there are none here."""
    before = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ["TORCH_CPP_LOG_LEVEL"] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_CPP_LOG_LEVEL"]


class ProcessError(RuntimeError):
    """What a process of a job raised: the name of the exception's class, its message, its traceback."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(kind, message, trace)
        self.kind, self.message, self.trace = kind, message, trace


def succeed(results: Sequence[Any]) -> list[Any]:
    """The results of a job; raises the first error among them."""
    for rank, result in enumerate(results):
        if isinstance(result, ProcessError):
            raise RuntimeError(f"rank {rank}: {result.kind}: {result.message}\n{result.trace}")
        if result is None:
            raise RuntimeError(f"rank {rank} was killed or took too long")
    return list(results)


def _on_host(
    host: Host, environment: dict[str, str], end: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    try:
        host.enter()
        os.environ.update(environment)
        end.send(function(*arguments))
    except BaseException as error:
        end.send(ProcessError(type(error).__name__, str(error), traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise InvalidInputError(f"{' '.join(words[:4])} failed, which needs root: {done.stderr.strip()}")
    return done.stdout
