"""Joining the job that ``torchrun`` describes in the environment: ranks, process groups, timeouts, and the way out."""

from __future__ import annotations

import gc
import json
import os
import socket
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
from shared.comms.topology import hosts_in_order
from shared.comms.topology_files import read_topology
from shared.comms.watch import LostProcessError, Member, Timeouts, Watch, pid_space
from shared.errors import InvalidInputError

_POLL_S = 0.05


@contextmanager
def join(
    device: str | None = None, *, timeouts: Timeouts | None = None, topology: Path | None = None
) -> Iterator[Group]:
    """Joins the group that ``torchrun`` describes in the environment; alone without it.

    ``device`` is ``cpu`` or ``cuda``; by default the GPU of this process's local rank where there is one. Processes of
    a host get neighbouring ranks, and hosts come in the order of the ``topology`` file's switches, or of their names'
    numbers (``torchrun`` puts node10 before node2); the launcher's first process stays the first.

    Raises ``LostProcessError`` on every process that is left when another one is dead, stopped or too slow.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("there is no GPU that torch can use here; leave --device out, or say --device cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Group(0, 1, place)
        return
    limits = timeouts or Timeouts()
    start = timedelta(seconds=limits.start_s)
    store, launched = _job_store(start)
    name, rank, members = _meet(store, launched, world, local, topology, limits.start_s)
    store = PrefixStore(f"trivium/{name}", store)
    log = CollectiveLog()
    # On a GPU what the processes say to each other besides gradients lies on the host: gloo carries it.
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    with connecting():
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=start)
    watch = Watch(store.clone(), rank, members, log, limits, abort_collectives)
    group = Group(rank, world, place, members, log, limits)
    try:
        yield group
        # All leave together: one that ended while the leader still wrote was now and then aborted by torch's teardown.
        group.barrier()
    except RuntimeError as error:
        if not _from_a_collective(error, watch):
            watch.report(error)
            raise
        _stores.clear()
        lost = LostProcessError(watch.find_culprit(error))
        watch.report(lost)
        if launched == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            # The store lives in this process: the others ask it for the same.
            time.sleep(limits.silence_s / 2)
        raise lost from error
    except BaseException as error:
        if not isinstance(error, (SystemExit, KeyboardInterrupt)):
            watch.report(error)
        raise
    finally:
        watch.close()
        # A wrapped model keeps the group's threads; if they outlive the interpreter, they abort the process.
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def shorten_timeouts(group: Group) -> None:
    """From now on processes wait ``step_s`` for each other: the first step, which may take long, is done."""
    if group.world == 1:
        return
    from torch.distributed import distributed_c10d

    set_timeout: Any = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    for joined in list(distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=group.timeouts.step_s), joined)


_stores: dict[tuple[str, ...], tuple[Any, int]] = {}
"""The job's store, and this process's rank by the launcher; kept from one ``join`` of a process to its next."""


def _job_store(timeout: timedelta) -> tuple[Any, int]:
    """The store of the job that the environment describes, and this process's rank there.

    Without ``torchrun`` the launcher's first process holds it. Were it made anew for every run of a process, another
    process that is ahead would find the one of the run before, which is about to end, and wait in vain.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    job = tuple(os.environ.get(name, "") for name in names)
    if job not in _stores:
        _stores.clear()
        store, launched, _ = next(rendezvous("env://", timeout=timeout))
        _stores[job] = store, launched
    store, launched = _stores[job]
    store.set_timeout(timeout)
    return store, launched


