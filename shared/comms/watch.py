"""Finds the process that is dead, stopped or slow when a collective does not complete.

Every process writes a heartbeat with its current collective to the job's store once a second (one ``set``, a few
hundred bytes). Nobody reads the heartbeats while all is well. A process that has been in one collective for longer than
``suspicious_s`` reads them and names the missing process: it reported a failure, or its heartbeats stopped (killed,
stopped, cut off), or it is alive but not in the collective (slow).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.comms.collective_log import CollectiveLog

_FAILED_KEY = "trivium/failed"
_INFORMED_KEY = "trivium/informed"
_POLL_INTERVAL_S = 0.05
_LEAVE_S = 20.0
_SILENT = "no longer responds (killed, stopped or cut off)"


class LostProcessError(RuntimeError):
    """Another process of the run is dead, stopped, cut off or too slow. The message names it and its collective."""


class Member(NamedTuple):
    """A process of the run: host name, rank on the host, process id, rank assigned by the launcher.

    ``pid_namespace`` identifies the kernel's namespace of its process id, which is that of its container if it has one,
    ``machine`` the running kernel, and ``address`` is the host's network address on the way to the first host.
    """

    host: str
    local_rank: int
    pid: int
    launched: int
    pid_namespace: str = ""
    machine: str = ""
    address: str = ""

    @property
    def description(self) -> str:
        return f"on {self.host}, process {self.pid}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Timeouts and intervals between processes, in seconds.

    start_s       timeout of collectives until the first step is done (reading data, compiling, connecting)
    step_s        timeout of collectives after the first step
    silence_s     a process without a heartbeat for this long counts as lost, which ends the wait earlier
    suspicious_s  time in one collective after which a process reads the heartbeats of the others
    beat_s        interval between heartbeats
    """

    start_s: float = 600.0
    step_s: float = 120.0
    silence_s: float = 15.0
    suspicious_s: float = 5.0
    beat_s: float = 1.0


