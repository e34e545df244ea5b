"""Series that were received and are not answered yet, and reports that are not sent yet: files in a folder.

Names are digests of DICOM's unique identifiers, never what a sender says. All is for the owner alone:

    series/DIGEST/DIGEST.dcm   the images; beside them ``study``, the digest of the study, and ``job``, where the series
                               was handed in to the server
    reports/DIGEST-NAME.dcm    reports that the archive has not got yet
    aside/DIGEST/              series, and reports, that were tried too often
    arriving/                  what is being written, or deleted: of no use after a restart
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

_LONGER = 10
"""So many times as long is waited for a series whose sender has not released its association."""
_JOB, _STUDY = "job", "study"


class SpoolFull(Exception):
    """There is no room for another image."""


class Sender(Protocol):
    """The association that an image came over."""

    def is_alive(self) -> bool:
        """Whether it is still open."""

    @property
    def is_released(self) -> bool:
        """Whether it was ended as the standard has it, rather than broken off."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A series as it was when it was taken to be answered; ``number`` tells whether anything came since.

    ``ended`` where its senders released their associations, and none of its images found no room.
    """

    series: str
    files: Sequence[Path]
    number: int
    job: str | None
    ended: bool


@dataclass(slots=True)
class _Series:
    study: str
    number: int = 0
    last: float = 0.0
    senders: list[Sender] = field(default_factory=list)
    broken_off: bool = False


class Spool:
    """The folder, for one process; its methods may be called by any thread.

    ``most_bytes`` bounds what lies in it. A series is ready ``quiet_s`` after its last image where all its associations
    were released, and ten times as long after it where one is open or was broken off, or an image that came over one
    could not be kept: its sender will go on, or send it again. So it is with all that lies there at the start, but for
    what was handed in to the server. With ``whole_studies`` none is ready before all series of its study that lie there
    are, and with one all of its study were handed in.
    """

    def __init__(self, folder: Path, most_bytes: int, quiet_s: float, *, whole_studies: bool = False) -> None:
        self._lock = threading.Lock()
        self._most, self._quiet_s, self._whole_studies = most_bytes, quiet_s, whole_studies
        self._lacking = weakref.WeakSet[Sender]()
        self._incoming, self._reports, self._aside = (folder / name for name in ("series", "reports", "aside"))
        self._arriving = folder / "arriving"
        for place in (self._incoming, self._reports, self._aside, self._arriving):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.chmod(0o700)
        for torn in self._arriving.iterdir():
            if torn.is_dir():
                shutil.rmtree(torn)
            else:
                torn.unlink()
        now = time.monotonic()
        places = [place for place in self._incoming.iterdir() if place.is_dir()]
        studies = {_study(place): _changed(place / _JOB) for place in places if (place / _JOB).exists()}
        self._known = {}
        for place in places:
            study = _study(place)
            # What came of it after the study was handed in may be incomplete.
            was_whole = whole_studies and max(map(_changed, place.glob("*.dcm")), default=0) < studies.get(study, 0)
            self._known[place.name] = _Series(
                study=study, last=now, broken_off=not (was_whole or (place / _JOB).exists())
            )
        self._bytes = _size(self._incoming) + _size(self._reports) + _size(self._aside)

    def store(
        self, study_uid: str, series_uid: str, image_uid: str, parts: Sequence[bytes | memoryview], sender: Sender
    ) -> None:
        """Writes an image, whose file is the ``parts`` one after the other; it is on the disk when this returns.

        Raises ``SpoolFull`` where there is no room, and ``OSError``.
        """
        try:
            self._store(study_uid, series_uid, image_uid, parts, sender)
        except (SpoolFull, OSError):
            self._lacking.add(sender)
            raise

    def _store(
        self, study_uid: str, series_uid: str, image_uid: str, parts: Sequence[bytes | memoryview], sender: Sender
    ) -> None:
        study, series, name = digest(study_uid), digest(f"{study_uid}/{series_uid}"), f"{digest(image_uid)}.dcm"
        size = sum(len(part) for part in parts)
        with self._lock:
            self._make_room(size)
            self._bytes += size
        aside = self._arriving / f"{name}.{threading.get_ident()}"
        try:
            _write(aside, parts)
            with self._lock:
                home = self._incoming / series
                home.mkdir(mode=0o700, exist_ok=True)
                if not (home / _STUDY).exists():
                    _write(home / _STUDY, [study.encode()])
                (home / _JOB).unlink(missing_ok=True)
                earlier = (home / name).stat().st_size if (home / name).exists() else 0
                aside.replace(home / name)
                self._bytes -= earlier
                known = self._known.setdefault(series, _Series(study=study))
                known.number, known.last = known.number + 1, time.monotonic()
                if sender not in known.senders:
                    known.senders = [*(other for other in known.senders if other.is_alive()), sender]
                    known.broken_off = False
        except BaseException:
            aside.unlink(missing_ok=True)
            with self._lock:
                self._bytes -= size
            raise
        _flush(home)

    def ready(self, passed_over: Mapping[str, float]) -> str | None:
        """The series that has waited longest of those that are ready; ``passed_over`` says until when some are not."""
        due: dict[str, float] = {}
        whole: dict[str, float] = {}
        with self._lock:
            for series, known in self._known.items():
                ended = [sender for sender in known.senders if not sender.is_alive()]
                known.broken_off |= any(not sender.is_released or sender in self._lacking for sender in ended)
                known.senders = [sender for sender in known.senders if sender not in ended]
                waits_s = self._quiet_s * (_LONGER if known.senders or known.broken_off else 1)
                due[series] = max(known.last + waits_s, passed_over.get(series, 0.0))
                whole[known.study] = max(due[series], whole.get(known.study, 0.0))
            now = time.monotonic()
            for series, known in self._known.items():
                if now >= (whole[known.study] if self._whole_studies else due[series]):
                    return series
        return None

    def study(self, series: str) -> list[Taken]:
        """The series that lie there of the study that one is of, as they are now."""
        with self._lock:
            study = self._known[series].study
            return [self._take(other) for other in sorted(self._known) if self._known[other].study == study]

    def take(self, series: str) -> Taken:
        """The series as it is now."""
        with self._lock:
            return self._take(series)

    def _take(self, series: str) -> Taken:
        home = self._incoming / series
        job = (home / _JOB).read_text(encoding="utf-8") if (home / _JOB).exists() else None
        known = self._known[series]
        return Taken(series, sorted(home.glob("*.dcm")), known.number, job, not (known.senders or known.broken_off))

    def is_as(self, taken: Taken, others: Sequence[Taken] | None = None) -> bool:
        """Whether nothing came of the series since it was taken, nor, where ``others`` of its study were, of those."""
        study, number = self._known[taken.series].study, self._known[taken.series].number
        if others is None:
            return number == taken.number
        now = {series: known.number for series, known in list(self._known.items()) if known.study == study}
        return now == {one.series: one.number for one in (taken, *others)}

    def note_job(self, taken: Taken, job: str | None) -> None:
        """Keeps where on the server the series is answered, so that it is not handed in twice; or that it is not."""
        with self._lock:
            if not self.is_as(taken):
                return
            place = self._incoming / taken.series / _JOB
            place.unlink(missing_ok=True)
            if job is not None:
                _write(place, [job.encode()])

    def answered(self, taken: Taken, reports: Mapping[str, bytes], others: Sequence[Taken] | None = None) -> bool:
        """Keeps the reports until they are sent, and deletes the series and ``others`` of its study.

        False, and nothing, where more came, as ``is_as`` has it. What is deleted last is the series itself, with the
        job that it was answered by: whenever the process ends, no other series is left to be answered in its place.
        """
        with self._lock:
            if not self.is_as(taken, others):
                return False
            for other in others or ():
                self._remove(other.series)
            for name, content in reports.items():
                final = self._reports / f"{taken.series}-{digest(name)}.dcm"
                aside = self._arriving / final.name
                _write(aside, [content])
                aside.replace(final)
                self._bytes += len(content)
            self._remove(taken.series)
            return True

    def remove(self, taken: Taken) -> None:
        """Deletes a series that cannot be answered, unless more came of it."""
        with self._lock:
            if taken.series in self._known and self.is_as(taken):
                self._remove(taken.series)

    def put_aside(self, taken: Taken) -> None:
        """Keeps a series out of the way, for somebody to look at it; it is deleted when its room is needed."""
        with self._lock:
            if not self.is_as(taken):
                return
            place = self._aside / taken.series
            self._delete(place)
            (self._incoming / taken.series).rename(place)
            os.utime(place)
            del self._known[taken.series]

    def reports(self) -> list[Path]:
        """Those that are not sent yet, the oldest first."""
        return sorted(self._reports.glob("*.dcm"), key=lambda path: path.stat().st_mtime_ns)

    def sent(self, report: Path) -> None:
        """Deletes a report that was sent."""
        with self._lock:
            self._delete(report)

    def put_report_aside(self, report: Path) -> None:
        """Keeps a report that the archive does not take, as ``put_aside`` does a series."""
        with self._lock:
            self._delete(self._aside / report.name)
            report.rename(self._aside / report.name)

    def _make_room(self, size: int) -> None:
        """Deletes the oldest of what was put aside until there is room. Raises ``SpoolFull`` where there is none."""
        while self._bytes + size > self._most:
            put_aside = sorted(self._aside.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            if not put_aside:
                raise SpoolFull(f"the spool holds {self._bytes:,} of {self._most:,} bytes")
            self._delete(put_aside[0])

    def _remove(self, series: str) -> None:
        self._delete(self._incoming / series)
        del self._known[series]

    def _delete(self, place: Path) -> None:
        self._bytes -= _size(place)
        if place.is_dir():
            # Where this is broken off, a part of a series must not be taken for one.
            gone = self._arriving / f"{place.name}.{time.monotonic_ns()}"
            place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def digest(text: str) -> str:
    """What stands for an identifier in names of files and in the log."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def short(name: str) -> str:
    """What a series, or its report, is called in the log."""
    return name[:12]


def _size(place: Path) -> int:
    """Of the DICOM files there, or of the one that it is."""
    files = place.rglob("*.dcm") if place.is_dir() else [place] if place.exists() else []
    return sum(file.stat().st_size for file in files)


def _study(place: Path) -> str:
    """What a series was said to be of; one that an earlier version kept is a study of its own."""
    file = place / _STUDY
    return file.read_text(encoding="utf-8") if file.exists() else place.name


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns


def _flush(folder: Path) -> None:
    """Writes the folder's names to the disk. It may be gone already: then nothing is left to be written."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
