"""Several sweeps in one call on a CPU: same results as alone, with the second stage overlapping the next sweep."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import trivium
from apps.driving.adapters.registry import read_frames
from apps.driving.app import app
from apps.driving.inference.detect import LidarDetector
from apps.driving.inference.second_stage import SecondStage
from apps.driving.predictor import Options
from shared.deploy.opening import open_predictor
from shared.errors import InvalidInputError
from shared.progress import progress_listener
from shared.threads import set_compute_threads

LIMIT_S = 60


@pytest.fixture(scope="module")
def shipped():
    return trivium.load("driving").predictor


@pytest.fixture
def sweeps(synthetic):
    """Five sweeps, each with fewer points than the one before."""
    (frame,) = read_frames([synthetic])
    alone = replace(frame, cameras={}, truth=None)
    return [replace(alone, name=str(n), points_lidar_m=frame.points_lidar_m[n :: n + 1].copy()) for n in range(5)]


@pytest.fixture
def four_threads(monkeypatch):
    """Gives torch four threads, and restores its number of threads after the test."""
    before = torch.get_num_threads()
    monkeypatch.setenv("TRIVIUM_THREADS", "4")
    yield set_compute_threads()
    torch.set_num_threads(before)


def same(first, second):
    boxes, others = first.boxes, second.boxes
    return (
        (first.model, first.remarks, boxes.names) == (second.model, second.remarks, others.names)
        and np.array_equal(boxes.array, others.array)
        and np.array_equal(boxes.scores, others.scores)
    )


def test_the_second_stage_overlaps_with_the_next_sweep_using_half_of_torchs_threads(
    shipped, sweeps, four_threads, monkeypatch
):
    alone = [shipped.predict([frame], Options(score=0.1))[0] for frame in sweeps]
    begun, threads = [threading.Event() for _ in range(6)], []
    begun[5].set()  # there is no sixth
    compute, refined, names = LidarDetector.compute, SecondStage.refine, iter(range(5))

    def noted(self, frame):
        begun[int(frame.name)].set()
        threads.append(torch.get_num_threads())
        return compute(self, frame)

    def beside_the_next(self, found, points):
        assert begun[next(names) + 1].wait(LIMIT_S)
        threads.append(torch.get_num_threads())
        return refined(self, found, points)

    monkeypatch.setattr(LidarDetector, "compute", noted)
    monkeypatch.setattr(SecondStage, "refine", beside_the_next)
    progress = []
    with progress_listener(progress.append):
        together = shipped.predict(sweeps, Options(score=0.1))
    assert threads == [2] * 10 and torch.get_num_threads() == 4
    assert progress[0] == "frame 1 of 5" and len(alone[0].boxes)
    assert all(map(same, together, alone))


def test_the_error_is_that_of_the_first_failing_sweep(shipped, sweeps, four_threads, monkeypatch):
    refined = SecondStage.refine

    def failing(self, found, points):
        if len(points) == len(sweeps[2].points_lidar_m):
            raise InvalidInputError("sweep 2 cannot be corrected")
        return refined(self, found, points)

    monkeypatch.setattr(SecondStage, "refine", failing)
    sweeps[3] = replace(sweeps[3], points_lidar_m=None)
    with pytest.raises(InvalidInputError, match="sweep 2 cannot be corrected"):
        shipped.predict(sweeps)
    with pytest.raises(InvalidInputError, match="3 has no LiDAR sweep"):
        shipped.predict(sweeps[3:] + sweeps[:2])
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("read_", "finish_"))]
    assert torch.get_num_threads() == 4 and not left


@pytest.mark.parametrize(("frames", "threads"), [(1, 4), (5, 1)])
def test_a_single_sweep_or_thread_uses_only_the_callers_thread(
    shipped, sweeps, four_threads, monkeypatch, frames, threads
):
    torch.set_num_threads(threads)
    refined, calls = SecondStage.refine, []

    def noted(self, found, points):
        calls.append((threading.current_thread(), torch.get_num_threads()))
        return refined(self, found, points)

    monkeypatch.setattr(SecondStage, "refine", noted)
    assert len(shipped.predict(sweeps[:frames])) == frames
    assert calls == [(threading.current_thread(), threads)] * frames


def test_only_the_first_sweep_loads_the_programs(sweeps, four_threads, monkeypatch):
    predictor = open_predictor(app, lazy=True, program="torch").predictor
    refined, calls = SecondStage.refine, []

    def noted(self, found, points):
        calls.append(threading.current_thread() is threading.main_thread())
        return refined(self, found, points)

    monkeypatch.setattr(SecondStage, "refine", noted)
    assert len(predictor.predict(sweeps[:3])) == 3
    assert calls == [True, False, False]
