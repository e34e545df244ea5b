"""Refuses a network that does not fit into the memory of this machine while it is built, and reports a large one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from shared.errors import InvalidInputError
from shared.machine_memory import machine_memory_bytes

LARGE_BYTES = 10**9
_GB = 1e9


def build_within_memory(build: Callable[[], nn.Module], *, on_cpu: bool, report: Callable[[str], None]) -> nn.Module:
    """The network that ``build`` returns. Calls ``report`` with a message if its weights exceed ``LARGE_BYTES``.

    Raises ``InvalidInputError`` if the weights, and with ``on_cpu`` their gradients, exceed the machine's memory. A
    weight is counted when its module registers it. Most are not written to before that, so the system has not yet
    allocated their memory.
    """
    memory, copies = machine_memory_bytes(), 2 if on_cpu else 1
    counted: dict[int, nn.Parameter] = {}
    total, reported = 0, False

    def count(_module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal total, reported
        if not isinstance(parameter, nn.Parameter) or id(parameter) in counted or parameter.is_meta:
            return
        counted[id(parameter)] = parameter  # keep a reference, so that no other object gets its id
        total += parameter.nbytes
        if memory is not None and copies * total > memory:
            needed = "weights and their gradients" if on_cpu else "weights"
            raise InvalidInputError(
                f"the recipe's network is too large for this machine: its {needed} take more than "
                f"{copies * total / _GB:.1f} GB at {name} of shape {tuple(parameter.shape)}, and the machine has "
                f"{memory / _GB:.1f} GB of memory; make it smaller (--model..., see --help)"
            )
        if total > LARGE_BYTES and not reported:
            reported = True
            report(f"the network is large: its weights already take {total / _GB:.1f} GB and it is not complete yet")

    handle = register_module_parameter_registration_hook(count)
    try:
        model = build()
    finally:
        handle.remove()
    if reported:
        size = sum(parameter.nbytes for parameter in model.parameters())
        report(
            f"its weights take {size / _GB:.1f} GB; training needs the same again for the gradients, and AdamW twice "
            "as much for its moments"
        )
    return model
