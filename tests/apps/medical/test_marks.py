"""On a GPU the search gives the same marks as on a CPU, and the host waits for the GPU once; tested on a fake GPU."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import shared.suppression
from apps.medical.inference import candidates
from apps.medical.inference.candidates import find_candidates
from apps.medical.inference.grid import cover, resample
from apps.medical.inference.lungs import find_lungs
from apps.medical.inference.marks import Marks, fetch, suppress_marks
from apps.medical.inference.tiles import Tiling
from apps.medical.models.boxes import BoxDecoder
from apps.medical.models.retinanet import RetinaNet3D
from apps.medical.types import ChestInput
from tests.apps.medical.chests import body_with_lungs
from tests.fake_cuda import FakeCudaTensor, fake_cuda

DECODER = BoxDecoder.of_settings(RetinaNet3D())
READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class NothingReadBack(TorchDispatchMode):
    """Rejects operations that make the host wait for a GPU: reading a value, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        has_cuda_input = any(isinstance(argument, FakeCudaTensor) for argument in args)
        by_mask = func.overloadpacket.__name__.startswith("index") and any(
            index is not None and index.dtype == torch.bool for index in (args[1] if isinstance(args[1], list) else ())
        )
        assert not (has_cuda_input and (by_mask or func.overloadpacket.__name__ in READING)), func
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_waits():
    """Counts copies from the fake GPU, and copies to it for which the host waits."""
    counts, move, fetch = Counter(), torch.Tensor.to, torch.Tensor.cpu

    def to(self, *args, **kwargs):
        found = move(self, *args, **kwargs)
        counts["to the GPU"] += found.is_cuda and not self.is_cuda and not kwargs.get("non_blocking")
        return found

    def cpu(self):
        counts["from the GPU"] += self.is_cuda
        return fetch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "cpu", cpu)
        yield counts


class RandomMaps(torch.nn.Module):
    """Logits and codes for the default detector's strides, the same for images of one shape."""

    calls = 0

    def forward(self, image):
        self.calls += 1
        generator = torch.Generator().manual_seed(sum(image.shape))
        cells = [[n // (d * scale) for n, d in zip(image.shape[2:], (4, 4, 2), strict=True)] for scale in (1, 2, 4)]
        maps = [
            torch.randn((len(image), channels, *size), generator=generator) * spread
            for channels, spread in ((3, 2.0), (18, 0.3))
            for size in cells
        ]
        return [
            (output.pin_memory() if image.is_cuda else output).to(image.device, non_blocking=True) for output in maps
        ]


def search(volume, device="cpu", second_look=2, network=None):
    """The marks, with the image of the lungs already on the device, and the number of times the host waited."""
    chest_input = ChestInput(spacing_mm=(2.8, 2.8, 5.0), second_look=second_look)
    lungs, tiling = find_lungs(volume), Tiling(size=(64, 64, 32), margin=(16, 16, 8))
    grid = cover(volume, lungs.low_ijk, lungs.high_ijk, chest_input.spacing_mm, [n * second_look for n in (16, 16, 8)])
    image = resample(volume, grid, chest_input.window_hu, device)
    assert image.device.type == device
    with pytest.MonkeyPatch.context() as patch, counted_waits() as counts:
        patch.setattr(candidates, "resample", lambda *_: image)
        found = find_candidates(
            DECODER, volume, lungs, input=chest_input, tiling=tiling, network=network or RandomMaps(), device=device
        )
    return (found.boxes, found.scores, found.labels), counts


def assert_same(first, second):
    assert len(first[1]) == len(second[1]) > 20
    for mine, theirs in zip(first, second, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("second_look", [1, 2])
def test_the_host_waits_once_for_a_gpu_and_its_marks_equal_a_cpu_s(second_look):
    volume = body_with_lungs()
    expected, _ = search(volume, second_look=second_look)
    with fake_cuda(), NothingReadBack():
        found, waits = search(volume, "cuda", second_look)
    assert_same(found, expected)
    assert waits == {"from the GPU": 1, "to the GPU": 0}


def test_if_suppression_does_not_converge_on_a_gpu_the_host_does_it(monkeypatch):
    volume, on_cpu, on_gpu = body_with_lungs(), RandomMaps(), RandomMaps()
    expected, _ = search(volume, network=on_cpu)
    monkeypatch.setattr(shared.suppression, "_ITERATIONS", 1)
    with fake_cuda():
        found, _ = search(volume, "cuda", network=on_gpu)
    assert_same(found, expected)
    assert on_gpu.calls == 2 * on_cpu.calls


def crowd(seed, count=400, span=80.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 3, generator=generator) * span
    boxes = torch.cat([low, low + 2 + 18 * torch.rand(count, 3, generator=generator)], dim=1)
    scores = torch.rand(count, generator=generator)
    return Marks(boxes, scores, torch.randint(0, 2, (count,), generator=generator), scores > 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_suppression_on_a_device_keeps_the_same_boxes(seed):
    marks = crowd(seed)
    expected = suppress_marks(DECODER, marks, on_host=True)
    found = suppress_marks(DECODER, marks, on_host=False)
    assert found.certain and expected.certain is None and len(found.scores) == DECODER.detections
    assert 30 < len(expected.scores) == found.valid.sum()
    valid_marks = found.at(found.valid.nonzero().squeeze(1))
    assert torch.equal(valid_marks.boxes, expected.boxes) and torch.equal(valid_marks.scores, expected.scores)
    assert torch.equal(valid_marks.labels, expected.labels)


def test_a_chain_of_boxes_longer_than_the_number_of_rounds_falls_back_to_the_host():
    """Each box overlaps only the next, so that whether one is kept depends on all before it."""
    row = torch.arange(60.0) * 6
    low = torch.stack([row, row * 0, row * 0], 1)
    chain = Marks(
        torch.cat([low, low + 10], 1), 1 - row / 1000, torch.zeros(60, dtype=torch.long), torch.ones(60, dtype=bool)
    )
    assert not suppress_marks(DECODER, chain, on_host=False).certain
    attempts = []

    def find(on_host):
        attempts.append(on_host)
        return suppress_marks(DECODER, chain, on_host=on_host)

    found = fetch(find, torch.device("cuda"))
    assert attempts == [False, True] and found.boxes[:, 0].tolist() == row[::2].tolist()


@pytest.mark.parametrize("turned", [0.0, 0.2])
def test_resampling_on_a_gpu_equals_a_cpu_s_without_waiting(turned):
    volume = body_with_lungs()
    lungs = find_lungs(volume)
    grid = cover(volume, lungs.low_ijk, lungs.high_ijk, (2.0, 1.5, 4.0), (16, 16, 8))
    if turned:
        turn = np.array([[np.cos(turned), -np.sin(turned), 0], [np.sin(turned), np.cos(turned), 0], [0, 0, 1]])
        volume = replace(volume, direction=volume.direction @ turn)
    expected = resample(volume, grid, (-1024, 300))
    with fake_cuda(), NothingReadBack():
        found = resample(volume, grid, (-1024, 300), "cuda").cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
