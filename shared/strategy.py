"""How a model is spread over the processes of a run: what a recipe says of it. Torch is imported on use."""

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
    """A model spread over the processes of a run.

    ``wrap`` is called once, before the optimizer is built, and returns what the task calls; the model itself may be
    changed in place (as FSDP2 does), and keeps its parameters' names. ``clip`` scales the gradients to a norm of at
    most ``norm`` over all processes and returns the norm before that. Within ``accumulating`` a backward pass adds to
    the gradients without exchanging them: all micro-batches of a step but the last run there. Within ``whole`` the
    model scores: processes call it as often as each likes.

    A strategy may also keep a state of each process's own: see ``OwnState``.
    """

    def wrap(self, model: nn.Module) -> nn.Module: ...

    def clip(self, model: nn.Module, norm: float) -> Tensor: ...

    def accumulating(self) -> AbstractContextManager[None]: ...

    def whole(self) -> AbstractContextManager[None]: ...


@runtime_checkable
class OwnState(Protocol):
    """What a process keeps for itself and a checkpoint has for each of them, such as the errors of a compression.

    ``own_layout`` says what the state belongs to, in JSON types: it is restored where that is equal, and left out,
    which the run says, where it is not. None where there is no state.
    """

    def own_layout(self) -> dict[str, Any] | None: ...

    def own_state(self) -> dict[str, Any]: ...

    def load_own_state(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class StrategyConfig(Protocol):
    """Settings that build the strategy for a group of processes.

    ``find_unused_parameters`` is whether the task says that a step may leave parameters of the model out.
    """

    def build(self, group: Group, *, find_unused_parameters: bool = False) -> Strategy: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Joining:
    """How the processes of a run find each other, and how long they wait.

    topology        a file that tells the switches (see ``trivium topology``), by which ranks are ordered
    start_timeout_s, timeout_s
                    how long processes wait for each other before the first step is done, and after it
    silence_s       after how long without a sign of life a process counts as lost
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
        """How long processes wait for each other."""
        from shared.comms.watch import Timeouts

        return Timeouts(start_s=self.start_timeout_s, step_s=self.timeout_s, silence_s=self.silence_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class DDP(Joining):
    """torch's DistributedDataParallel: the whole model on every process, gradients averaged. One process: no wrapper.

    route           how gradients are summed: ``flat`` (the backend's own), ``ring`` (by point-to-point messages),
                    ``hierarchical`` (inside each node, then across nodes by shard); ``auto`` is hierarchical on CPUs of
                    several hosts, and flat elsewhere, for NCCL chooses by itself
    compression     ``fp16`` and ``bf16`` halve the bytes; ``powersgd`` sends gradients of rank ``powersgd_rank``, from
                    step ``powersgd_start`` on, and keeps the error. In a hierarchical route only what goes across
                    nodes is compressed
    bucket_mb       how many MB (2**20 bytes) of gradients go at once
    shard           processes in a node of the hierarchical route; by default those of each host
    find_unused_parameters
                    whether a step may leave parameters out; by default what the task says
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
        asked = self.find_unused_parameters
        return DDPStrategy(group, self, find_unused_parameters if asked is None else asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto(DDP):
    """The model as it is on one process, and ``DDP`` on several, with the same settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FSDP(Joining):
    """torch's FSDP2: parameters, gradients and the optimizer's state are spread over the processes.

    A layer is whole on a process only while it computes. One process: no wrapper.

    shard           over how many neighbouring processes a copy of the model is spread; by default all of them. Fewer
                    (those of a host) is HSDP: every such group holds a copy, and gradients are summed across groups
    unit_mb         layers of lists and sequences with at least so many MB (2**20 bytes) of parameters are gathered one
                    by one, all others together; all together where the task says that a step may leave some out
    compression     ``fp16`` and ``bf16`` halve the bytes that go across groups
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
"""By the names that the command line has for them."""


def join_group(config: StrategyConfig, device: str | None) -> AbstractContextManager[Group]:
    """Joins the processes that train, with the strategy's timeouts and its order of hosts where it has such."""
    from shared.comms.joining import join

    settings = config if isinstance(config, Joining) else Joining()
    return join(device, timeouts=settings.timeouts, topology=settings.topology)


class SingleStrategy:
    """The model as it is."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        self._parameters = list(model.parameters())
        return model

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        from torch.nn.utils import clip_grad_norm_

        # Going through a model for its parameters takes longer than their norm.
        return clip_grad_norm_(self._parameters, norm)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()


class DDPStrategy(SingleStrategy):
    """Every process has all gradients after the backward pass, so each clips by itself."""

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
                f"a step left parameters out ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}), so that "
                "processes would wait for their gradients: let the task say leaves_parameters_unused = True, or give "
                "--strategy.find-unused-parameters True"
            )
        self._exchange.whole = False
        return super().clip(model, norm)

    def accumulating(self) -> AbstractContextManager[None]:
        from torch.nn.parallel import DistributedDataParallel

        assert isinstance(self._wrapped, DistributedDataParallel)
        return self._wrapped.no_sync()

    def own_layout(self) -> dict[str, Any] | None:
        """The compression and the processes by node: another number of them splits errors differently."""
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
