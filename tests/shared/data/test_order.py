from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.data.loader import Loader
from shared.data.order import Key, Permutation, evenly_spaced, samples_of_rank


@given(length=st.integers(1, 200), batch=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_an_epoch_contains_no_sample_twice(length, batch, seed):
    order = Permutation(seed=seed, length=length, batch=batch)
    indices = np.concatenate([order.indices(step) for step in range(order.steps_per_epoch)])
    assert len(set(indices.tolist())) == len(indices)
    assert len(indices) == (order.steps_per_epoch * batch if length >= batch else length)


def test_epochs_differ_and_are_reproducible():
    order = Permutation(seed=1, length=100, batch=10)
    first, second = order.indices(0), order.indices(10)
    assert first.tolist() != second.tolist()
    assert order.indices(10).tolist() == second.tolist()
    assert Permutation(seed=2, length=100, batch=10).indices(0).tolist() != first.tolist()


@given(length=st.integers(1, 100), world=st.integers(1, 9))
def test_processes_share_a_batch_without_overlap(length, world):
    indices = np.arange(length)
    parts = [samples_of_rank(indices, rank, world) for rank in range(world)]
    assert np.concatenate(parts).tolist() == indices.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_noise_depends_on_seed_epoch_and_sample():
    draw = Key(seed=1, epoch=2).generator(3).random(4)
    assert Key(seed=1, epoch=2).generator(3).random(4).tolist() == draw.tolist()
    for generator in (
        Key(seed=0, epoch=2).generator(3),
        Key(seed=1, epoch=1).generator(3),
        Key(seed=1, epoch=2).generator(4),
    ):
        assert generator.random(4).tolist() != draw.tolist()


class Numbers:
    def __len__(self):
        return 23

    def batch(self, indices, key):
        return {"index": torch.from_numpy(indices.copy()), "epoch": torch.full((len(indices),), key.epoch)}


@pytest.mark.parametrize("handover_s", [0.0, 60.0], ids=["ahead", "where they are needed"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_loader_keeps_the_order(threads, handover_s):
    order = Permutation(seed=0, length=23, batch=5)
    loader = Loader(Numbers(), order, device=torch.device("cpu"), threads=threads, handover_s=handover_s)
    steps = list(loader.steps(2, 9))
    assert [step.number for step in steps] == list(range(2, 9))
    for step in steps:
        (part,) = step.parts
        assert part.weight == 1 and part.batch["index"].tolist() == order.indices(step.number).tolist()
        assert part.batch["epoch"].tolist() == [step.number // 4] * 5


@pytest.mark.parametrize("ends", ["at the end", "early"])
def test_the_switch_interval_is_short_only_while_threads_load_batches(ends):
    before = sys.getswitchinterval()
    loader = Loader(Numbers(), Permutation(seed=0, length=50, batch=5), device=torch.device("cpu"), handover_s=0)
    steps, intervals_s = loader.steps(0, 9), []
    for _ in islice(steps, None if ends == "at the end" else 6):
        intervals_s.append(sys.getswitchinterval())
    steps.close()
    # The first three batches are loaded in the training thread.
    assert intervals_s[:3] == [before] * 3 and all(found <= 1e-3 for found in intervals_s[3:]) and len(intervals_s) > 3
    assert sys.getswitchinterval() == before


def test_the_parts_of_a_batch_are_weighted_by_their_size():
    order = Permutation(seed=0, length=23, batch=5)
    steps = [next(Loader(Numbers(), order, device=torch.device("cpu"), rank=r, world=3).steps(0, 1)) for r in range(3)]
    parts = [part for step in steps for part in step.parts]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    assert [len(part.batch["index"]) for part in parts] == [2, 2, 1]


def test_an_error_in_the_data_set_reaches_the_caller():
    class Broken(Numbers):
        def batch(self, indices, key):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(Loader(Broken(), Permutation(seed=0, length=23, batch=5), device=torch.device("cpu")).steps(0, 3))


@pytest.mark.parametrize(("length", "batch"), [(0, 1), (3, 0)])
def test_an_empty_order_is_an_error(length, batch):
    with pytest.raises(ValueError, match="sample"):
        Permutation(seed=0, length=length, batch=batch)


@pytest.mark.parametrize(
    ("length", "limit", "indices"),
    [(10, 4, [0, 3, 6, 9]), (3, 10, [0, 1, 2]), (3, None, [0, 1, 2]), (5, 1, [0]), (0, 3, [])],
)
def test_evenly_spaced_samples_reach_from_the_first_to_the_last(length, limit, indices):
    assert evenly_spaced(length, limit) == indices