class Watch:
    """A thread that writes this process's heartbeats to the store, and reads the others' if a collective is slow.

    If another process is lost, the thread calls ``abort``, so that the training thread leaves its collective. If it
    does not within ``_LEAVE_S``, this process exits with code 1 and the same message.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        members: Sequence[Member],
        log: CollectiveLog,
        timeouts: Timeouts,
        abort: Callable[[], None],
    ) -> None:
        self._store, self._rank, self._members, self._log = store, rank, members, log
        self._timeouts, self._abort = timeouts, abort
        self._beat_count = 0
        self._last_seen: dict[int, tuple[int, float]] = {}
        self._status: dict[int, dict[str, Any]] = {}
        self._searching = self._store_gone = False
        self._stop = threading.Event()
        self.verdict: str | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def report(self, error: BaseException) -> None:
        """Reports to the other processes that this one fails with ``error``; only the first report of a run is kept.

        It also confirms that this process knows the cause and no longer reads it from the store.
        """
        message = " ".join(str(error).split())[:500]
        lost = isinstance(error, LostProcessError)
        why = message if lost else f"{type(error).__name__}: {message}"
        report = {"rank": self._rank, "why": why, "position": self._log.position, "lost": lost}
        with suppress(RuntimeError):
            self._store.compare_set(_FAILED_KEY, "", json.dumps(report))
            self._store.set(f"{_INFORMED_KEY}/{self._rank}", "")

    def await_informed(self, timeout_s: float) -> None:
        """Waits until all processes have reported an error, or for ``timeout_s``: a lost process never reports one."""
        keys = [f"{_INFORMED_KEY}/{rank}" for rank in range(len(self._members))]
        deadline = time.monotonic() + timeout_s
        with suppress(RuntimeError):
            while time.monotonic() < deadline and not self._store.check(keys):
                self._stop.wait(_POLL_INTERVAL_S)

    def reported_failure(self) -> str | None:
        """A message about the failure that a process has reported, or None. ``RuntimeError`` if the store is gone."""
        if not self._store.check([_FAILED_KEY]):
            return None
        report = json.loads(self._store.get(_FAILED_KEY))
        if report["lost"]:
            return str(report["why"])
        own = report["rank"] == self._rank
        return None if own else f"{self._name(report['rank'])} failed {report['position']}: {report['why']}"

    def find_culprit(self, error: BaseException) -> str:
        """A message that names the process that made a collective of this process fail with ``error``."""
        if self.verdict is not None:
            return self.verdict
        self._searching = True
        # A collective has already failed, so a shorter silence is conclusive.
        silence_s = max(4 * self._timeouts.beat_s, self._timeouts.silence_s / 4)
        deadline = time.monotonic() + silence_s + 4 * self._timeouts.beat_s
        while time.monotonic() < deadline:
            culprit = self._find_lost(silence_s) or self._find_ended_on_host()
            if culprit is not None:
                return culprit
            self._stop.wait(self._timeouts.beat_s)
        culprit = self._find_slow() or self._find_in_other_collective()
        return culprit or f"the processes can no longer reach each other: {' '.join(str(error).split())[:300]}"

    def _run(self) -> None:
        self._send_heartbeat()
        while not self._stop.wait(self._timeouts.beat_s):
            self._send_heartbeat()
            if self._searching:
                continue
            entered = self._log.oldest()
            if entered is None or time.perf_counter() - entered.start < self._timeouts.suspicious_s:
                self._last_seen.clear()
                continue
            self.verdict = self._find_lost(self._timeouts.silence_s)
            if self.verdict is not None:
                return self._leave_collective()

    def _leave_collective(self) -> None:
        """Makes the training thread leave its collective; if that fails, exits the process."""
        with suppress(RuntimeError):
            self._abort()
        if not self._stop.wait(_LEAVE_S):
            sys.stderr.write(f"trivium: {self.verdict}\n")
            sys.stderr.flush()
            os._exit(1)

    def _send_heartbeat(self) -> None:
        self._beat_count += 1
        entered = self._log.oldest()
        status = {
            "beat": self._beat_count,
            "time": time.time(),
            "position": self._log.position,
            "finished": self._log.finished,
            "in": None if entered is None else [entered.name, entered.group, entered.since],
        }
        if self._store_gone:
            return
        try:
            self._store.set(f"trivium/beat/{self._rank}", json.dumps(status))
        except RuntimeError:
            self._store_gone = True

    def _find_lost(self, silence_s: float) -> str | None:
        """A message about a process that failed, or was silent for ``silence_s`` while this process polled; or None."""
        try:
            if (reported := self.reported_failure()) is not None:
                return reported
            self._read_heartbeats()
        except RuntimeError as error:
            return (
                "the store of the job, on the host of the first process, no longer responds: that host is down or cut "
                f"off ({' '.join(str(error).split())[:200]})"
            )
        now = time.monotonic()
        silent = [rank for rank, (_, since) in self._last_seen.items() if now - since >= silence_s]
        return self._describe(silent, _SILENT) if silent else None

    def _find_ended_on_host(self) -> str | None:
        """A message about processes of this host that the kernel reports as ended, without waiting for silence."""
        own = self._members[self._rank]
        neighbours = [
            rank
            for rank, member in enumerate(self._members)
            if (member.host, member.pid_namespace) == (own.host, own.pid_namespace)
        ]
        ended = [rank for rank in neighbours if own.pid_namespace and _has_ended(self._members[rank].pid)]
        return self._describe(ended, _SILENT) if ended else None

    def _find_slow(self) -> str | None:
        """A message about living processes in no collective, else about those with the fewest finished collectives."""
        others = {rank: status for rank, status in self._status.items() if rank != self._rank}
        slow = [rank for rank, status in others.items() if status["in"] is None]
        if not slow and others:
            fewest = min(status["finished"] for status in others.values())
            if fewest < self._log.finished:
                slow = [rank for rank, status in others.items() if status["finished"] == fewest]
        return self._describe(slow, "is alive but too slow") if slow else None

    def _find_in_other_collective(self) -> str | None:
        """A message about living processes that wait in a different collective, so that neither can complete."""
        own = self._log.oldest()
        if own is None:
            return None
        others = {rank: status["in"] for rank, status in self._status.items() if rank != self._rank and status["in"]}
        differing = [rank for rank, (name, group, _) in others.items() if (name, group) != (own.name, own.group)]
        return self._describe(differing, "waits in a different collective") if differing else None

    def _read_heartbeats(self) -> None:
        now = time.monotonic()
        for rank in range(len(self._members)):
            if rank == self._rank:
                continue
            key = f"trivium/beat/{rank}"
            status = json.loads(self._store.get(key)) if self._store.check([key]) else {"beat": 0}
            if rank not in self._last_seen or self._last_seen[rank][0] != status["beat"]:
                self._last_seen[rank] = (status["beat"], now)
            if status["beat"]:
                self._status[rank] = status

    def _describe(self, ranks: Sequence[int], problem: str) -> str:
        own = self._log.oldest() or self._log.last
        waiting = "" if own is None else f"; rank {self._rank} waits in {own.name} ({own.group})"
        sentences = []
        for rank in ranks[:3]:
            status = self._status.get(rank)
            if status is None:
                sentences.append(f"{self._name(rank)} {problem}; it has sent no heartbeat since it joined")
                continue
            at = str(status["position"])
            if status["in"] is not None:
                name, group, since = status["in"]
                at += f", in {name} ({group}) since {_clock_time(since)}"
            else:
                at += ", in no collective"
            sentences.append(f"{self._name(rank)} {problem}: last heartbeat at {_clock_time(status['time'])}, {at}")
        more = f", and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        since = "" if own is None else f" since {_clock_time(own.since)}"
        return "; ".join(sentences) + more + waiting + since

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self._members[rank].description})"


def pid_namespace() -> str:
    """The identifier of this process's PID namespace; empty if there is no /proc."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def machine_id() -> str:
    """The identifier of this machine since its last start; empty if there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _has_ended(pid: int) -> bool:
    """Whether a process of this PID namespace has ended, or is a zombie that its parent has not reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in ("Z", "X")


def _clock_time(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
