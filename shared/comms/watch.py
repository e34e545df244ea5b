"""Finds out which process is dead, stopped or slow when a collective does not come through.

Every process tells the job's store once a second that it lives and which collective it is in (one ``set``, a few
hundred bytes). Nobody reads that while all goes well. A process that has been in one collective for longer than
``suspicious_s`` looks at the others, and names the one that is missing: it left a note when it failed, or it is not
heard from any more (killed, stopped, cut off), or it lives and is elsewhere (slow).
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

_FAILED = "trivium/failed"
_SILENT = "is not heard from any more (killed, stopped or cut off)"


class LostProcessError(RuntimeError):
    """Another process of the run is dead, stopped, cut off or too slow; the message names it and its collective."""


class Member(NamedTuple):
    """A process of the run: the name of its host, its number there, its process id, its rank by the launcher.

    ``pids`` names the kernel's space of process ids that it lives in: that of its container, where it is in one.
    """

    host: str
    local: int
    pid: int
    launched: int
    pids: str = ""

    @property
    def words(self) -> str:
        return f"on {self.host}, process {self.pid}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long processes wait for each other, in seconds.

    ``start_s`` holds until the first step is done (reading data, compiling, connecting), ``step_s`` after it.
    ``silence_s`` is after how long without a sign of life a process counts as lost, which ends the wait earlier.
    """

    start_s: float = 600.0
    step_s: float = 120.0
    silence_s: float = 15.0
    suspicious_s: float = 5.0
    beat_s: float = 1.0


