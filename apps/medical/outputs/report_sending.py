"""Reports of the spool to the archive, as soon as it takes them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from apps.medical.adapters.dicom_spool import Spool, digest, short
from apps.medical.outputs.dicom_send import ArchiveAway, ClassNotTaken, ReportRefused
from apps.medical.outputs.segmentation import SEGMENTATION
from shared.backoff import Backoff

log = logging.getLogger("trivium.gateway")

MAX_TRIES = 3
_LOOK_S = 0.2
_TOGETHER = 20


class Destination(Protocol):
    """Where reports go, by whichever protocol: ``StorageUser`` and ``WebArchive``. ``str`` names it in the log."""

    def send(self, reports: Sequence[Path]) -> Iterator[tuple[Path, ReportRefused | None]]: ...

    def check(self) -> None: ...


class Sending:
    """Sends what the spool has for the archive, until ``stop`` is set.

    While the archive cannot be reached, reports are kept and tried again, after pauses that grow; once it takes one,
    all that waited for it are sent. One that it refuses ``MAX_TRIES`` times is put aside.
    """

    def __init__(self, spool: Spool, archive: Destination, stop: threading.Event, backoff: Backoff) -> None:
        self._spool, self._archive = spool, archive
        self._stop, self._backoff = stop, backoff
        self._refusals: Counter[str] = Counter()

    def run(self) -> None:
        """Sends reports until it is told to stop; says at the start whether the archive would take one."""
        self._check()
        while not self._stop.is_set():
            try:
                now = time.monotonic()
                due = [path for path in self._spool.reports() if self._backoff.until.get(path.name, 0.0) <= now]
                if due:
                    self._send(due[:_TOGETHER])
            except Exception as error:  # whatever it is, what comes later is sent all the same
                log.error("reports cannot be sent: %s", type(error).__name__)
            self._stop.wait(_LOOK_S)

    def _check(self) -> None:
        try:
            self._archive.check()
            log.info("%s takes reports", self._archive)
        except ArchiveAway as away:
            log.warning("%s; reports will wait until that is mended", away)

    def _send(self, due: list[Path]) -> None:
        left = list(due)
        try:
            for path, refusal in self._archive.send(due):
                left.remove(path)
                name, what = short(path.name), _kind(path)
                if refusal is None:
                    self._spool.sent(path)
                    log.info("series %s: its %s is in the archive", name, what)
                    self._forget(path)
                    self._backoff.end_pauses(but=self._refusals)
                    continue
                if isinstance(refusal, ClassNotTaken):
                    self._spool.sent(path)
                    log.warning("the segmentation of series %s is not sent: %s", name, refusal)
                    self._forget(path)
                    continue
                self._refusals[path.name] += 1
                if self._refusals[path.name] < MAX_TRIES:
                    pause_s = self._backoff.failed(path.name)
                    log.warning("the %s of series %s waits: %s; next try in %.0f s", what, name, refusal, pause_s)
                else:
                    log.error("the %s of series %s put aside after %d tries: %s", what, name, MAX_TRIES, refusal)
                    self._spool.put_report_aside(path)
                    self._forget(path)
        except ArchiveAway as away:
            if left:
                pause_s = max(self._backoff.failed(path.name) for path in left)
                log.warning(
                    "the reports of series %s wait: %s; next try in %.0f s (waiting in all: %d)",
                    ", ".join(dict.fromkeys(short(path.name) for path in left)),
                    away,
                    pause_s,
                    len(self._spool.reports()),
                )
        except Exception:
            for path in left:
                self._backoff.failed(path.name)
            raise

    def _forget(self, path: Path) -> None:
        self._backoff.forget(path.name)
        del self._refusals[path.name]


def _kind(path: Path) -> str:
    return "segmentation" if path.stem.endswith(digest(SEGMENTATION)) else "report"
