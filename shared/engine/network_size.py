"""A network that this machine cannot hold is refused while it is built, and a large one is told of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from shared.errors import InvalidInputError
from shared.machine_memory import machine_memory_bytes

LARGE_BYTES = 10**9
_GB = 1e9


def build_within_memory(build: Callable[[], nn.Module], *, on_cpu: bool, say: Callable[[str], None]) -> nn.Module:
    """What ``build`` gives. Says so when its weights pass a gigabyte, and refuses those that this machine cannot hold.

    To train ``on_cpu`` takes a gradient for each weight too. Each weight counts as its module registers it, which is
    before most are written to, so that the system gives no memory for them yet.
    """
    memory, copies = machine_memory_bytes(), 2 if on_cpu else 1
    found: dict[int, nn.Parameter] = {}
    total, told = 0, False

    def count(_module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal total, told
        if not isinstance(parameter, nn.Parameter) or id(parameter) in found or parameter.is_meta:
            return
        found[id(parameter)] = parameter  # held, so that no other takes its place in memory
        total += parameter.nbytes
        if memory is not None and copies * total > memory:
            needed = "weights and their gradients" if on_cpu else "weights"
            raise InvalidInputError(
                f"the recipe's network is too large for this machine: its {needed} take over "
                f"{copies * total / _GB:.1f} GB, with {name} of {tuple(parameter.shape)}, and there are "
                f"{memory / _GB:.1f} GB of memory; make it smaller (--model..., see --help)"
            )
        if total > LARGE_BYTES and not told:
            told = True
            say(f"the network is large: its weights take over {total / _GB:.1f} GB, and it is not built whole yet")

    handle = register_module_parameter_registration_hook(count)
    try:
        model = build()
    finally:
        handle.remove()
    if told:
        size = sum(parameter.nbytes for parameter in model.parameters())
        say(
            f"its weights take {size / _GB:.1f} GB; training takes as much again for the gradients, and AdamW twice as "
            "much for its moments"
        )
    return model
