"""A small cluster on one machine: hosts are network namespaces, connected by links with a given rate.

Linux only; needs iproute2 and root. Traffic between hosts goes through a bridge and a token bucket filter (``tc tbf``);
traffic between processes of a host does not. Everything is removed at the end of the context, and on SIGTERM, SIGHUP
and Ctrl-C. What a process that was killed has left is removed when the next network is created.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError

MTU = 9000
"""Bytes in a packet, as usual on clusters."""
HEADER_BYTES = 66
"""Additional bytes of an Ethernet frame: the headers of Ethernet, IP and TCP with timestamps."""
_CLONE_NEWUTS, _CLONE_NEWNET = 0x04000000, 0x40000000
_NAMESPACES = Path("/var/run/netns")
_network_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with the interface ``eth0``; with an empty ``namespace``, this machine with ``lo``."""

    name: str
    namespace: str
    address: str

    def enter(self) -> None:
        """Moves the calling process, which must be single-threaded, to this host: its network and its host name."""
        if not self.namespace:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        with (_NAMESPACES / self.namespace).open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) or libc.unshare(_CLONE_NEWUTS):
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")
        socket.sethostname(self.name)


LOCALHOST = Host(socket.gethostname(), "", "127.0.0.1")
"""This machine; processes on it need no root rights."""


def missing_privileges() -> str | None:
    """Why no network can be created on this machine, or None if it can."""
    if not shutil.which("ip") or not shutil.which("tc"):
        return "the commands ip and tc are missing (Debian: iproute2)"
    namespace = f"{_own_prefix()}probe"
    try:
        _run("ip", "netns", "add", namespace)
    except InvalidInputError as error:
        return str(error)
    _run("ip", "netns", "delete", namespace)
    return None


@contextmanager
def shaped_network(hosts: int, mbit_s: float) -> Iterator[list[Host]]:
    """Creates ``hosts`` hosts on a bridge, named node0, node1, ..., each with ``mbit_s`` Mbit/s in each direction."""
    prefix = f"{_own_prefix()}n{next(_network_numbers)}"
    bridge = f"{prefix}b"
    network_hosts = [Host(f"node{number}", f"{prefix}h{number}", f"10.213.0.{number + 1}") for number in range(hosts)]
    # The queue holds 200 ms, like a switch's: a shorter one drops packets when several connections send at once. A
    # larger burst would let small messages exceed the rate.
    shape = ("tbf", "rate", f"{mbit_s}mbit", "burst", "32kb", "latency", "200ms")
    namespaces = (bridge, *(host.namespace for host in network_hosts))
    _remove_left_behind()
    with _on_termination(lambda: _remove(namespaces)):
        try:
            _run("ip", "netns", "add", bridge)
            _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", bridge, "link", "set", "br0", "up", "mtu", str(MTU))
            for number, host in enumerate(network_hosts):
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
                    # Several hosts may send to the same host at once, so limit the receiving side as well.
                    _run("tc", "-n", bridge, "qdisc", "add", "dev", port, "root", *shape)
            yield network_hosts
        finally:
            _remove(namespaces)


def _remove(namespaces: Iterable[str]) -> None:
    """Removes the namespaces that exist, with their links."""
    for namespace in namespaces:
        with suppress(InvalidInputError):
            _run("ip", "netns", "delete", namespace)


def _own_prefix() -> str:
    """How the names of this process's network namespaces begin.

    Containers may share the folder of the network namespaces, and a process id means another process in each of them,
    so the name also tells the PID namespace.
    """
    return f"trivium{_pid_namespace()}p{os.getpid()}"


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _remove_left_behind() -> None:
    """Removes the namespaces of this PID namespace's processes that no longer exist: they were killed before."""
    if _NAMESPACES.is_dir():
        pattern = rf"trivium{_pid_namespace()}p(\d+)(n\d+(b|h\d+)|probe)$"
        owners = {path.name: re.match(pattern, path.name) for path in _NAMESPACES.iterdir()}
        _remove([name for name, owner in owners.items() if owner and not Path(f"/proc/{owner[1]}").exists()])


@contextmanager
def _on_termination(action: Callable[[], None]) -> Iterator[None]:
    """Within the context, SIGTERM and SIGHUP run ``action`` before they end this process.

    Only in the main thread, and only signals that have no handler.
    """

    def handle(number: int, frame: Any) -> None:
        action()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signals = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


class Job:
    """Processes on the hosts of a network that run ``function(*arguments)``, started as by ``torchrun``.

    There are ``per_host`` processes on each host. Ranks are assigned host by host, or round-robin if ``interleaved``.
    The function must be importable; it finds RANK, WORLD_SIZE, LOCAL_RANK and the address of the first process in the
    environment. ``preload`` names modules to import once for all processes (DDP imports torch._dynamo).
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
        self._pipes: list[Connection] = []
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
            own_end, child_end = context.Pipe()
            process = context.Process(
                target=_run_on_host, args=(host, environment, child_end, function, arguments), daemon=True
            )
            with _quiet_torch():
                process.start()
            child_end.close()
            self.processes.append(process)
            self._pipes.append(own_end)

    def result(self, rank: int, timeout_s: float = 120.0) -> Any:
        """The value that a process returned, a ``ProcessError`` if it raised, or None if it was killed or timed out."""
        with suppress(EOFError):
            if self._pipes[rank].poll(timeout_s):
                return self._pipes[rank].recv()
        return None

    def results(self, timeout_s: float = 120.0) -> list[Any]:
        """The results of all processes by rank. Afterwards no process is left."""
        results = [self.result(rank, timeout_s) for rank in range(len(self.processes))]
        self.end(wait_s=10)
        return results

    def end(self, wait_s: float = 0.0) -> None:
        """Kills the processes that do not exit within ``wait_s`` seconds."""
        for process in self.processes:
            process.join(timeout=wait_s)
            process.kill()
            process.join()


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Within the context, started processes do not log torch's warnings about addresses without host names."""
    before = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ["TORCH_CPP_LOG_LEVEL"] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_CPP_LOG_LEVEL"]


class ProcessError(RuntimeError):
    """An exception in a process of a job: the name of its class, its message and its traceback."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(kind, message, trace)
        self.kind, self.message, self.trace = kind, message, trace


def succeed(results: Sequence[Any]) -> list[Any]:
    """Returns the results of a job; raises ``RuntimeError`` for the first process that failed."""
    for rank, result in enumerate(results):
        if isinstance(result, ProcessError):
            raise RuntimeError(f"rank {rank}: {result.kind}: {result.message}\n{result.trace}")
        if result is None:
            raise RuntimeError(f"rank {rank} was killed or took too long")
    return list(results)


def _run_on_host(
    host: Host, environment: dict[str, str], pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    try:
        host.enter()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        os.environ.update(environment)
        pipe.send(function(*arguments))
    except BaseException as error:
        pipe.send(ProcessError(type(error).__name__, str(error), traceback.format_exc()))


def _end_with_parent() -> None:
    """Ends this process when the one that has started the job ends, even if it was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(*command: str) -> str:
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        raise InvalidInputError(f"{' '.join(command[:4])} failed (it needs root): {completed.stderr.strip()}")
    return completed.stdout
