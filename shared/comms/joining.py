"""Joins the job that ``torchrun`` describes in the environment: ranks, process groups, timeouts and shutdown."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from shared.comms.abort import abort_collectives, connecting
from shared.comms.collective_log import CollectiveLog
from shared.comms.group import Group
from shared.comms.interface import choose_interface, local_address
from shared.comms.topology import hosts_in_order
from shared.comms.topology_files import read_topology
from shared.comms.watch import LostProcessError, Member, Timeouts, Watch, machine_id, pid_namespace
from shared.device import choose_device
from shared.errors import InvalidInputError

_POLL_INTERVAL_S = 0.05
_STOP_CONNECTING_S = 2.0


@contextmanager
def join(
    device: str | None = None, *, timeouts: Timeouts | None = None, topology: Path | None = None
) -> Iterator[Group]:
    """Joins the group that ``torchrun`` describes in the environment; without it, a group of one process.

    ``device`` is ``cpu`` or ``cuda``; by default the GPU of this process's local rank if there is one. Processes of a
    host get adjacent ranks. Hosts are ordered by the switches in the ``topology`` file, or by the numbers in their
    names (``torchrun`` puts node10 before node2). The launcher's first process keeps rank 0.

    Raises ``LostProcessError`` on every remaining process if another one is dead, stopped or too slow.
    """
    kind = choose_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch_device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(torch_device)
    if world == 1:
        yield Group(0, 1, torch_device)
        return
    limits = timeouts or Timeouts()
    start_timeout = timedelta(seconds=limits.start_s)
    store, launcher_rank = _job_store(start_timeout)
    round_id, rank, members = _rendezvous(store, launcher_rank, world, local_rank, topology, limits.start_s)
    store = PrefixStore(f"trivium/{round_id}", store)
    log = CollectiveLog()
    # On a GPU, messages other than gradients are in host memory and need gloo.
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    watch = Watch(store.clone(), rank, members, log, limits, abort_collectives)
    group = Group(rank, world, torch_device, members, log, limits)
    try:
        own_address = members[rank].address
        if other_addresses := {member.address for member in members} - {own_address}:
            choose_interface(own_address, sorted(other_addresses))
        _connect(backend, store, group, watch)
        # A process that raises before another has connected would be reported there in place of that one's own error.
        group.sum(torch.zeros(1))
        yield group
        # All processes leave together: torch's teardown occasionally aborted a process that ended while the leader was
        # still writing.
        group.barrier()
    except Exception as error:
        failure = error
        if isinstance(error, LostProcessError):
            _stores.clear()
        elif isinstance(error, RuntimeError) and _is_collective_failure(error, watch):
            _stores.clear()
            failure = LostProcessError(watch.find_culprit(error))
        watch.report(failure)
        # The collectives of the other processes fail at once; each then reads the cause from the store.
        abort_collectives()
        if launcher_rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            # The store is in this process.
            watch.await_informed(limits.silence_s / 2)
        if failure is error:
            raise
        raise failure from error
    finally:
        watch.close()
        # A wrapped model keeps the group's threads alive; if they outlive the interpreter, they abort the process.
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def _connect(backend: str, store: Any, group: Group, watch: Watch) -> None:
    """Connects the processes. Raises ``LostProcessError`` once this or another process cannot, or after ``start_s``.

    torch connects in a thread, because its wait for a process that cannot connect is up to five times ``start_s``.
    """
    timeouts = group.timeouts
    problems: list[Exception] = []

    def create_process_group(own_store: Any) -> None:
        limit = timedelta(seconds=timeouts.start_s)
        try:
            dist.init_process_group(backend, store=own_store, rank=group.rank, world_size=group.world, timeout=limit)
        except Exception as error:
            problems.append(error)

    with connecting() as stop, group.log.running("connect"):
        thread = threading.Thread(target=create_process_group, args=(store.clone(),), name="connect", daemon=True)
        thread.start()
        deadline = time.monotonic() + timeouts.start_s
        try:
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(timeouts.beat_s)
                if (cause := watch.verdict or watch.reported_failure()) is not None:
                    raise LostProcessError(cause)
            if thread.is_alive():
                problems.append(TimeoutError(f"not within {timeouts.start_s:g} s"))
            if problems:
                raise LostProcessError(_describe_no_connection(group, problems[0])) from problems[0]
        except BaseException:
            stop()
            thread.join(_STOP_CONNECTING_S)
            raise


def _describe_no_connection(group: Group, error: Exception) -> str:
    through = os.environ.get("GLOO_SOCKET_IFNAME")
    return (
        f"the processes of the job cannot connect to each other from {group.members[group.rank].host}"
        f"{f' through the interface {through}' if through else ''}: {' '.join(str(error).split())[:300]}; if they "
        "are all running, name the interface between the hosts in GLOO_SOCKET_IFNAME on each host (ip address "
        "lists them) and open their TCP ports to each other"
    )


def shorten_timeouts(group: Group) -> None:
    """Sets the timeout of all groups to ``step_s``. Call it after the first step, which may take longer."""
    if group.world == 1:
        return
    from torch.distributed import distributed_c10d

    set_timeout: Any = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    for process_group in list(distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=group.timeouts.step_s), process_group)


_stores: dict[tuple[str, ...], tuple[Any, int]] = {}
"""The job's store and this process's launcher rank, by job; reused by later calls of ``join`` in this process."""


def _job_store(timeout: timedelta) -> tuple[Any, int]:
    """The store of the job that the environment describes, and this process's rank assigned by the launcher.

    Without ``torchrun`` the launcher's first process hosts the store. It is reused for later runs of the same process:
    with a new store for each run, a process that is ahead would connect to the old store, which is about to close, and
    wait in vain.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    job = tuple(os.environ.get(name, "") for name in names)
    if job not in _stores:
        _stores.clear()
        store, launcher_rank, _ = next(rendezvous("env://", timeout=timeout))
        _stores[job] = store, launcher_rank
    store, launcher_rank = _stores[job]
    store.set_timeout(timeout)
    return store, launcher_rank


