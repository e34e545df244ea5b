"""Series of the spool to the server, one after the other, each as a job; its reports go back into the spool."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from apps.medical.adapters.dicom_spool import Spool, Taken, short
from apps.medical.types import PATIENT_KEYWORDS
from shared.backoff import Backoff
from shared.job_client import JobClient, JobFailed, JobGone, ServerAway

log = logging.getLogger("trivium.gateway")

MAX_TRIES = 3
_LOOK_S, _ASK_S = 0.2, 0.5


class Answering:
    """Has the server answer what is ready in the spool, until ``stop`` is set.

    While the server cannot be reached, a series is kept and tried again, after pauses that grow. What the server
    refuses is deleted, and the log says why; what it fails at ``MAX_TRIES`` times is put aside.

    With ``kernels``, which may be empty, one series of a study is answered, as ``best_reconstruction`` has it, and the
    others are deleted; where it cannot be answered the next one goes. What comes of the study meanwhile has it looked
    at anew.
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
        """Answers series until it is told to stop; says at the start where the server would not answer."""
        self._check()
        while not self._stop.is_set():
            try:
                series = self._spool.ready(self._backoff.until)
                if series is not None:
                    self._answer_next(series)
                    continue
            except Exception as error:  # whatever it is, what comes later is answered all the same
                log.error("the spool cannot be looked at: %s", type(error).__name__)
            self._stop.wait(_LOOK_S)

    def _check(self) -> None:
        try:
            self._jobs.check()
        except (ServerAway, JobFailed) as error:
            log.warning("%s; series will wait until that is mended", error)

    def _answer_next(self, series: str) -> None:
        """Answers the series, or the one of its study that goes first."""
        if self._kernels is None:
            self._try(self._spool.take(series))
            return
        from apps.medical.adapters.dicom import read_headers
        from apps.medical.adapters.series import best_reconstruction

        study = self._spool.study(series)
        best = best_reconstruction([read_headers(taken.files) for taken in study], self._kernels) if study[1:] else 0
        self._try(study[best], [taken for taken in study if taken is not study[best]])

    def _try(self, taken: Taken, others: Sequence[Taken] | None = None) -> None:
        name = short(taken.series)
        try:
            self._answer(taken, others)
        except ServerAway as error:
            if not self._stop.is_set():
                log.warning("series %s waits: %s; next try in %.0f s", name, error, self._backoff.failed(taken.series))
            return
        except JobGone:
            self._spool.note_job(taken, None)
            self._failed(taken, "its job, or its answer, was deleted on the server")
            return
        except JobFailed as error:
            self._spool.note_job(taken, None)
            if not error.is_refusal:
                self._failed(taken, f"the server failed ({error.status})")
                return
            log.warning("series %s refused (%d), and deleted: %s", name, error.status, loggable_reason(error, taken))
            self._spool.remove(taken)
        except Exception as error:  # a full disk, a series that somebody took away
            log.error("series %s waits: %s", name, type(error).__name__)
            self._backoff.failed(taken.series)
            return
        self._backoff.forget(taken.series)
        del self._failures[taken.series]

    def _failed(self, taken: Taken, why: str) -> None:
        self._failures[taken.series] += 1
        if self._failures[taken.series] < MAX_TRIES:
            pause_s = self._backoff.failed(taken.series)
            log.warning("series %s waits: %s; next try in %.0f s", short(taken.series), why, pause_s)
            return
        log.error("series %s put aside after %d tries: %s", short(taken.series), MAX_TRIES, why)
        self._spool.put_aside(taken)
        self._backoff.forget(taken.series)
        del self._failures[taken.series]

    def _answer(self, taken: Taken, others: Sequence[Taken] | None) -> None:
        name, job = short(taken.series), taken.job
        if job is None:
            job = self._jobs.submit(taken.files, {"patient": "yes", "incomplete": "no" if taken.ended else "yes"})
            self._spool.note_job(taken, job)
            log.info("series %s: %d files handed in", name, len(taken.files))
            if not taken.ended:
                log.warning("series %s: its sender did not end it, so that images may be missing; send it again", name)
        state = self._jobs.job(job)
        while state["state"] in ("queued", "running"):
            if self._stop.wait(_ASK_S):
                raise ServerAway("the gateway ends")
            if not self._spool.is_as(taken, others):
                self._jobs.cancel(job)
                self._begin_anew(taken)
                return
            state = self._jobs.job(job)
        if state["state"] == "cancelled":
            log.warning("series %s: its job was cancelled on the server, and it is deleted", name)
            self._spool.remove(taken)
            return
        if state["state"] == "failed":
            raise JobFailed(str(state.get("problem")), int(state.get("status") or 500))
        case = self._jobs.case(str(state["case"]))
        page = f"{self._jobs.server}/{self._jobs.app}?case={case['case']}"
        files: dict[str, str] = case["files"]
        reports = {file: self._jobs.file(path) for file, path in files.items() if file.endswith(".dcm")}
        if not self._spool.answered(taken, reports, others):
            self._begin_anew(taken)
            return
        if reports:
            log.info("series %s: answered, %s; its report is sent", name, page)
        else:
            log.info("series %s: answered, %s; no report, for %s", name, page, _why_none(case["result"]))
        for other in others or ():
            log.info("series %s deleted: of its study %s was answered (--one-per-study)", short(other.series), name)

    def _begin_anew(self, taken: Taken) -> None:
        whose = "it" if self._kernels is None else "its study"
        log.info("series %s: more came of %s, so that it is answered anew", short(taken.series), whose)
        self._spool.note_job(taken, None)


def loggable_reason(refusal: JobFailed, taken: Taken) -> str:
    """The server's sentence in one line, without what the series says of the patient, and without names of files."""
    sentence = " ".join(str(refusal).split())
    hidden = {path.name for path in taken.files} | {part for file in taken.files[:1] for part in _of_patient(file)}
    for word in sorted(hidden, key=len, reverse=True):
        sentence = re.sub(re.escape(word), "...", sentence, flags=re.IGNORECASE)
    return sentence[:500]


def _of_patient(file: Path) -> set[str]:
    """What a file says of the patient and the study, and the parts of it; of one that cannot be read nothing."""
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


def _why_none(result: dict[str, Any]) -> str:
    if result.get("lungs") is None:
        return "no lungs were found, and nothing was searched"
    operating = result.get("operating_score", 0.0)
    if any(finding.get("above_operating_score") for finding in result.get("findings", [])):
        return "its images lack unique identifiers of their own"
    return f"nothing reaches the operating score ({operating:.3f})"
