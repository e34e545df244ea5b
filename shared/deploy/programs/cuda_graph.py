"""CUDA graphs: the network's kernels for one input shape, captured once and launched together.

If a network's layers are small, the GPU spends more time waiting for the host to launch kernels than computing. A graph
is captured for each input shape that comes again; calls copy their inputs into the tensors that the graph was captured
with. The weights are stored on the device in the program's number format, convolutions with channels last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from shared.deploy.programs.program import Compute, Format, Tensors
from shared.deploy.programs.torch_eager import autocast_dtype, name_outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from shared.app import DenseNetwork

_MAX_GRAPHS = 8
"""The maximum number of graphs. Each holds the memory of the network's activations."""
_MAX_SEEN_SHAPES = 64
"""The maximum number of shapes without a graph that are remembered."""


def load_cuda_graph(dense: DenseNetwork, format: Format, device: str) -> Compute:
    """Returns a computation by CUDA graphs in fp32, bf16 or fp16."""
    return graph_compute(dense, autocast_dtype(format), device, capture)


def graph_compute(
    dense: DenseNetwork,
    dtype: torch.dtype | None,
    device: str,
    capture: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]],
    wrap: Callable[[nn.Module], Callable[..., Any]] = lambda module: module,
) -> Compute:
    """Returns a computation by graphs made by ``capture``, for the ``_MAX_GRAPHS`` most recently used input shapes.

    A shape is captured when it comes a second time: capturing takes as long as several calls, and many shapes come only
    once. If there are ``_MAX_GRAPHS`` graphs already, the new graph replaces the least recently used one, but only if
    that was not used since the shape came last; otherwise the shape is computed without a graph. ``wrap`` returns the
    callable that is captured; by default it returns the network itself.
    """
    import torch

    module = wrap(copy_for_inference(dense.module, dtype, device))
    names, outputs = list(dense.inputs), list(dense.outputs)
    graphs: OrderedDict[Any, tuple[list[Tensor], Any, Callable[[], None]]] = OrderedDict()
    # For each shape, the number of the last call without a graph, and of the last call with its graph.
    last_uncaptured: OrderedDict[Any, int] = OrderedDict()
    last_used: dict[Any, int] = {}
    calls = count()

    def may_capture(shapes: Any) -> bool:
        if shapes not in last_uncaptured:
            return False
        return len(graphs) < _MAX_GRAPHS or last_used[next(iter(graphs))] < last_uncaptured[shapes]

    def copy_outputs(results: Any) -> dict[str, Tensor]:
        # Copies, because the next replay overwrites these tensors.
        return {
            name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for name, value in name_outputs(outputs, results).items()
        }

    def compute(inputs: Tensors) -> dict[str, Tensor]:
        shapes = tuple(tuple(inputs[name].shape) for name in names)
        with torch.no_grad():
            call_number = next(calls)
            if shapes not in graphs and not may_capture(shapes):
                last_uncaptured[shapes] = call_number
                last_uncaptured.move_to_end(shapes)
                if len(last_uncaptured) > _MAX_SEEN_SHAPES:
                    last_uncaptured.popitem(last=False)
                return copy_outputs(module(*_copy_to_device([inputs[name] for name in names], dtype, device)))
            if shapes not in graphs:
                if len(graphs) == _MAX_GRAPHS:
                    del last_used[graphs.popitem(last=False)[0]]
                graphs[shapes] = _capture_shape(module, [inputs[name] for name in names], dtype, device, capture)
            last_used[shapes] = call_number
            graphs.move_to_end(shapes)
            graph_inputs, results, replay = graphs[shapes]
            for tensor, name in zip(graph_inputs, names, strict=True):
                tensor.copy_(inputs[name], non_blocking=True)
            replay()
            return copy_outputs(results)

    return compute


def copy_for_inference(module: nn.Module, dtype: torch.dtype | None, device: str) -> nn.Module:
    """Returns a copy of the network on ``device`` in ``dtype``, in evaluation mode, with channels-last convolutions."""
    import copy

    import torch
    from torch import nn

    copied = copy.deepcopy(module).to(device=torch.device(device), dtype=dtype).eval()
    if any(isinstance(layer, nn.Conv3d) for layer in copied.modules()):
        return copied.to(memory_format=torch.channels_last_3d)
    if any(isinstance(layer, nn.Conv2d) for layer in copied.modules()):
        return copied.to(memory_format=torch.channels_last)
    return copied


def _capture_shape(
    module: Callable[..., Any],
    inputs: list[Tensor],
    dtype: torch.dtype | None,
    device: str,
    capture: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]],
) -> tuple[list[Tensor], Any, Callable[[], None]]:
    graph_inputs = _copy_to_device(inputs, dtype, device)
    return graph_inputs, *capture(lambda: module(*graph_inputs))


def _copy_to_device(inputs: list[Tensor], dtype: torch.dtype | None, device: str) -> list[Tensor]:
    """Copies the inputs to the device, floating-point inputs in the network's type."""
    import torch

    place = torch.device(device)
    return [value.to(device=place, dtype=dtype if value.is_floating_point() else None, copy=True) for value in inputs]


def capture(call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Captures ``call`` in a CUDA graph. Returns its outputs, which each replay overwrites, and the replay function."""
    import torch

    side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):  # warm up: cuDNN chooses its algorithms, which cannot be captured
            call()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may decode and upload at the same time, which would break a capture of the calls of all threads.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = call()
    return outputs, graph.replay
