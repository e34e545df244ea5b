"""Jobs when a clock is set, as by NTP after the start, or when the clocks of servers differ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.store import jobs as module
from shared.store.cases import CaseStore
from shared.store.jobs import Job, JobStore, NewJob
from shared.store.records import Origin

HOUR_S = 3600.0


class Clock:
    """The system clock, which can be set, and the monotonic clock, both in seconds."""

    def __init__(self) -> None:
        self.wall_s, self.monotonic_s = 1_800_000_000.0, 1000.0

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake_clock = Clock()
    time_module = SimpleNamespace(
        time=lambda: fake_clock.wall_s,
        time_ns=lambda: round(fake_clock.wall_s * 1e9),
        monotonic=lambda: fake_clock.monotonic_s,
    )
    assert module.time is time
    monkeypatch.setattr(module, "time", time_module)
    return fake_clock


@pytest.fixture
def servers(tmp_path: Path, clock: Clock) -> Iterator[tuple[JobStore, JobStore]]:
    """The job stores of two servers on one store."""
    with closing(CaseStore(tmp_path / "store")) as store:
        yield tuple(JobStore(store.engine, store.folder, name, has_webhook=True) for name in ("one", "two"))  # type: ignore[misc]


def add(jobs: JobStore, folder: Path, group: str | None = None) -> Job:
    (folder / "upload").mkdir()
    job = NewJob(app="echo", origin=Origin("json", group), files=[], options={}, sample="three")
    return jobs.add(job, folder / "upload")


def test_a_running_job_is_not_claimed_when_the_clock_is_set_forward(
    servers: tuple[JobStore, JobStore], clock: Clock, tmp_path: Path
) -> None:
    first_server, second_server = servers
    job = add(first_server, tmp_path)
    assert first_server.claim("echo", 60, 3) is not None and second_server.claim("echo", 60, 3) is None
    clock.wall_s += HOUR_S
    assert second_server.claim("echo", 60, 3) is None
    for _ in range(10):
        clock.passes(30)
        assert first_server.send_heartbeat(job) and second_server.claim("echo", 60, 3) is None


@pytest.mark.parametrize("step_s", [0.0, -HOUR_S, HOUR_S])
def test_a_job_is_lost_a_minute_after_the_last_heartbeat_whatever_the_clock_says(
    servers: tuple[JobStore, JobStore], clock: Clock, tmp_path: Path, step_s: float
) -> None:
    first_server, second_server = servers
    job = add(first_server, tmp_path)
    assert first_server.claim("echo", 60, 3) is not None
    clock.wall_s += step_s
    assert second_server.claim("echo", 60, 3) is None
    clock.passes(59)
    assert second_server.claim("echo", 60, 3) is None
    clock.passes(2)
    claimed = second_server.claim("echo", 60, 3)
    assert (
        claimed is not None and (claimed.id, claimed.attempts) == (job.id, 2) and not first_server.send_heartbeat(job)
    )


def test_a_server_alone_on_the_store_resumes_its_job_at_once_after_a_start_with_an_old_clock(
    servers: tuple[JobStore, JobStore], clock: Clock, tmp_path: Path
) -> None:
    first_server, second_server = servers
    add(first_server, tmp_path)
    assert first_server.claim("echo", 60, 3) is not None
    clock.wall_s -= HOUR_S
    assert second_server.claim("echo", 0, 3) is not None


def test_the_webhook_is_retried_soon_after_the_clock_was_set_back(
    servers: tuple[JobStore, JobStore], clock: Clock, tmp_path: Path
) -> None:
    first_server, _ = servers
    job = add(first_server, tmp_path)
    assert first_server.claim("echo", 60, 3) is not None and first_server.mark_done(job, "c" * 32)
    assert (
        first_server.claim_notification(15, 86_400) is not None and first_server.claim_notification(15, 86_400) is None
    )
    clock.wall_s -= 3 * HOUR_S
    notification = first_server.claim_notification(15, 86_400)
    assert notification is not None and notification[0].id == job.id and not notification[1]
    assert first_server.claim_notification(15, 86_400) is None, (
        "the next attempt is after fifteen seconds, not at every poll"
    )
    clock.passes(16)
    assert first_server.claim_notification(15, 86_400) is not None


def test_a_group_does_not_get_all_servers_while_another_waits(
    servers: tuple[JobStore, JobStore], clock: Clock, tmp_path: Path
) -> None:
    first_server, second_server = servers
    submitted = []
    for group in ("desk", "desk", "desk", "treasury"):
        submitted.append(add(first_server, tmp_path, group).id)
        clock.passes(1)

    def claimed(jobs: JobStore) -> str | None:
        job = jobs.claim("echo", 60, 3)
        return None if job is None else job.id

    assert claimed(first_server) == submitted[0] and claimed(second_server) == submitted[3], (
        "not the second one of the desk"
    )
    assert first_server.mark_done(first_server.get("echo", submitted[0]), "c" * 32)  # type: ignore[arg-type]
    assert claimed(first_server) == submitted[1]
