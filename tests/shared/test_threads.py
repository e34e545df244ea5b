"""One setting limits the number of threads, and workers share them."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shared.errors import InvalidInputError
from shared.serve.runtime.models import network_workers
from shared.serve.settings import Settings
from shared.threads import compute_threads, torch_threads_divided, usable_cores


def test_workers_share_the_threads_of_the_process(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert compute_threads() == 6 and compute_threads(4) == 1 and compute_threads(2) == 3
    monkeypatch.setenv("TRIVIUM_THREADS", "2")
    assert compute_threads() == 2 and compute_threads(8) == 1
    monkeypatch.delenv("TRIVIUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert compute_threads() == usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("TRIVIUM_THREADS", "many")
    with pytest.raises(InvalidInputError, match="TRIVIUM_THREADS is 'many'"):
        compute_threads()


def test_the_workers_of_a_model_divide_the_threads_among_them(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIVIUM_THREADS", "6")
    workers = network_workers(tmp_path, Settings(workers=3))
    assert [worker._spec.threads for worker in workers] == [2, 2, 2]


def test_torch_s_threads_are_divided_in_the_calling_thread_and_in_new_ones():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with pytest.raises(KeyError), torch_threads_divided(2), ThreadPoolExecutor(1) as pool:
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
            raise KeyError
        assert torch.get_num_threads() == 6
        with torch_threads_divided(8):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
