"""The DDP communication hook: sums gradients over a route, optionally compressed, during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket

from shared.comms.allreduce import Flat, Ring, Route, all_peers, mesh_peers
from shared.comms.compression import (
    Compressor,
    HalfPrecision,
    NoCompression,
    Part,
    PowerSGD,
    refuse_inexact_sum,
)
from shared.comms.group import Group
from shared.comms.hierarchical import Hierarchical, Stages


class GradientExchange:
    """Averages DDP's buckets over the processes, in the order in which DDP fills them.

    The backend's all-reduce runs on the backend's threads. Routes and compressions that send several messages run on
    threads of this process, one bucket after the other, so that all processes send in the same order. ``whole`` is
    whether the last bucket has arrived since it was set to False.
    """

    def __init__(
        self, group: Group, route: Route | Hierarchical, compressor: Compressor, names: Mapping[int, str]
    ) -> None:
        self.group, self.route, self.compressor, self._names = group, route, compressor, names
        self.whole = self.rehearsing = False
        self._no_compression = NoCompression()
        self._direct = isinstance(route, Flat) and type(compressor) is NoCompression
        self._stages = Stages(0 if self._direct or isinstance(route, Hierarchical) else 1, group.device)

    def __call__(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Starts to average a bucket. Returns a future of the averaged flat gradient."""
        flat, last = bucket.buffer(), bucket.is_last()
        self.whole = last
        self.group.log.gradient_ready()
        # Divide first, as DDP does: a sum in fp16 may overflow.
        flat.div_(self.group.world)
        if self._direct:
            return self._backend_all_reduce(flat)
        parts = self._parts_of(bucket, flat)
        future: torch.futures.Future[Tensor] = torch.futures.Future(
            devices=[self.group.device] if self.group.device.type == "cuda" else None
        )
        compressor = self._no_compression if self.rehearsing else self.compressor

        def done(error: BaseException | None) -> None:
            if error is not None:
                return future.set_exception(error)  # type: ignore[arg-type]
            if last and not self.rehearsing:
                self.compressor.next_step()
            future.set_result(flat)

        if isinstance(self.route, Hierarchical):
            self.route.start(flat, parts, compressor, done)
        else:
            route, world = self.route, self.group.world
            self._stages.submit([lambda: compressor.sum(flat, parts, route, world)], done)
        return future

    def _backend_all_reduce(self, flat: Tensor) -> torch.futures.Future[Tensor]:
        assert isinstance(self.route, Flat)
        log, peers = self.group.log, self.route.peers
        entered = log.begin("all_reduce", peers.name, flat.nbytes)
        work = dist.all_reduce(flat, group=peers.group, async_op=True)

        def ended(future: torch.futures.Future[Any]) -> Tensor:
            result: Tensor = future.value()[0]
            log.end(entered)
            return result

        assert work is not None
        return work.get_future().then(ended)

    def _parts_of(self, bucket: GradBucket, flat: Tensor) -> list[Part]:
        """The name, offset and shape of each parameter's gradient in the bucket."""
        start = flat.storage_offset()
        return [
            Part(self._names[id(parameter)], int(gradient.storage_offset() - start), tuple(gradient.shape))
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
        ]


def gradient_exchange(
    group: Group,
    model: nn.Module,
    *,
    route: str,
    compression: str,
    powersgd_rank: int = 4,
    powersgd_start: int = 100,
    shard: int | None = None,
) -> GradientExchange:
    """The exchange for a model's gradients. Every process must call it with the same arguments.

    Route ``auto`` is ``hierarchical`` on CPUs of several hosts with several processes each, and ``flat``, the backend's
    all-reduce, otherwise: NCCL chooses among rings, trees and switches itself.
    """
    compressors: dict[str, Callable[[], Compressor]] = {
        "none": NoCompression,
        "fp16": lambda: HalfPrecision(torch.float16),
        "bf16": lambda: HalfPrecision(torch.bfloat16),
        "powersgd": lambda: PowerSGD(powersgd_rank, powersgd_start),
    }
    if route == "auto":
        equal_nodes = len({len(ranks) for ranks in group.nodes}) == 1
        several = len(group.nodes) > 1 and len(group.nodes[0]) > 1
        route = "hierarchical" if equal_nodes and several and group.device.type == "cpu" else "flat"
    chosen: Route | Hierarchical
    if route == "hierarchical":
        inside, across, back = mesh_peers(group, shard)
        refuse_inexact_sum(compression, across.size)
        chosen = Hierarchical(inside, across, back, device=group.device)
    else:
        if route == "ring" or group.device.type == "cpu":  # gloo sums in a ring, NCCL over many processes in trees
            refuse_inexact_sum(compression, group.world)
        chosen = Ring(all_peers(group)) if route == "ring" else Flat(all_peers(group))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return GradientExchange(group, chosen, compressors[compression](), names)


def refuse_different_models(group: Group, model: nn.Module) -> None:
    """Raises ``InvalidInputError`` on every process if names, shapes or types of the parameters differ between them."""
    facts = {
        f"the parameter {name}": f"{tuple(parameter.shape)} {str(parameter.dtype).removeprefix('torch.')}"
        f"{'' if parameter.requires_grad else ' without a gradient'}"
        for name, parameter in model.named_parameters()
    }
    group.refuse_differences({"the number of parameters": len(facts), **facts})


def rehearse(wrapped: nn.parallel.DistributedDataParallel, exchange: GradientExchange) -> None:
    """Runs one backward pass with zero gradients through DDP before the first step.

    DDP puts all gradients of its first backward pass into one bucket and then splits them into buckets by the order in
    which they arrived. Without a rehearsal, the first step after a start would sum in a different order than the same
    step of an uninterrupted run. After it, the buckets are the same in every step, and connections are open.
    """
    exchange.rehearsing = True
    try:
        zero_backward(wrapped)
        for parameter in wrapped.module.parameters():
            parameter.grad = None
    finally:
        exchange.rehearsing = exchange.whole = False


def zero_backward(wrapped: nn.parallel.DistributedDataParallel) -> None:
    """A backward pass with zero gradients: it computes almost nothing, but exchanges the gradients as usual."""
    model = wrapped.module
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compiled_call = model.__dict__.pop("_compiled_call_impl", None)
    try:
        model.forward = lambda: torch.stack([parameter.sum() * 0 for parameter in parameters]).sum()
        wrapped().backward()
    finally:
        del model.forward
        if compiled_call is not None:
            model.__dict__["_compiled_call_impl"] = compiled_call
