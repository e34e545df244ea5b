"""Settings for how a model is distributed over the processes of a run. Torch is imported only when used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shared.comms.group import Group
    from shared.comms.hooks import GradientExchange
    from shared.comms.watch import Timeouts


@runtime_checkable
class Strategy(Protocol):
    """A model distributed over the processes of a run.

    ``wrap`` is called once, before the optimizer is built, and returns the module that the task calls. It may change
    the model in place (as FSDP2 does), but keeps the names of the parameters. ``clip`` scales the gradients to a norm
    of at most ``norm`` over all processes, and returns the norm before clipping. Inside ``accumulating``, a backward
    pass adds to the gradients without exchanging them; all micro-batches of a step except the last run there. Inside
    ``whole``, the model is evaluated, and each process may call it any number of times.

    A strategy may also keep a state for each process: see ``PerProcessState``.
    """

    def wrap(self, model: nn.Module) -> nn.Module: ...

    def clip(self, model: nn.Module, norm: float) -> Tensor: ...

    def accumulating(self) -> AbstractContextManager[None]: ...

    def whole(self) -> AbstractContextManager[None]: ...


@runtime_checkable
class PerProcessState(Protocol):
    """A state that each process has for itself and that checkpoints save per process, such as compression errors.

    ``own_layout`` describes, in JSON types, the layout that the state belongs to; None if there is no state. A state is
    restored only if its layout is equal; else the run skips it and says so.
    """

    def own_layout(self) -> dict[str, Any] | None: ...

    def own_state(self) -> dict[str, Any]: ...

    def load_own_state(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class StrategyConfig(Protocol):
    """Settings that build the strategy for a group of processes.

    ``find_unused_parameters`` is true if the task declares that a step may leave parameters of the model unused.
    """

    def build(self, group: Group, *, find_unused_parameters: bool = False) -> Strategy: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Joining:
    """How the processes of a run are ordered, and how long they wait for each other.

    topology        a file that describes the switches (see ``trivium topology``), by which ranks are ordered
    start_timeout_s, timeout_s
                    how long processes wait for each other until the first step is done, and after it
    silence_s       a process counts as lost after this time without a heartbeat
    """

    topology: Path | None = None
    start_timeout_s: float = 600.0
    timeout_s: float = 300.0
    silence_s: float = 30.0

    def __post_init__(self) -> None:
        self._refuse_unless_positive("start_timeout_s", "timeout_s", "silence_s")

    def _refuse_unless_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"strategy.{name} is {getattr(self, name)}; it must be above 0")

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts for waiting on other processes."""
        from shared.comms.watch import Timeouts

        return Timeouts(start_s=self.start_timeout_s, step_s=self.timeout_s, silence_s=self.silence_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class DDP(Joining):
    """torch's DistributedDataParallel: the whole model on every process, gradients averaged. One process: no wrapper.

    route           how gradients are summed: ``flat`` (the backend's all-reduce), ``ring`` (point-to-point messages),
                    ``hierarchical`` (inside each node, then across nodes by shard); ``auto`` is hierarchical on CPUs of
                    several hosts and flat otherwise, because NCCL chooses its algorithm itself
    compression     ``fp16`` and ``bf16`` halve the bytes; ``powersgd`` sends gradients of rank ``powersgd_rank``, from
                    step ``powersgd_start`` on, with error feedback. In the hierarchical route only the exchange across
                    nodes is compressed
    bucket_mb       size of a gradient bucket in MB (2**20 bytes)
    shard           number of processes in a node of the hierarchical route; by default those on the same host
    find_unused_parameters
                    whether a step may leave parameters unused; by default as the task declares
    """

    route: Literal["auto", "flat", "ring", "hierarchical"] = "auto"
    compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    powersgd_rank: int = 4
    powersgd_start: int = 100
    bucket_mb: float = 25.0
    shard: int | None = None
    find_unused_parameters: bool | None = None

    def __post_init__(self) -> None:
        Joining.__post_init__(self)
        self._refuse_unless_positive("powersgd_rank", "bucket_mb")
        if self.powersgd_start < 0:
            raise InvalidInputError(f"strategy.powersgd_start is {self.powersgd_start}; it must be at least 0")

    def build(self, group: Group, *, find_unused_parameters: bool = False) -> Strategy:
        if group.world == 1:
            return SingleStrategy()
        override = self.find_unused_parameters
        return DDPStrategy(group, self, find_unused_parameters if override is None else override)


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto(DDP):
    """``DDP`` on several processes, with the same settings; on one process the model is not wrapped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FSDP(Joining):
    """torch's FSDP2: parameters, gradients and optimizer state are sharded over the processes.

    The parameters of a layer are gathered on a process only while the layer computes. One process: no wrapper.

    shard           number of adjacent processes over which a copy of the model is sharded; by default all. Fewer
                    (such as those of a host) is HSDP: each group of them has a copy, and gradients are summed across
                    groups
    unit_mb         layers in lists and sequences with at least this many MB (2**20 bytes) of parameters are gathered
                    one by one, all others together; all together if the task declares that a step may leave some unused
    compression     ``fp16`` and ``bf16`` halve the bytes that are sent across groups
    """

    shard: int | None = None
    unit_mb: float = 4.0
    compression: Literal["none", "fp16", "bf16"] = "none"

    def __post_init__(self) -> None:
        Joining.__post_init__(self)
        self._refuse_unless_positive("unit_mb")

    def build(self, group: Group, *, find_unused_parameters: bool = False) -> Strategy:
        if group.world == 1:
            return SingleStrategy()
        from shared.comms.sharded import ShardedStrategy

        return ShardedStrategy(
            group,
            shard=self.shard,
            unit_mb=self.unit_mb,
            compression=self.compression,
            find_unused_parameters=find_unused_parameters,
        )


STRATEGIES: Mapping[str, type[DDP | FSDP]] = {"ddp": Auto, "fsdp": FSDP}
"""The classes by their name on the command line."""


def join_group(config: StrategyConfig, device: str | None) -> AbstractContextManager[Group]:
    """Joins the process group of the training, with the timeouts and the topology of the strategy if it has them."""
    from shared.comms.joining import join

    settings = config if isinstance(config, Joining) else Joining()
    return join(device, timeouts=settings.timeouts, topology=settings.topology)


class SingleStrategy:
    """The model on one process, without a wrapper."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        self._parameters = list(model.parameters())
        return model

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        from torch.nn.utils import clip_grad_norm_

        # Iterating over a model's parameters takes longer than computing their norm.
        return clip_grad_norm_(self._parameters, norm)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()


class DDPStrategy(SingleStrategy):
    """DistributedDataParallel. Every process has all gradients after the backward pass, so each clips on its own."""

    def __init__(self, group: Group, settings: DDP, find_unused_parameters: bool) -> None:
        super().__init__()
        self._group, self._settings, self._find_unused = group, settings, find_unused_parameters
        self._wrapped: nn.Module | None = None
        self._exchange: GradientExchange | None = None
        self._names: list[tuple[str, nn.Parameter]] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        from shared.comms.hooks import gradient_exchange, refuse_different_models, rehearse

        settings = self._settings
        refuse_different_models(self._group, model)
        devices = [self._group.device.index] if self._group.device.type == "cuda" else None
        wrapped = DistributedDataParallel(
            super().wrap(model),
            device_ids=devices,
            bucket_cap_mb=settings.bucket_mb,
            find_unused_parameters=self._find_unused,
        )
        self._exchange = gradient_exchange(
            self._group,
            model,
            route=settings.route,
            compression=settings.compression,
            powersgd_rank=settings.powersgd_rank,
            powersgd_start=settings.powersgd_start,
            shard=settings.shard,
        )
        wrapped.register_comm_hook(self._exchange, lambda state, bucket: state(bucket))
        self._names = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not self._find_unused:
            rehearse(wrapped, self._exchange)
        self._wrapped = wrapped
        return wrapped

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        assert self._exchange is not None
        if not self._exchange.whole:
            unused = [name for name, parameter in self._names if parameter.grad is None]
            raise InvalidInputError(
                f"a step left parameters unused ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}), so "
                "processes would wait for their gradients: set leaves_parameters_unused = True in the task, or use "
                "--strategy.find-unused-parameters True"
            )
        self._exchange.whole = False
        return super().clip(model, norm)

    def accumulating(self) -> AbstractContextManager[None]:
        from torch.nn.parallel import DistributedDataParallel

        assert isinstance(self._wrapped, DistributedDataParallel)
        return self._wrapped.no_sync()

    def own_layout(self) -> dict[str, Any] | None:
        """The compression settings and the processes of each node: other processes split the errors differently."""
        if self._settings.compression != "powersgd" or self._exchange is None:
            return None
        settings = self._settings
        return {
            "compression": "powersgd",
            "rank": settings.powersgd_rank,
            "start": settings.powersgd_start,
            "route": type(self._exchange.route).__name__,
            "bucket_mb": settings.bucket_mb,
            "nodes": [list(ranks) for ranks in self._group.nodes],
            "shard": settings.shard,
        }

    def own_state(self) -> dict[str, Any]:
        assert self._exchange is not None
        return self._exchange.compressor.state_dict()

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        assert self._exchange is not None
        self._exchange.compressor.load_state_dict(state)