def _rendezvous(
    store: Any, launcher_rank: int, world: int, local_rank: int, topology: Path | None, timeout_s: float
) -> tuple[str, int, tuple[Member, ...]]:
    """The identifier of this round, this process's rank, and all processes in rank order.

    ``torchrun`` keeps the store when it restarts processes, so entries may be from processes of an earlier round. Each
    process therefore registers with a random token. The launcher's first process publishes the members with their
    tokens, each process that finds its own token confirms the round, and the round begins when all have confirmed.
    Until then the first process publishes again.
    """
    identity = (socket.gethostname(), local_rank, os.getpid(), launcher_rank, pid_namespace(), machine_id())
    own, token = Member(*identity, local_address(os.environ.get("MASTER_ADDR", ""))), uuid.uuid4().hex
    store.set(f"trivium/member/{launcher_rank}", json.dumps([token, own]))
    deadline = time.monotonic() + timeout_s
    _await_members(store, world, timeout_s)
    round_info: dict[str, Any] = {}
    while time.monotonic() < deadline:
        if launcher_rank == 0:
            round_info = _publish_round(store, world, topology)
            if _all_confirmed(store, world, round_info):
                store.set("trivium/begun", round_info["round"])
                break
            continue
        round_info = json.loads(store.get("trivium/round"))
        if len(round_info["numbers"]) == world and round_info["numbers"][launcher_rank] == token:
            store.set(f"trivium/agreed/{launcher_rank}", round_info["round"])
            if store.check(["trivium/begun"]) and store.get("trivium/begun").decode() == round_info["round"]:
                break
        time.sleep(_POLL_INTERVAL_S)
    else:
        raise InvalidInputError(f"the {world} processes of the job did not find each other within {timeout_s:g} s")
    if "refused" in round_info:
        raise InvalidInputError(round_info["refused"])
    members = tuple(Member(*member) for member in round_info["members"])
    return round_info["round"], [member.launched for member in members].index(launcher_rank), members


