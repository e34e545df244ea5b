"""A captured CUDA graph: the network's kernels of one shape, launched at once.

Where a network's layers are small, a GPU waits longer for the host to launch its kernels than it computes. A graph is
captured for each shape of the inputs, on its first call; the inputs are copied into the tensors that it was captured
with. The weights go to the device in the format that is computed in, convolutions with channels last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from shared.deploy.programs.program import Compute, Format, Tensors
from shared.deploy.programs.torch_eager import autocast_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from shared.app import DenseNetwork

_MAX_GRAPHS = 8
"""Each holds the memory of its network's activations."""
_MAX_SEEN = 64
"""Shapes that came are remembered, so many."""


def captured(dense: DenseNetwork, format: Format, device: str) -> Compute:
    """Computes by CUDA graphs, in fp32, bf16 or fp16."""
    return graphed(dense, autocast_dtype(format), device, capture)


def graphed(
    dense: DenseNetwork,
    dtype: torch.dtype | None,
    device: str,
    capture: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]],
    made: Callable[[nn.Module], Callable[..., Any]] = lambda module: module,
) -> Compute:
    """Computes by graphs that ``capture`` makes, the ``_MAX_GRAPHS`` shapes that were used last.

    A shape is captured when it comes again: capturing takes as long as several calls, and many shapes come once. It
    takes the place of a graph that was not used since; where more shapes than that take turns, the others are computed
    without. What is captured are the calls of what ``made`` makes of the network, by default the network itself.
    """
    import torch

    module = made(prepared(dense.module, dtype, device))
    names, outputs = list(dense.inputs), list(dense.outputs)
    graphs: OrderedDict[Any, tuple[list[Tensor], list[Tensor], Callable[[], None]]] = OrderedDict()
    # The numbers of the calls at which each shape came last without a graph, and at which its graph was used last.
    seen: OrderedDict[Any, int] = OrderedDict()
    used: dict[Any, int] = {}
    calls = count()

    def gets_a_graph(shapes: Any) -> bool:
        if shapes not in seen:
            return False
        return len(graphs) < _MAX_GRAPHS or used[next(iter(graphs))] < seen[shapes]

    def named(found: Sequence[Tensor]) -> dict[str, Tensor]:
        # Copies, since the next replay writes over what this one gave.
        return {
            name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for name, value in zip(outputs, found, strict=True)
        }

    def compute(inputs: Tensors) -> dict[str, Tensor]:
        shapes = tuple(tuple(inputs[name].shape) for name in names)
        with torch.no_grad():
            number = next(calls)
            if shapes not in graphs and not gets_a_graph(shapes):
                seen[shapes] = number
                seen.move_to_end(shapes)
                if len(seen) > _MAX_SEEN:
                    seen.popitem(last=False)
                return named(_listed(module(*_held([inputs[name] for name in names], dtype, device))))
            if shapes not in graphs:
                if len(graphs) == _MAX_GRAPHS:
                    del used[graphs.popitem(last=False)[0]]
                graphs[shapes] = _captured(module, [inputs[name] for name in names], dtype, device, capture)
            used[shapes] = number
            graphs.move_to_end(shapes)
            held, found, replay = graphs[shapes]
            for tensor, name in zip(held, names, strict=True):
                tensor.copy_(inputs[name], non_blocking=True)
            replay()
            return named(found)

    return compute


def prepared(module: nn.Module, dtype: torch.dtype | None, device: str) -> nn.Module:
    """A copy of the network on ``device`` in ``dtype``, convolutions with channels last."""
    import copy

    import torch
    from torch import nn

    ready = copy.deepcopy(module).to(device=torch.device(device), dtype=dtype).eval()
    if any(isinstance(layer, nn.Conv3d) for layer in ready.modules()):
        return ready.to(memory_format=torch.channels_last_3d)
    if any(isinstance(layer, nn.Conv2d) for layer in ready.modules()):
        return ready.to(memory_format=torch.channels_last)
    return ready


def _captured(
    module: Callable[..., Any],
    inputs: list[Tensor],
    dtype: torch.dtype | None,
    device: str,
    capture: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]],
) -> tuple[list[Tensor], list[Tensor], Callable[[], None]]:
    held = _held(inputs, dtype, device)
    found, replay = capture(lambda: module(*held))
    return held, _listed(found), replay


def _held(inputs: list[Tensor], dtype: torch.dtype | None, device: str) -> list[Tensor]:
    """Copies of the inputs on the device, in the network's type."""
    import torch

    place = torch.device(device)
    return [value.to(device=place, dtype=dtype if value.is_floating_point() else None, copy=True) for value in inputs]


def _listed(found: Any) -> list[Tensor]:
    import torch

    return [found] if isinstance(found, torch.Tensor) else list(found)


def capture(call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Captures ``call`` in a CUDA graph; returns what it gave, which each replay fills anew, and the replay."""
    import torch

    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # cuDNN chooses its algorithms before, which cannot be captured
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other threads may decode and upload meanwhile, which would break a capture of all threads' calls.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = call()
    return found, graph.replay
