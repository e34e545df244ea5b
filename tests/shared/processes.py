"""Runs a function in several processes of one group on this machine, without the 30 seconds that ``torchrun`` needs.

The processes are forked from one that has imported torch. ``tests/test_end_to_end.py`` and
``tests/shared/comms/test_groups.py`` use ``torchrun`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import tensorboard  # noqa: F401 - slow to import, so imported once here, not in every process

from shared.comms.shaped_network import LOCALHOST, Job, succeed

PRELOAD = (
    *("torch", "torch.distributed", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"),
    *("pytest", "tests.shared.engine.line"),
)
"""Modules that tests use, imported once for the processes of all jobs."""


def run(function: Callable[..., Any], *arguments: Any, processes: int = 2, limit_s: float = 90) -> list[Any]:
    """Runs ``function(*arguments)`` in each process and returns the results by rank; raises what one of them raised.

    The function must be defined at the top level of a module. The processes have the environment variables that
    ``torchrun`` would set.
    """
    job = Job([LOCALHOST], processes, _on_one_thread, function, arguments, preload=PRELOAD)
    return [result for (result,) in succeed(job.results(limit_s))]


def _on_one_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any]:
    torch.set_num_threads(1)
    # A tuple, because a process that was killed returns nothing at all.
    return (function(*arguments),)
