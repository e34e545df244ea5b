"""Graphs that are captured on a GPU for each shape, with what stands in for one where there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from shared.deploy.programs.cuda_graph import capture, graphed
from shared.deploy.programs.inductor import compiled
from shared.deploy.programs.torch_eager import eager
from tests.fake_cuda import fake_cuda
from tests.shared.deploy.programs.edges import network


def test_a_graph_is_captured_for_each_shape_that_comes_again_and_replayed_on_what_is_new() -> None:
    """Without a GPU the capture is a call that is repeated into the tensors of the first; the rest is the same."""
    captures = []

    def capture(call: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        found = call()
        captures.append(found)

        def replay() -> None:
            for kept, new in zip(found, call(), strict=True):
                kept.copy_(new)

        return found, replay

    compute, expected = graphed(network(), None, "cpu", capture), eager(network())
    answers = []
    for number, width in enumerate((8, 16, 8, 24, 16, 8, 16)):
        generator = torch.Generator().manual_seed(number)
        inputs = {"image": torch.rand(2, 1, 8, width, generator=generator), "gain": torch.tensor([1.0, 2.0 + number])}
        answers.append((compute(inputs), expected(inputs)))
    assert len(captures) == 2
    for found, wanted in answers:  # an answer is not written over by those after it
        for name in ("edges", "mean"):
            torch.testing.assert_close(found[name], wanted[name])


def test_more_shapes_in_turns_than_there_are_graphs_are_not_captured_again_and_again() -> None:
    captures: list[int] = []

    def calling(call: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        captures.append(1)
        return call(), lambda: None

    compute, expected = graphed(network(), None, "cpu", calling), eager(network())
    gain = torch.tensor([1.0, 2.0])
    for _ in range(4):
        for width in range(8, 8 * 12, 8):
            inputs = {"image": torch.ones(2, 1, 8, width), "gain": gain}
            torch.testing.assert_close(compute(inputs), expected(inputs))
    assert len(captures) == 8
    for _ in range(3):  # a shape that came since the oldest graph was used takes its place
        compute({"image": torch.ones(2, 1, 8, 200), "gain": gain})
    assert len(captures) == 9


def test_on_a_gpu_each_shape_is_compiled_for_itself_and_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that changes nothing, and a capture that calls again: the rest is as on a GPU."""
    settings: list[dict[str, bool]] = []
    captures: list[int] = []

    def compile(module: nn.Module, **given: bool) -> nn.Module:
        settings.append(given)
        return module

    def calling(call: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        captures.append(1)
        return call(), lambda: None

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("shared.deploy.programs.inductor.capture", calling)
    inputs = network().inputs
    expected = eager(network())(inputs)
    with fake_cuda():
        compute = compiled(network(), "fp32", "cuda")
        found = [compute({name: value.to("cuda") for name, value in inputs.items()}) for _ in range(3)]
        assert all(value.is_cuda for value in found[-1].values())
        answers = [{name: value.cpu() for name, value in one.items()} for one in found]
    assert settings == [{"dynamic": False}] and len(captures) == 1
    for answer in answers:
        torch.testing.assert_close(answer, expected)


def test_a_graph_is_captured_whatever_other_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default CUDA ends a capture with an error where any thread allocates or uploads meanwhile, as readers do."""
    settings: list[dict[str, str]] = []

    class Stands(nullcontext[None]):
        def wait_stream(self, other: object) -> None: ...

        def replay(self) -> None: ...

    def graph(made: object, **given: str) -> Stands:
        settings.append(given)
        return Stands()

    for name in ("Stream", "current_stream", "stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: Stands())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    calls: list[int] = []
    found, _ = capture(lambda: calls.append(1) or len(calls))  # type: ignore[func-returns-value]
    assert found == 4 and settings == [{"capture_error_mode": "thread_local"}]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_a_graph_is_captured_beside_another_thread_s_uploads() -> None:
    stop = threading.Event()

    def upload() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():
                torch.rand(1 << 16).pin_memory().to("cuda", non_blocking=True)

    other = threading.Thread(target=upload)
    other.start()
    try:
        compute, expected = graphed(network(), None, "cuda", capture), eager(network(), device="cuda")
        for width in (8, 8, 16, 16, 8):
            inputs = {"image": torch.rand(2, 1, 8, width).cuda(), "gain": torch.tensor([1.0, 2.0]).cuda()}
            torch.testing.assert_close(compute(inputs), expected(inputs))
    finally:
        stop.set()
        other.join()
