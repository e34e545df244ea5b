"""Submits the series of the spool to the server as jobs, one after the other, and stores their reports in the spool."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from apps.medical.adapters.dicom_spool import SeriesSnapshot, Spool, short_name
from apps.medical.types import PATIENT_KEYWORDS
from shared.backoff import Backoff
from shared.job_client import JobClient, JobFailed, JobGone, ServerUnavailable

log = logging.getLogger("trivium.gateway")

MAX_TRIES = 3
_SPOOL_POLL_INTERVAL_S, _JOB_POLL_INTERVAL_S = 0.2, 0.5


class SeriesSubmitter:
    """Submits series that are ready in the spool to the server, until ``stop`` is set.

    While the server cannot be reached, a series is kept and retried after increasing pauses. A series that the server
    refuses is deleted, and the log says why; one that fails ``MAX_TRIES`` times is moved to the spool's ``aside/``.

    If ``kernels`` is not None (it may be empty), only the best series of a study is submitted, as chosen by
    ``best_reconstruction``, and the others are deleted once it succeeds; if it is deleted or moved to ``aside/``, the
    next best is submitted. If more images of the study arrive meanwhile, the choice is made again.
    """

    def __init__(
        self,
        spool: Spool,
        jobs: JobClient,
        stop: threading.Event,
        backoff: Backoff,
        kernels: Sequence[str] | None = None,
    ) -> None:
        self._spool, self._jobs, self._stop, self._backoff, self._kernels = spool, jobs, stop, backoff, kernels
        self._failures: Counter[str] = Counter()

    def run(self) -> None:
        """Submits series until ``stop`` is set. Logs a warning at the start if the server is not available."""
        self._check()
        while not self._stop.is_set():
            try:
                series = self._spool.next_ready(self._backoff.until)
                if series is not None:
                    self._submit_next(series)
                    continue
            except Exception as error:  # an unexpected error must not stop later series
                log.error("the spool cannot be read: %s", type(error).__name__)
            self._stop.wait(_SPOOL_POLL_INTERVAL_S)

    def _check(self) -> None:
        try:
            self._jobs.check()
        except (ServerUnavailable, JobFailed) as error:
            log.warning("%s; series will wait until this is fixed", error)

    def _submit_next(self, series: str) -> None:
        """Submits the series, or the best series of its study."""
        if self._kernels is None:
            self._try(self._spool.snapshot(series))
            return
        from apps.medical.adapters.dicom import read_headers
        from apps.medical.adapters.series import best_reconstruction

        study = self._spool.study_snapshots(series)
        best = best_reconstruction([read_headers(taken.files) for taken in study], self._kernels) if study[1:] else 0
        self._try(study[best], [taken for taken in study if taken is not study[best]])

    def _try(self, snapshot: SeriesSnapshot, others: Sequence[SeriesSnapshot] | None = None) -> None:
        name = short_name(snapshot.series)
        try:
            self._submit(snapshot, others)
        except ServerUnavailable as error:
            if not self._stop.is_set():
                pause_s = self._backoff.failed(snapshot.series)
                log.warning("series %s waits: %s; next try in %.0f s", name, error, pause_s)
            return
        except JobGone:
            self._spool.set_job(snapshot, None)
            self._failed(snapshot, "its job or its case was deleted on the server")
            return
        except JobFailed as error:
            self._spool.set_job(snapshot, None)
            if not error.is_refusal:
                self._failed(snapshot, f"the server failed ({error.status})")
                return
            log.warning("series %s refused (%d) and deleted: %s", name, error.status, loggable_reason(error, snapshot))
            self._spool.remove(snapshot)
        except Exception as error:  # for example a full disk, or files that somebody deleted
            pause_s = self._backoff.failed(snapshot.series)
            reason = getattr(error, "strerror", None) or type(error).__name__
            log.error("series %s waits: %s; next try in %.0f s", name, reason, pause_s)
            return
        self._backoff.forget(snapshot.series)
        del self._failures[snapshot.series]

    def _failed(self, snapshot: SeriesSnapshot, reason: str) -> None:
        self._failures[snapshot.series] += 1
        if self._failures[snapshot.series] < MAX_TRIES:
            pause_s = self._backoff.failed(snapshot.series)
            log.warning("series %s waits: %s; next try in %.0f s", short_name(snapshot.series), reason, pause_s)
            return
        log.error("series %s moved to aside/ after %d tries: %s", short_name(snapshot.series), MAX_TRIES, reason)
        self._spool.set_aside(snapshot)
        self._backoff.forget(snapshot.series)
        del self._failures[snapshot.series]

    def _submit(self, snapshot: SeriesSnapshot, others: Sequence[SeriesSnapshot] | None) -> None:
        """Submits a series unless it has a job already, waits for the job, and stores its reports in the spool."""
        name, job = short_name(snapshot.series), snapshot.job
        if job is None:
            incomplete = "no" if snapshot.is_complete else "yes"
            job = self._jobs.submit(snapshot.files, {"patient": "yes", "incomplete": incomplete})
            self._spool.set_job(snapshot, job)
            log.info("series %s: %d files submitted", name, len(snapshot.files))
            if not snapshot.is_complete:
                log.warning("series %s: images may be missing, as its sender did not finish; send it again", name)
        state = self._jobs.job(job)
        while state["state"] in ("queued", "running"):
            if self._stop.wait(_JOB_POLL_INTERVAL_S):
                raise ServerUnavailable("the gateway is stopping")
            if not self._spool.is_unchanged(snapshot, others):
                self._jobs.cancel(job)
                self._restart(snapshot)
                return
            state = self._jobs.job(job)
        if state["state"] == "cancelled":
            log.warning("series %s deleted: its job was cancelled on the server", name)
            self._spool.remove(snapshot)
            return
        if state["state"] == "failed":
            raise JobFailed(str(state.get("problem")), int(state.get("status") or 500))
        case = self._jobs.case(str(state["case"]))
        page = f"{self._jobs.server}/{self._jobs.app}?case={case['case']}"
        files: dict[str, str] = case["files"]
        reports = {file: self._jobs.file(path) for file, path in files.items() if file.endswith(".dcm")}
        if not self._spool.replace_by_reports(snapshot, reports, others):
            self._restart(snapshot)
            return
        if reports:
            log.info("series %s: analysed, %s; its report will be sent", name, page)
        else:
            log.info("series %s: analysed, %s; no report: %s", name, page, _no_report_reason(case["result"]))
        for other in others or ():
            log.info(
                "series %s deleted: %s of its study was analysed (--one-per-study)", short_name(other.series), name
            )

    def _restart(self, snapshot: SeriesSnapshot) -> None:
        subject = "it" if self._kernels is None else "its study"
        log.info(
            "series %s: more images of %s arrived, so the analysis starts again", short_name(snapshot.series), subject
        )
        self._spool.set_job(snapshot, None)


def loggable_reason(refusal: JobFailed, snapshot: SeriesSnapshot) -> str:
    """The server's message in one line, without patient data of the series and without file names."""
    message = " ".join(str(refusal).split())
    hidden = {path.name for path in snapshot.files} | {
        part for file in snapshot.files[:1] for part in _patient_values(file)
    }
    for word in sorted(hidden, key=len, reverse=True):
        message = re.sub(re.escape(word), "...", message, flags=re.IGNORECASE)
    return message[:500]


def _patient_values(file: Path) -> set[str]:
    """The values of patient and study attributes in a file, and their words; empty if the file cannot be read."""
    from apps.medical.adapters.dicom_receive import read_header

    try:
        from pydicom.filereader import read_file_meta_info

        content = file.read_bytes()
        meta = read_file_meta_info(file)
        start = 144 + int(meta.FileMetaInformationGroupLength)
        header = read_header(BytesIO(content[start:]), str(meta.TransferSyntaxUID), 0x0020FFFF)
        values = [str(header.get(keyword) or "") for keyword in PATIENT_KEYWORDS]
    except Exception:
        return set()
    parts = {part for value in values for part in [value, *re.split(r"[\s^=,\\]+", value)]}
    return {part for part in parts if len(part) > 2}


def _no_report_reason(result: dict[str, Any]) -> str:
    if result.get("lungs") is None:
        return "no lungs were found, so nothing was searched"
    operating_score = result.get("operating_score", 0.0)
    if any(finding.get("above_operating_score") for finding in result.get("findings", [])):
        return "its images lack unique identifiers"
    return f"no finding reaches the operating score ({operating_score:.3f})"