class Watch:
    """Tells the store what this process does, on a thread, and looks at the others when that takes long.

    ``abort`` is called from the thread where another process is lost, so that the training's own thread comes out of
    its collective. Where it does not within ``leave_s``, this process ends with exit code 1 and the same message.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        members: Sequence[Member],
        log: CollectiveLog,
        timeouts: Timeouts,
        abort: Callable[[], None],
        leave_s: float = 20.0,
    ) -> None:
        self._store, self._rank, self._members, self._log = store, rank, members, log
        self._timeouts, self._abort, self._leave_s = timeouts, abort, leave_s
        self._beats = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._status: dict[int, dict[str, Any]] = {}
        self._searching = self._store_gone = False
        self._stop = threading.Event()
        self.verdict: str | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def report(self, error: BaseException) -> None:
        """Leaves a note for the others that this process ends with ``error``; the first of a run stays."""
        words = " ".join(str(error).split())[:500]
        lost = isinstance(error, LostProcessError)
        why = words if lost else f"{type(error).__name__}: {words}"
        note = {"rank": self._rank, "why": why, "position": self._log.position, "lost": lost}
        with suppress(RuntimeError):
            self._store.compare_set(_FAILED, "", json.dumps(note))

    def find_culprit(self, error: BaseException) -> str:
        """Who is to blame for a collective of this process that failed with ``error``, in a sentence."""
        if self.verdict is not None:
            return self.verdict
        self._searching = True
        # Something is wrong already, so less silence says enough than while all seems well.
        silence = max(4 * self._timeouts.beat_s, self._timeouts.silence_s / 4)
        limit = time.monotonic() + silence + 4 * self._timeouts.beat_s
        while time.monotonic() < limit:
            found = self._lost(silence) or self._ended_here()
            if found is not None:
                return found
            self._stop.wait(self._timeouts.beat_s)
        found = self._slow() or self._elsewhere()
        return found or f"the processes cannot reach each other any more: {' '.join(str(error).split())[:300]}"

    def _run(self) -> None:
        self._beat()
        while not self._stop.wait(self._timeouts.beat_s):
            self._beat()
            if self._searching:
                continue
            entered = self._log.oldest()
            if entered is None or time.perf_counter() - entered.start < self._timeouts.suspicious_s:
                self._seen.clear()
                continue
            self.verdict = self._lost(self._timeouts.silence_s)
            if self.verdict is not None:
                return self._end()

    def _end(self) -> None:
        """Brings the training's thread out of its collective; where that fails, ends the process."""
        with suppress(RuntimeError):
            self._abort()
        if not self._stop.wait(self._leave_s):
            sys.stderr.write(f"trivium: {self.verdict}\n")
            sys.stderr.flush()
            os._exit(1)

    def _beat(self) -> None:
        self._beats += 1
        entered = self._log.oldest()
        status = {
            "beat": self._beats,
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

    def _lost(self, silence_s: float) -> str | None:
        """The process that failed, or has been silent for ``silence_s`` while this one looked, in a sentence."""
        try:
            if self._store.check([_FAILED]):
                note = json.loads(self._store.get(_FAILED))
                if note["lost"]:
                    return str(note["why"])
                if note["rank"] != self._rank:
                    return f"{self._name(note['rank'])} failed at {note['position']}: {note['why']}"
            self._read()
        except RuntimeError as error:
            return (
                "the store of the job, on the host of the first process, does not answer any more: that host is down "
                f"or cut off ({' '.join(str(error).split())[:200]})"
            )
        now = time.monotonic()
        silent = [rank for rank, (_, since) in self._seen.items() if now - since >= silence_s]
        return self._describe(silent, _SILENT) if silent else None

    def _ended_here(self) -> str | None:
        """The processes beside this one that the kernel does not know any more: nobody need wait for their silence."""
        own = self._members[self._rank]
        beside = [rank for rank, one in enumerate(self._members) if (one.host, one.pids) == (own.host, own.pids)]
        ended = [rank for rank in beside if own.pids and _has_ended(self._members[rank].pid)]
        return self._describe(ended, _SILENT) if ended else None

    def _slow(self) -> str | None:
        """The living processes that are in no collective, or else those that have been through the fewest."""
        others = {rank: status for rank, status in self._status.items() if rank != self._rank}
        elsewhere = [rank for rank, status in others.items() if status["in"] is None]
        if not elsewhere and others:
            fewest = min(status["finished"] for status in others.values())
            if fewest < self._log.finished:
                elsewhere = [rank for rank, status in others.items() if status["finished"] == fewest]
        return self._describe(elsewhere, "lives but is too slow") if elsewhere else None

    def _elsewhere(self) -> str | None:
        """The living processes that wait in another collective than this one, so that neither comes through."""
        own = self._log.oldest()
        if own is None:
            return None
        others = {rank: status["in"] for rank, status in self._status.items() if rank != self._rank and status["in"]}
        apart = [rank for rank, (name, group, _) in others.items() if (name, group) != (own.name, own.group)]
        return self._describe(apart, "waits in another collective") if apart else None

    def _read(self) -> None:
        now = time.monotonic()
        for rank in range(len(self._members)):
            if rank == self._rank:
                continue
            key = f"trivium/beat/{rank}"
            status = json.loads(self._store.get(key)) if self._store.check([key]) else {"beat": 0}
            if rank not in self._seen or self._seen[rank][0] != status["beat"]:
                self._seen[rank] = (status["beat"], now)
            if status["beat"]:
                self._status[rank] = status

    def _describe(self, ranks: Sequence[int], what: str) -> str:
        own = self._log.oldest() or self._log.last
        waiting = "" if own is None else f"; rank {self._rank} waits in {own.name} ({own.group})"
        sentences = []
        for rank in ranks[:3]:
            status = self._status.get(rank)
            if status is None:
                sentences.append(f"{self._name(rank)} {what}; it has told nothing since it joined")
                continue
            at = f"at {status['position']}"
            if status["in"] is not None:
                name, group, since = status["in"]
                at += f", in {name} ({group}) since {_clock(since)}"
            else:
                at += ", in no collective"
            sentences.append(f"{self._name(rank)} {what}: last sign of life at {_clock(status['time'])}, {at}")
        more = f", and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        since = "" if own is None else f" since {_clock(own.since)}"
        return "; ".join(sentences) + more + waiting + since

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self._members[rank].words})"


def pid_space() -> str:
    """The name of the space of process ids that this process is in, empty where the kernel has no /proc."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _has_ended(pid: int) -> bool:
    """Whether a process of this space is no more, or only waits for its parent to read how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in ("Z", "X")


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