def _meet(
    store: Any, launched: int, world: int, local: int, topology: Path | None, limit_s: float
) -> tuple[str, int, tuple[Member, ...]]:
    """The name of this round of processes, this one's rank, and all of them in the order of their ranks.

    ``torchrun`` keeps the store when it starts processes again, so what is read may be of those before. Every process
    has a random number: the launcher's first one publishes the members with theirs, a process that finds its own there
    says so, and when all have, the round begins. Until then the first looks again.
    """
    own, number = Member(socket.gethostname(), local, os.getpid(), launched, pid_space()), uuid.uuid4().hex
    store.set(f"trivium/member/{launched}", json.dumps([number, own]))
    limit = time.monotonic() + limit_s
    _await_members(store, world, limit_s)
    told: dict[str, Any] = {}
    while time.monotonic() < limit:
        if launched == 0:
            told = _publish(store, world, topology)
            if _all_agree(store, world, told):
                store.set("trivium/begun", told["round"])
                break
            continue
        told = json.loads(store.get("trivium/round"))
        if len(told["numbers"]) == world and told["numbers"][launched] == number:
            store.set(f"trivium/agreed/{launched}", told["round"])
            if store.check(["trivium/begun"]) and store.get("trivium/begun").decode() == told["round"]:
                break
        time.sleep(_POLL_S)
    else:
        raise InvalidInputError(f"the {world} processes of the job did not meet within {limit_s:g} s")
    if "refused" in told:
        raise InvalidInputError(told["refused"])
    members = tuple(Member(*member) for member in told["members"])
    return told["round"], members.index(own), members


def _await_members(store: Any, world: int, limit_s: float) -> None:
    """Waits until every process has told who it is; refuses where one does not within ``limit_s``, naming it."""
    keys = [f"trivium/member/{number}" for number in range(world)]
    try:
        store.wait(keys, timedelta(seconds=limit_s))
    except dist.DistStoreError as error:
        missing = [str(number) for number, key in enumerate(keys) if not store.check([key])]
        raise InvalidInputError(
            f"of the {world} processes of the job, number {', '.join(missing[:5])}{', ...' if missing[5:] else ''} of "
            f"the launcher did not come within {limit_s:g} s: look at its log, or raise --strategy.start-timeout-s"
        ) from error


def _publish(store: Any, world: int, topology: Path | None) -> dict[str, Any]:
    """Publishes the processes that are there, in the order of their ranks, or why they are refused."""
    found = _there(store, world)
    told: dict[str, Any] = {"round": uuid.uuid4().hex, "numbers": [number for number, _ in found]}
    try:
        told["members"] = members_in_order([Member(*member) for _, member in found], topology)
    except InvalidInputError as error:
        told["refused"] = str(error)
    store.set("trivium/round", json.dumps(told))
    return told


def _there(store: Any, world: int) -> list[Any]:
    """The number and the words of each process, the newest that it told."""
    return [json.loads(text) for text in store.multi_get([f"trivium/member/{number}" for number in range(world)])]


def _all_agree(store: Any, world: int, told: dict[str, Any]) -> bool:
    """Whether all other processes find themselves among the published ones, which it asks for a second at most."""
    keys = [f"trivium/agreed/{number}" for number in range(1, world)]
    for _ in range(int(1 / _POLL_S)):
        if store.check(keys) and all(value.decode() == told["round"] for value in store.multi_get(keys)):
            return True
        if [number for number, _ in _there(store, world)] != told["numbers"]:
            return False
        time.sleep(_POLL_S)
    return False


def members_in_order(members: list[Member], topology: Path | None) -> list[Member]:
    """The processes host by host, beginning with the launcher's first; a ring is as short from there on."""
    tree = None if topology is None else read_topology(topology)
    if tree is not None and tree.of_gpus:
        raise InvalidInputError(
            f"{topology} tells the GPUs of one host, and not the switches between hosts: order those by "
            "CUDA_VISIBLE_DEVICES, which trivium topology prints"
        )
    hosts = hosts_in_order(list(dict.fromkeys(member.host for member in members)), tree)
    first = hosts.index(members[0].host)
    turned = hosts[first:] + hosts[:first]
    place = {host: number for number, host in enumerate(turned)}
    return sorted(members, key=lambda member: (place[member.host], member.launched))


def _from_a_collective(error: BaseException, watch: Watch) -> bool:
    """Whether the error is that of a collective which did not come through, rather than one of this process's own."""
    if watch.verdict is not None or isinstance(error, dist.DistError):
        return True
    words = str(error)
    return any(mark in words for mark in _MARKS)


_MARKS = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Socket Timeout",
    "Broken pipe",
    "process group",
)