def _await_members(store: Any, world: int, timeout_s: float) -> None:
    """Waits until every process has registered.

    Raises ``InvalidInputError`` with the launcher ranks of the missing processes after ``timeout_s``.
    """
    keys = [f"trivium/member/{number}" for number in range(world)]
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except dist.DistStoreError as error:
        missing = [str(number) for number, key in enumerate(keys) if not store.check([key])]
        raise InvalidInputError(
            f"of the {world} processes of the job, launcher rank {', '.join(missing[:5])}"
            f"{', ...' if missing[5:] else ''} did not join within {timeout_s:g} s: check its log, or raise "
            "--strategy.start-timeout-s"
        ) from error


def _publish_round(store: Any, world: int, topology: Path | None) -> dict[str, Any]:
    """Publishes the registered processes in rank order, or the reason why they are refused."""
    registered = _read_members(store, world)
    round_info: dict[str, Any] = {"round": uuid.uuid4().hex, "numbers": [token for token, _ in registered]}
    try:
        round_info["members"] = members_in_order([Member(*member) for _, member in registered], topology)
    except InvalidInputError as error:
        round_info["refused"] = str(error)
    store.set("trivium/round", json.dumps(round_info))
    return round_info


def _read_members(store: Any, world: int) -> list[Any]:
    """The latest token and member of each process."""
    return [json.loads(text) for text in store.multi_get([f"trivium/member/{number}" for number in range(world)])]


def _all_confirmed(store: Any, world: int, round_info: dict[str, Any]) -> bool:
    """Whether all other processes confirm the published round; polls for at most one second."""
    keys = [f"trivium/agreed/{number}" for number in range(1, world)]
    for _ in range(int(1 / _POLL_INTERVAL_S)):
        if store.check(keys) and all(value.decode() == round_info["round"] for value in store.multi_get(keys)):
            return True
        if [token for token, _ in _read_members(store, world)] != round_info["numbers"]:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return False


def members_in_order(members: list[Member], topology: Path | None) -> list[Member]:
    """The processes host by host, starting with the launcher's first; the length of a ring does not depend on that.

    If several machines have the same host name, those after the first get a number: ``ubuntu (2)``.
    """
    machines: dict[str, list[str]] = {}
    for member in members:
        machines.setdefault(member.host, [])
        machines[member.host] += [member.machine] if member.machine not in machines[member.host] else []
    numbers = [machines[member.host].index(member.machine) + 1 for member in members]
    members = [
        member._replace(host=f"{member.host} ({number})") if number > 1 else member
        for member, number in zip(members, numbers, strict=True)
    ]
    tree = None if topology is None else read_topology(topology)
    if tree is not None and tree.of_gpus:
        raise InvalidInputError(
            f"{topology} describes the GPUs of one host, not the switches between hosts; order the GPUs with "
            "CUDA_VISIBLE_DEVICES, as printed by trivium topology"
        )
    hosts = hosts_in_order(list(dict.fromkeys(member.host for member in members)), tree)
    first = hosts.index(members[0].host)
    rotated = hosts[first:] + hosts[:first]
    position = {host: number for number, host in enumerate(rotated)}
    return sorted(members, key=lambda member: (position[member.host], member.launched))


def _is_collective_failure(error: BaseException, watch: Watch) -> bool:
    """Whether the error comes from a failed collective rather than from this process's own code."""
    if watch.verdict is not None or isinstance(error, dist.DistError):
        return True
    message = str(error)
    return any(marker in message for marker in _COLLECTIVE_ERROR_MARKERS)


_COLLECTIVE_ERROR_MARKERS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Socket Timeout",
    "Broken pipe",
    "process group",
)
