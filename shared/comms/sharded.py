"""A model whose parameters, gradients and optimizer state are sharded over processes with torch's FSDP2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from shared.comms.allreduce import Flat, Peers, all_peers, mesh_peers, mesh_ranks
from shared.comms.collective_log import CollectiveLog
from shared.comms.compression import Compressor, HalfPrecision, NoCompression, refuse_inexact_sum
from shared.comms.group import Group
from shared.comms.hooks import refuse_different_models
from shared.comms.sharded_state import local_tensor
from shared.errors import InvalidInputError


class ShardedStrategy:
    """Each process holds a shard of each parameter, and the full parameters of a layer only while it computes.

    ``shard`` adjacent processes share one copy of the model (FSDP). If there are several such groups, each has a copy
    (HSDP), and gradients are also summed across groups; ``compression`` applies only there. Elements of module lists
    and sequences with at least ``unit_mb`` MB of parameters are gathered one by one, all other parameters together. If
    a step may leave parameters unused, all parameters are gathered together.

    FSDP2 does not support parameters without dimensions: each process keeps them unsharded, and ``clip`` averages their
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
        self._unsharded: list[nn.Parameter] = []
        self._inside: Peers | None = None
        self._all: Peers | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        group = self._group
        self._refuse_impossible(model)
        refuse_different_models(group, model)
        group.copy_from_leader([*(parameter.data for parameter in model.parameters()), *model.buffers()])
        self._unsharded = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        for parameter in model.parameters():
            # FSDP2 supports no other memory format, such as channels_last; the values do not change.
            parameter.data = parameter.data.contiguous()
        inside, across, _ = mesh_peers(group, self._shard)
        refuse_inexact_sum(self._compression, across.size)
        self._inside, self._all = inside, all_peers(group)
        mesh = dist.device_mesh.DeviceMesh.from_group(inside.group, group.device.type, mesh_dim_names=("shard",))
        unsharded = set(self._unsharded)
        # If processes leave different layers unused, they would gather different layers and wait for each other.
        for layer in () if self._find_unused else units(model, self._unit_bytes):
            fully_shard(layer, mesh=mesh, ignored_params=unsharded)
        self._root = fully_shard(model, mesh=mesh, ignored_params=unsharded)
        self._units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        gather, scatter = _LoggedAllGather(group.log, inside.name), _LoggedReduceScatter(group.log, inside.name)
        for unit in self._units:
            unit.set_custom_all_gather(gather)
            unit.set_custom_reduce_scatter(scatter)
            # Gloo supports only sums. The divisor is the number of all processes, not of the processes of one copy.
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(float(group.world))
            if across.size > 1:
                unit.set_all_reduce_hook(lambda flat: self._compressor.sum(flat, (), Flat(across), across.size))
        if self._find_unused:
            self._root.set_reduce_scatter_unused_params(True)
        scalars = {id(parameter) for parameter in self._unsharded}
        self._sharded = [parameter for parameter in model.parameters() if id(parameter) not in scalars]
        return model

    def _refuse_impossible(self, model: nn.Module) -> None:
        """Raises ``InvalidInputError`` on every process for settings that cannot work or have no effect."""
        shard, world = self._shard, self._group.world
        if shard < 2:
            raise InvalidInputError(
                f"strategy.shard is {shard}: every process would hold the whole model; use DDP, or 2 or more"
            )
        mesh_ranks(self._group, shard)
        if shard == world and self._compression != "none":
            raise InvalidInputError(
                f"strategy.compression is {self._compression}, but it has no effect: one copy of the model is sharded "
                f"over all {world} processes, and nothing is sent across groups; set --strategy.shard to the processes "
                "of a host, or omit the compression"
            )
        if any(module._compiled_call_impl is not None for module in model.modules()):
            # FSDP's hooks keep torch.compile from making any graph, and torch 2.14 does not report it.
            raise InvalidInputError("--compile has no effect on layers that FSDP shards: omit it, or use DDP")

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        """Clips the gradients to ``norm`` and returns the norm before clipping.

        Each process has a shard of the gradients, so the squared norms are summed over the processes of a copy.
        """
        assert self._inside is not None and self._all is not None
        device = self._group.device
        if self._unsharded:
            joined = torch.stack([_gradient(parameter) for parameter in self._unsharded])
            self._all.all_reduce(joined)
            joined /= self._group.world
            for parameter, mean in zip(self._unsharded, joined, strict=True):
                parameter.grad = mean.clone()
        gradients = [local_tensor(parameter.grad) for parameter in self._sharded if parameter.grad is not None]
        square = (
            torch.stack(torch._foreach_norm(gradients)).square().sum() if gradients else torch.zeros((), device=device)
        )
        self._inside.all_reduce(square)
        unsharded = [parameter.grad for parameter in self._unsharded if parameter.grad is not None]
        total_norm = (square + sum(gradient.square() for gradient in unsharded)).sqrt()
        factor = torch.clamp(norm / (total_norm + 1e-6), max=1.0)
        torch._foreach_mul_([*gradients, *unsharded], factor)
        return total_norm

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the context every process has all parameters and may call the model at any time, but not train it.

        Otherwise each call of a layer is a collective, and processes with different numbers of samples would wait for
        each other.
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


def units(model: nn.Module, min_bytes: float) -> list[nn.Module]:
    """The layers that are gathered separately: the outermost elements of module lists and sequences with at least
    ``min_bytes`` of parameters.

    Excludes layers that share a parameter with another layer, because both must be gathered together.
    """
    holder_counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def is_unit(module: nn.Module) -> bool:
        own = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
        large = sum(parameter.nbytes for parameter in module.parameters()) >= min_bytes
        is_callable = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        return is_callable and large and all(holder_counts[number] == count for number, count in own.items())

    def collect(module: nn.Module, *, in_list: bool) -> None:
        for child in module.children():
            if in_list and is_unit(child) and child not in found:
                found.append(child)
            else:
                collect(child, in_list=isinstance(child, (nn.ModuleList, nn.Sequential)))

    collect(model, in_list=isinstance(model, (nn.ModuleList, nn.Sequential)))
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class _LoggedAllGather(DefaultAllGather):
    """FSDP2's all-gather, recorded in the log so that the watch can name a missing process."""

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
    """FSDP2's reduce-scatter, recorded in the log."""

    def __init__(self, log: CollectiveLog, name: str) -> None:
        self._log, self._name = log, name

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        self._log.gradient_ready()
        with self._log.running("reduce_scatter", self._name, input_tensor.nbytes):
            return super().__call__(output_tensor, input_tensor, group, op, async_op)
