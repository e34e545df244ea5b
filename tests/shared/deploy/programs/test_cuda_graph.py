"""CUDA graphs, captured for each shape; without a GPU the capture is replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from shared.deploy.programs.cuda_graph import capture, graph_compute
from shared.deploy.programs.inductor import load_compiled
from shared.deploy.programs.torch_eager import load_eager
from tests.fake_cuda import fake_cuda
from tests.shared.deploy.programs.edges import network


def test_a_graph_is_captured_for_a_repeated_shape_and_replayed_on_new_inputs() -> None:
    """Without a GPU, a replay repeats the call and copies into the first outputs; everything else is the same."""
    captures = []

    def capture(call: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        found = call()
        captures.append(found)

        def replay() -> None:
            for output, new in zip(found, call(), strict=True):
                output.copy_(new)

        return found, replay

    compute, expected = graph_compute(network(), None, "cpu", capture), load_eager(network())
    answers = []
    for number, width in enumerate((8, 16, 8, 24, 16, 8, 16)):
        generator = torch.Generator().manual_seed(number)
        inputs = {"image": torch.rand(2, 1, 8, width, generator=generator), "gain": torch.tensor([1.0, 2.0 + number])}
        answers.append((compute(inputs), expected(inputs)))
    assert len(captures) == 2
    for found, eager in answers:  # later calls do not overwrite an earlier output
        for name in ("edges", "mean"):
            torch.testing.assert_close(found[name], eager[name])


def test_alternating_between_more_shapes_than_graphs_does_not_recapture() -> None:
    captures: list[int] = []

    def calling(call: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        captures.append(1)
        return call(), lambda: None

    compute, expected = graph_compute(network(), None, "cpu", calling), load_eager(network())
    gain = torch.tensor([1.0, 2.0])
    for _ in range(4):
        for width in range(8, 8 * 12, 8):
            inputs = {"image": torch.ones(2, 1, 8, width), "gain": gain}
            torch.testing.assert_close(compute(inputs), expected(inputs))
    assert len(captures) == 8
    for _ in range(3):  # a shape that recurs after the oldest graph was last used replaces it
        compute({"image": torch.ones(2, 1, 8, 200), "gain": gain})
    assert len(captures) == 9


def test_on_a_gpu_each_shape_is_compiled_and_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a compiler that changes nothing and a capture that repeats the call; everything else is as on a GPU."""
    settings: list[dict[str, bool]] = []
    captures: list[int] = []

    def compile(module: nn.Module, **options: bool) -> nn.Module:
        settings.append(options)
        return module

    def calling(call: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        captures.append(1)
        return call(), lambda: None

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("shared.deploy.programs.inductor.capture", calling)
    inputs = network().inputs
    expected = load_eager(network())(inputs)
    with fake_cuda():
        compute = load_compiled(network(), "fp32", "cuda")
        found = [compute({name: value.to("cuda") for name, value in inputs.items()}) for _ in range(3)]
        assert all(value.is_cuda for value in found[-1].values())
        answers = [{name: value.cpu() for name, value in outputs.items()} for outputs in found]
    assert settings == [{"dynamic": False}] and len(captures) == 1
    for answer in answers:
        torch.testing.assert_close(answer, expected)


def test_a_capture_ignores_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, a CUDA capture fails if another thread allocates or uploads during it, as readers do."""
    settings: list[dict[str, str]] = []

    class Stands(nullcontext[None]):
        def wait_stream(self, other: object) -> None: ...

        def replay(self) -> None: ...

    def graph(made: object, **options: str) -> Stands:
        settings.append(options)
        return Stands()

    for name in ("Stream", "current_stream", "stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: Stands())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    calls: list[int] = []
    found, _ = capture(lambda: calls.append(1) or len(calls))  # type: ignore[func-returns-value]
    assert found == 4 and settings == [{"capture_error_mode": "thread_local"}]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_a_graph_is_captured_during_uploads_of_another_thread() -> None:
    stop = threading.Event()

    def upload() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():
                torch.rand(1 << 16).pin_memory().to("cuda", non_blocking=True)

    uploading_thread = threading.Thread(target=upload)
    uploading_thread.start()
    try:
        compute, expected = graph_compute(network(), None, "cuda", capture), load_eager(network(), device="cuda")
        for width in (8, 8, 16, 16, 8):
            inputs = {"image": torch.rand(2, 1, 8, width).cuda(), "gain": torch.tensor([1.0, 2.0]).cuda()}
            torch.testing.assert_close(compute(inputs), expected(inputs))
    finally:
        stop.set()
        uploading_thread.join()
