"""A model whose parameters, gradients and optimizer state are spread over processes: torch's FSDP2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from shared.comms.allreduce import Flat, Peers, all_peers, mesh_peers, mesh_ranks
from shared.comms.collective_log import CollectiveLog
from shared.comms.compression import Compressor, HalfPrecision, NoCompression
from shared.comms.group import Group
from shared.comms.hooks import refuse_different_models
from shared.comms.sharded_state import local_part
from shared.errors import InvalidInputError


class ShardedStrategy:
    """Every process holds a part of each parameter, and the whole of a layer only while that computes.

    ``shard`` neighbouring processes hold one copy of the model among them (FSDP); where there are several such groups,
    each holds a copy (HSDP), and gradients are also summed across them, by ``compression`` between groups alone.
    Elements of lists and sequences of layers with at least ``unit_mb`` MB of parameters are gathered one by one, all
    other parameters together; where a step may leave parameters out, all are gathered together.

    FSDP2 does not take parameters without dimensions: each process has those whole, and ``clip`` averages their
    gradients.
    """

    def __init__(
        self, group: Group, *, shard: int | None, unit_mb: float, compression: str, find_unused_parameters: bool
    ) -> None:
        self._group, self._shard = group, group.world if shard is None else shard
        self._unit_bytes, self._find_unused = unit_mb * 2**20, find_unused_parameters
        halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self._compression = compression
        self._compressor: Compressor = HalfPrecision(halves[compression]) if compression in halves else NoCompression()
        self._root: Any = None
        self._units: list[FSDPModule] = []
        self._sharded: list[nn.Parameter] = []
        self._whole: list[nn.Parameter] = []
        self._near: Peers | None = None
        self._all: Peers | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        group = self._group
        self._refuse_impossible(model)
        refuse_different_models(group, model)
        group.copy_from_leader([*(parameter.data for parameter in model.parameters()), *model.buffers()])
        self._whole = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        for parameter in model.parameters():
            # FSDP2 takes no other memory format, such as channels last; the values are the same.
            parameter.data = parameter.data.contiguous()
        near, far, _ = mesh_peers(group, self._shard)
        self._near, self._all = near, all_peers(group)
        mesh = dist.device_mesh.DeviceMesh.from_group(near.group, group.device.type, mesh_dim_names=("shard",))
        whole = set(self._whole)
        # Where processes leave out different layers, they would gather different ones and wait for each other.
        for layer in () if self._find_unused else units(model, self._unit_bytes):
            fully_shard(layer, mesh=mesh, ignored_params=whole)
        self._root = fully_shard(model, mesh=mesh, ignored_params=whole)
        self._units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        gather, scatter = _LoggedAllGather(group.log, near.name), _LoggedReduceScatter(group.log, near.name)
        for unit in self._units:
            unit.set_custom_all_gather(gather)
            unit.set_custom_reduce_scatter(scatter)
            # Gloo has sums alone; the average is of all processes, and not of a copy's.
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(float(group.world))
            if far.size > 1:
                unit.set_all_reduce_hook(lambda flat: self._compressor.sum(flat, (), Flat(far), far.size))
        if self._find_unused:
            self._root.set_reduce_scatter_unused_params(True)
        scalars = {id(parameter) for parameter in self._whole}
        self._sharded = [parameter for parameter in model.parameters() if id(parameter) not in scalars]
        return model

    def _refuse_impossible(self, model: nn.Module) -> None:
        """Refuses, on every process alike, settings by which a model cannot be spread or that would do nothing."""
        shard, world = self._shard, self._group.world
        if shard < 2:
            raise InvalidInputError(f"strategy.shard is {shard}: every process would hold all; take DDP, or 2 or more")
        mesh_ranks(self._group, shard)
        if shard == world and self._compression != "none":
            raise InvalidInputError(
                f"strategy.compression is {self._compression}, and nothing goes across groups: one copy of the model "
                f"is spread over all {world} processes; give --strategy.shard, as many as a host has, or compress "
                "nothing"
            )
        if any(module._compiled_call_impl is not None for module in model.modules()):
            # Its hooks keep torch.compile from making any graph, and torch 2.14 says nothing of it.
            raise InvalidInputError("--compile does nothing for layers that FSDP spreads: leave it out, or take DDP")

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        """Every process has a part of the gradients: the squares of their norms are summed over a copy's processes."""
        assert self._near is not None and self._all is not None
        device = self._group.device
        if self._whole:
            joined = torch.stack([_gradient(parameter) for parameter in self._whole])
            self._all.all_reduce(joined)
            joined /= self._group.world
            for parameter, mean in zip(self._whole, joined, strict=True):
                parameter.grad = mean.clone()
        gradients = [local_part(parameter.grad) for parameter in self._sharded if parameter.grad is not None]
        square = torch.stack(_norms(gradients)).square().sum() if gradients else torch.zeros((), device=device)
        self._near.all_reduce(square)
        whole = [parameter.grad for parameter in self._whole if parameter.grad is not None]
        total = (square + sum(gradient.square() for gradient in whole)).sqrt()
        factor = torch.clamp(norm / (total + 1e-6), max=1.0)
        torch._foreach_mul_([*gradients, *whole], factor)
        return total

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it every process has all parameters, and may call the model as often as it likes; it does not train.

        Else each call of a layer is a collective, and processes with other numbers of cases would wait for each other.
        """
        for unit in self._units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for unit in self._units:
                unit.set_reshard_after_forward(unit is not self._root, recurse=False)
                unit.reshard()


def units(model: nn.Module, least_bytes: float) -> list[nn.Module]:
    """The layers that are gathered on their own: the outermost elements of lists and sequences, where large enough.

    A layer that shares a parameter with another is none: both must be gathered together.
    """
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def fits(module: nn.Module) -> bool:
        own = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
        large = sum(parameter.nbytes for parameter in module.parameters()) >= least_bytes
        called = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        return called and large and all(holders[number] == count for number, count in own.items())

    def look(module: nn.Module, *, listed: bool) -> None:
        for child in module.children():
            if listed and fits(child) and child not in found:
                found.append(child)
            else:
                look(child, listed=isinstance(child, (nn.ModuleList, nn.Sequential)))

    look(model, listed=isinstance(model, (nn.ModuleList, nn.Sequential)))
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _norms(gradients: Sequence[Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(list(gradients)))


class _LoggedAllGather(DefaultAllGather):
    """As FSDP2 does it; the log knows of it, so that the watch can tell who is missing."""

    def __init__(self, log: CollectiveLog, name: str) -> None:
        self._log, self._name = log, name

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        entered = self._log.begin("all_gather", self._name, output_tensor.nbytes, blocking=True)
        work = super().__call__(output_tensor, input_tensor, group, async_op)
        if work is None:
            self._log.end(entered)
        else:
            work.get_future().then(lambda _: self._log.end(entered))
        return work


class _LoggedReduceScatter(DefaultReduceScatter):
    """As FSDP2 does it, and in the log."""

    def __init__(self, log: CollectiveLog, name: str) -> None:
        self._log, self._name = log, name

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        self._log.gradient_ready()
        with self._log.running("reduce_scatter", self._name, input_tensor.nbytes):
            return super().__call__(output_tensor, input_tensor, group, op, async_op)
