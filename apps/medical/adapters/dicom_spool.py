"""The gateway's spool folder: series that were received but not processed, and reports that were not sent yet.

File names are digests of DICOM unique identifiers, never text from a sender. Only the owner can read the folder:

    series/DIGEST/DIGEST.dcm   the images, with the files ``study``, the digest of the study's UID, and ``job``, the
                               path of the series' job on the server once it is submitted
    reports/DIGEST-NAME.dcm    reports to send to the archive
    aside/DIGEST/              series and reports that failed too often
    arriving/                  files being written or deleted, which are discarded at a restart
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.atomic_files import write_whole

_UNRELEASED_FACTOR = 10
"""The quiet time is this many times as long for a series whose sender has not released its association."""
_JOB, _STUDY = "job", "study"


class SpoolFull(Exception):
    """There is no room for another image."""


class Sender(Protocol):
    """The association over which an image was received."""

    def is_alive(self) -> bool:
        """Whether it is still open."""

    @property
    def is_released(self) -> bool:
        """Whether it was released as the standard prescribes, rather than aborted."""


@dataclass(frozen=True, slots=True)
class SeriesSnapshot:
    """A series in the spool at one moment.

    series       digest of its UIDs, the name of its folder
    files        its images
    image_count  number of images received since the start, by which ``Spool.is_unchanged`` detects new ones
    job          path of its job on the server; None if it was not submitted
    is_complete  whether its senders released their associations, and all their images were stored
    """

    series: str
    files: Sequence[Path]
    image_count: int
    job: str | None
    is_complete: bool


@dataclass(slots=True)
class _SeriesState:
    study: str
    image_count: int = 0
    last_received: float = 0.0
    senders: list[Sender] = field(default_factory=list)
    is_aborted: bool = False
    job: str | None = None


class Spool:
    """The spool folder, used by one process; its methods are thread-safe.

    It holds at most ``max_bytes``. A series is ready ``quiet_s`` seconds after its last image if all its associations
    were released. It is ready after 10 times as long if an association is still open or was aborted, or if one of its
    sender's images could not be stored, because the sender may continue or repeat. Series that are in the spool at the
    start also wait 10 times as long, unless they were submitted to the server. With ``whole_studies`` a series is ready
    only when all received series of its study are, and once one was submitted, all of its study count as submitted.
    """

    def __init__(self, folder: Path, max_bytes: int, quiet_s: float, *, whole_studies: bool = False) -> None:
        self._lock = threading.Lock()
        self._max_bytes, self._quiet_s, self._whole_studies = max_bytes, quiet_s, whole_studies
        self._failed_senders = weakref.WeakSet[Sender]()
        self._incoming, self._reports, self._aside = (folder / name for name in ("series", "reports", "aside"))
        self._arriving = folder / "arriving"
        for subfolder in (self._incoming, self._reports, self._aside, self._arriving):
            subfolder.mkdir(mode=0o700, parents=True, exist_ok=True)
            subfolder.chmod(0o700)
        for leftover in self._arriving.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        now = time.monotonic()
        homes = [path for path in self._incoming.iterdir() if path.is_dir()]
        submitted_ns = {_study_of(home): _modified_ns(home / _JOB) for home in homes if (home / _JOB).exists()}
        self._states = {}
        for home in homes:
            study = _study_of(home)
            # Series with images that arrived after the study was submitted may be incomplete.
            was_complete = whole_studies and max(map(_modified_ns, home.glob("*.dcm")), default=0) < submitted_ns.get(
                study, 0
            )
            job = (home / _JOB).read_text(encoding="utf-8") if (home / _JOB).exists() else None
            self._states[home.name] = _SeriesState(
                study=study, last_received=now, is_aborted=job is None and not was_complete, job=job
            )
        self._bytes = _dicom_bytes(self._incoming) + _dicom_bytes(self._reports) + _dicom_bytes(self._aside)

    def store(
        self, study_uid: str, series_uid: str, image_uid: str, parts: Sequence[bytes | memoryview], sender: Sender
    ) -> None:
        """Writes an image, whose file is the concatenation of ``parts``; it is synced to disk on return.

        Raises ``SpoolFull`` if there is no room, and ``OSError``.
        """
        try:
            self._store(study_uid, series_uid, image_uid, parts, sender)
        except (SpoolFull, OSError):
            self._failed_senders.add(sender)
            raise

    def _store(
        self, study_uid: str, series_uid: str, image_uid: str, parts: Sequence[bytes | memoryview], sender: Sender
    ) -> None:
        study, series, name = digest(study_uid), digest(f"{study_uid}/{series_uid}"), f"{digest(image_uid)}.dcm"
        size = sum(len(part) for part in parts)
        with self._lock:
            self._make_room(size)
            self._bytes += size
        temporary = self._arriving / f"{name}.{threading.get_ident()}"
        try:
            _write(temporary, parts)
            with self._lock:
                home = self._incoming / series
                home.mkdir(mode=0o700, exist_ok=True)
                if not (home / _STUDY).exists():
                    write_whole(home / _STUDY, study)
                (home / _JOB).unlink(missing_ok=True)
                replaced_bytes = (home / name).stat().st_size if (home / name).exists() else 0
                temporary.replace(home / name)
                self._bytes -= replaced_bytes
                state = self._states.setdefault(series, _SeriesState(study=study))
                state.job = None
                state.image_count, state.last_received = state.image_count + 1, time.monotonic()
                if sender not in state.senders:
                    state.senders = [*(other for other in state.senders if other.is_alive()), sender]
                    state.is_aborted = False
        except BaseException:
            temporary.unlink(missing_ok=True)
            with self._lock:
                self._bytes -= size
            raise
        _sync_folder(home)

    def next_ready(self, paused_until: Mapping[str, float]) -> str | None:
        """The first received of the series that are ready; None if none is.

        ``paused_until`` maps series that failed before to the monotonic time until which they are not ready.
        """
        due: dict[str, float] = {}
        study_due: dict[str, float] = {}
        with self._lock:
            for series, state in self._states.items():
                ended = [sender for sender in state.senders if not sender.is_alive()]
                state.is_aborted |= any(not sender.is_released or sender in self._failed_senders for sender in ended)
                state.senders = [sender for sender in state.senders if sender not in ended]
                wait_s = self._quiet_s * (_UNRELEASED_FACTOR if state.senders or state.is_aborted else 1)
                due[series] = max(state.last_received + wait_s, paused_until.get(series, 0.0))
                study_due[state.study] = max(due[series], study_due.get(state.study, 0.0))
            now = time.monotonic()
            for series, state in self._states.items():
                if now >= (study_due[state.study] if self._whole_studies else due[series]):
                    return series
        return None

    def study_snapshots(self, series: str) -> list[SeriesSnapshot]:
        """All received series of the study of ``series``, as they are now."""
        with self._lock:
            study = self._states[series].study
            return [self._snapshot(other) for other in sorted(self._states) if self._states[other].study == study]

    def snapshot(self, series: str) -> SeriesSnapshot:
        """The series as it is now."""
        with self._lock:
            return self._snapshot(series)

    def _snapshot(self, series: str) -> SeriesSnapshot:
        home = self._incoming / series
        state = self._states[series]
        is_complete = not (state.senders or state.is_aborted)
        return SeriesSnapshot(series, sorted(home.glob("*.dcm")), state.image_count, state.job, is_complete)

    def is_unchanged(self, snapshot: SeriesSnapshot, others: Sequence[SeriesSnapshot] | None = None) -> bool:
        """Whether the series has received no image since its snapshot.

        With ``others``, the snapshots of the other series of its study, whether the whole study has received none.
        """
        study, image_count = self._states[snapshot.series].study, self._states[snapshot.series].image_count
        if others is None:
            return image_count == snapshot.image_count
        now = {series: state.image_count for series, state in list(self._states.items()) if state.study == study}
        return now == {taken.series: taken.image_count for taken in (snapshot, *others)}

    def set_job(self, snapshot: SeriesSnapshot, job: str | None) -> None:
        """Stores the path of the series' job on the server, so that it is not submitted twice; None forgets the job.

        Does nothing if the series has changed since its snapshot. Raises ``OSError`` if the job cannot be written, as
        on a full disk; it is then remembered until a restart.
        """
        with self._lock:
            if not self.is_unchanged(snapshot):
                return
            self._states[snapshot.series].job = job
            file = self._incoming / snapshot.series / _JOB
            file.unlink(missing_ok=True)
            if job is not None:
                write_whole(file, job)

    def replace_by_reports(
        self, snapshot: SeriesSnapshot, reports: Mapping[str, bytes], others: Sequence[SeriesSnapshot] | None = None
    ) -> bool:
        """Stores the reports until they are sent, and deletes the series and ``others`` of its study.

        Returns False, and does nothing, if they have changed since (see ``is_unchanged``). The series itself, with its
        job, is deleted last, so that if the process ends in between, no other series of the study is left to be
        processed instead.
        """
        with self._lock:
            if not self.is_unchanged(snapshot, others):
                return False
            for other in others or ():
                self._remove(other.series)
            for name, content in reports.items():
                file = self._reports / f"{snapshot.series}-{digest(name)}.dcm"
                temporary = self._arriving / file.name
                _write(temporary, [content])
                temporary.replace(file)
                self._bytes += len(content)
            self._remove(snapshot.series)
            return True

    def remove(self, snapshot: SeriesSnapshot) -> None:
        """Deletes a series that cannot be processed, unless it has changed since its snapshot."""
        with self._lock:
            if snapshot.series in self._states and self.is_unchanged(snapshot):
                self._remove(snapshot.series)

    def set_aside(self, snapshot: SeriesSnapshot) -> None:
        """Moves a series to ``aside/`` for inspection, unless it has changed. It is deleted when its room is needed."""
        with self._lock:
            if not self.is_unchanged(snapshot):
                return
            target = self._aside / snapshot.series
            self._delete(target)
            (self._incoming / snapshot.series).rename(target)
            os.utime(target)
            del self._states[snapshot.series]

    def reports(self) -> list[Path]:
        """The reports that were not sent yet, oldest first."""
        return sorted(self._reports.glob("*.dcm"), key=lambda path: path.stat().st_mtime_ns)

    def remove_report(self, report: Path) -> None:
        """Deletes a report that was sent."""
        with self._lock:
            self._delete(report)

    def set_report_aside(self, report: Path) -> None:
        """Moves a report that the archive refuses to ``aside/``, as ``set_aside`` does with a series."""
        with self._lock:
            self._delete(self._aside / report.name)
            report.rename(self._aside / report.name)

    def _make_room(self, size: int) -> None:
        """Deletes the oldest entries of ``aside/`` until there is room. Raises ``SpoolFull`` if that is not enough."""
        while self._bytes + size > self._max_bytes:
            set_aside = sorted(self._aside.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            if not set_aside:
                raise SpoolFull(f"the spool holds {self._bytes:,} of {self._max_bytes:,} bytes")
            self._delete(set_aside[0])

    def _remove(self, series: str) -> None:
        self._delete(self._incoming / series)
        del self._states[series]

    def _delete(self, path: Path) -> None:
        self._bytes -= _dicom_bytes(path)
        if path.is_dir():
            # Renamed first: if deleting is interrupted, the rest must not look like a complete series.
            deleting = self._arriving / f"{path.name}.{time.monotonic_ns()}"
            path.rename(deleting)
            shutil.rmtree(deleting, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def digest(text: str) -> str:
    """The digest that stands for an identifier in file names and in the log: 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def short_name(name: str) -> str:
    """The name of a series, or of its report, in the log."""
    return name[:12]


def _dicom_bytes(path: Path) -> int:
    """The size of the DICOM files in a folder, or of a single file; 0 if it does not exist."""
    files = path.rglob("*.dcm") if path.is_dir() else [path] if path.exists() else []
    return sum(file.stat().st_size for file in files)


def _study_of(home: Path) -> str:
    """The study of the series in this folder; the series itself if an earlier version stored it without its study."""
    file = home / _STUDY
    return file.read_text(encoding="utf-8") if file.exists() else home.name


def _modified_ns(file: Path) -> int:
    return file.stat().st_mtime_ns


def _sync_folder(folder: Path) -> None:
    """Syncs the folder's entries to disk. Does nothing if the folder was deleted in the meantime."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Writes a file and syncs it to disk. If that fails, as on a full disk, no part of it is left."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
