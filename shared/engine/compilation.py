"""torch.compile for a run: opt-in, and refused before the first step where it cannot work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from shared.errors import InvalidInputError
from shared.recipe import ModelConfig


@runtime_checkable
class CompiledParts(Protocol):
    """A model's config that says which parts of its model are worth compiling, in place of the model as a whole.

    Those are the dense networks: matching, decoding and losses over lists of objects are no graphs.
    """

    def compiled_parts(self, model: nn.Module) -> Sequence[nn.Module]: ...


def compile_in_place(config: ModelConfig, model: nn.Module) -> None:
    """Has the forward pass of ``model``, or of the parts that ``config`` names, compiled at its first call.

    The names in the state dict stay as they are. Raises ``InvalidInputError`` where there is no C++ compiler.
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
            "--compile needs a C++ compiler, and this machine has none: install g++ or name one in CXX, or leave "
            "--compile out"
        ) from error
