"""The spool on a full disk: no file is left that was not written whole, and nothing is forgotten."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apps.medical.adapters.dicom_spool import Spool, digest

JOB = "/api/medical/jobs/1"


class Association:
    is_released = True

    def is_alive(self) -> bool:
        return False


@contextmanager
def disk_full(free_bytes: int) -> Iterator[None]:
    """Writing more than ``free_bytes`` to a file fails after those bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        with pytest.raises(OSError):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def store(spool: Spool) -> str:
    spool.store("1.2", "1.2.3", "1.2.3.4", [b"image"], Association())
    return digest("1.2/1.2.3")


def test_a_job_that_cannot_be_written_is_remembered_until_a_restart(tmp_path):
    spool = Spool(tmp_path, 1000, 0)
    series = store(spool)
    with disk_full(8):
        spool.set_job(spool.snapshot(series), JOB)
    assert spool.snapshot(series).job == JOB, "the series is not submitted again"
    assert Spool(tmp_path, 1000, 0).snapshot(series).job is None
    spool.set_job(spool.snapshot(series), JOB)
    assert Spool(tmp_path, 1000, 0).snapshot(series).job == JOB
    store(spool)
    assert spool.snapshot(series).job is None, "a series with new images is submitted again"


def test_a_study_that_cannot_be_written_is_written_with_the_next_image(tmp_path):
    spool = Spool(tmp_path, 1000, 0, whole_studies=True)
    with disk_full(8):
        store(spool)
    series = store(spool)
    assert (tmp_path / "series" / series / "study").read_text() == digest("1.2")


def test_a_report_that_cannot_be_written_leaves_the_series_and_no_part_of_itself(tmp_path):
    spool = Spool(tmp_path, 1000, 0)
    series = store(spool)
    with disk_full(8):
        spool.replace_by_reports(spool.snapshot(series), {"findings.sr.dcm": b"a longer report"})
    assert len(spool.snapshot(series).files) == 1 and not list((tmp_path / "arriving").iterdir())
