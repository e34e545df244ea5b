"""Joining the job that ``torchrun`` describes in the environment: ranks, process groups, timeouts, and the way out."""

from __future__ import annotations

import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from shared.comms.abort import abort_collectives, connecting
from shared.comms.collective_log import CollectiveLog
from shared.comms.group import Group
from shared.comms.topology import hosts_in_order
from shared.comms.topology_files import read_topology
from shared.comms.watch import LostProcessError, Member, Timeouts, Watch
from shared.errors import InvalidInputError


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
    store, launched, _ = next(rendezvous("env://", timeout=start))
    rank, members = _meet(store, launched, world, local, topology)
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


def _meet(store: Any, launched: int, world: int, local: int, topology: Path | None) -> tuple[int, tuple[Member, ...]]:
    """This process's rank, and all processes in the order of their ranks. The launcher's first process decides."""
    own = Member(socket.gethostname(), local, os.getpid(), launched)
    store.set(f"trivium/member/{launched}", json.dumps(own))
    if launched == 0:
        found = [Member(*json.loads(store.get(f"trivium/member/{number}"))) for number in range(world)]
        try:
            ordered: Any = _in_order(found, topology)
        except InvalidInputError as error:
            ordered = str(error)
        store.set("trivium/members", json.dumps(ordered))
    told = json.loads(store.get("trivium/members"))
    if isinstance(told, str):
        raise InvalidInputError(told)
    members = tuple(Member(*member) for member in told)
    return members.index(own), members


def _in_order(members: list[Member], topology: Path | None) -> list[Member]:
    """The processes host by host, beginning with the launcher's first; a ring is as short from there on."""
    tree = None if topology is None else read_topology(topology)
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
