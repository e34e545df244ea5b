"""Sends the reports of the spool to the archive, as soon as it accepts them."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from apps.medical.adapters.dicom_spool import Spool, digest, short_name
from apps.medical.outputs.dicom_send import ArchiveUnavailable, ClassNotSupported, ReportRefused
from apps.medical.outputs.segmentation import SEGMENTATION
from shared.backoff import Backoff

log = logging.getLogger("trivium.gateway")

MAX_TRIES = 3
_POLL_INTERVAL_S = 0.2
_MAX_BATCH = 20


class Destination(Protocol):
    """An archive, by whichever protocol: ``StorageClient`` or ``WebArchive``. ``str`` gives its name for the log."""

    def send(self, reports: Sequence[Path]) -> Iterator[tuple[Path, ReportRefused | None]]: ...

    def check(self) -> None: ...


class ReportSender:
    """Sends the reports in the spool to the archive, until ``stop`` is set.

    While the archive cannot be reached, reports are kept and retried after increasing pauses; once it accepts one, all
    others that waited for it are sent. A report that it refuses ``MAX_TRIES`` times is moved to the spool's ``aside/``.
    """

    def __init__(self, spool: Spool, archive: Destination, stop: threading.Event, backoff: Backoff) -> None:
        self._spool, self._archive = spool, archive
        self._stop, self._backoff = stop, backoff
        self._refusals: Counter[str] = Counter()

    def run(self) -> None:
        """Sends reports until ``stop`` is set. Logs at the start whether the archive accepts reports."""
        self._check()
        while not self._stop.is_set():
            try:
                now = time.monotonic()
                due = [path for path in self._spool.reports() if self._backoff.until.get(path.name, 0.0) <= now]
                if due:
                    self._send(due[:_MAX_BATCH])
            except Exception as error:  # an unexpected error must not stop later reports
                log.error("reports cannot be sent: %s", type(error).__name__)
            self._stop.wait(_POLL_INTERVAL_S)

    def _check(self) -> None:
        try:
            self._archive.check()
            log.info("%s accepts reports", self._archive)
        except ArchiveUnavailable as error:
            log.warning("%s; reports will wait until this is fixed", error)

    def _send(self, due: list[Path]) -> None:
        unsent = list(due)
        try:
            for path, refusal in self._archive.send(due):
                unsent.remove(path)
                name, kind = short_name(path.name), _kind(path)
                if refusal is None:
                    self._spool.remove_report(path)
                    log.info("series %s: its %s is in the archive", name, kind)
                    self._forget(path)
                    self._backoff.forget_all_except(self._refusals)
                    continue
                if isinstance(refusal, ClassNotSupported):
                    self._spool.remove_report(path)
                    log.warning("the segmentation of series %s is not sent: %s", name, refusal)
                    self._forget(path)
                    continue
                self._refusals[path.name] += 1
                if self._refusals[path.name] < MAX_TRIES:
                    pause_s = self._backoff.failed(path.name)
                    log.warning("the %s of series %s waits: %s; next try in %.0f s", kind, name, refusal, pause_s)
                else:
                    log.error("the %s of series %s moved to aside/ after %d tries: %s", kind, name, MAX_TRIES, refusal)
                    self._spool.set_report_aside(path)
                    self._forget(path)
        except ArchiveUnavailable as error:
            if unsent:
                pause_s = max(self._backoff.failed(path.name) for path in unsent)
                log.warning(
                    "the reports of series %s wait: %s; next try in %.0f s (%d waiting in total)",
                    ", ".join(dict.fromkeys(short_name(path.name) for path in unsent)),
                    error,
                    pause_s,
                    len(self._spool.reports()),
                )
        except Exception:
            for path in unsent:
                self._backoff.failed(path.name)
            raise

    def _forget(self, path: Path) -> None:
        self._backoff.forget(path.name)
        del self._refusals[path.name]


def _kind(path: Path) -> str:
    return "segmentation" if path.stem.endswith(digest(SEGMENTATION)) else "report"
