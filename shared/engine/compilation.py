"""torch.compile for a run: opt-in, and refused before the first step if there is no compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from shared.errors import InvalidInputError
from shared.recipe import ModelConfig


@runtime_checkable
class CompiledParts(Protocol):
    """A model config that selects the parts of its model to compile, instead of the whole model.

    These are the dense networks: matching, decoding and losses over lists of objects do not compile into graphs.
    """

    def compiled_parts(self, model: nn.Module) -> Sequence[nn.Module]: ...


def compile_in_place(config: ModelConfig, model: nn.Module) -> None:
    """Makes the forward pass of ``model``, or of the parts that ``config`` selects, compile at its first call.

    The names in the state dict do not change. Raises ``InvalidInputError`` if there is no C++ compiler.
    """
    _refuse_without_compiler()
    parts = config.compiled_parts(model) if isinstance(config, CompiledParts) else (model,)
    for part in parts:
        part.compile()


def _refuse_without_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InvalidInputError(
            "--compile needs a C++ compiler, and this machine has none: install g++, set CXX to a compiler, or omit "
            "--compile"
        ) from error
