"""Several processes of one run on this machine, without the half minute that ``torchrun`` takes to start them.

They are forked from a process that has imported torch once. ``torchrun`` itself is used in ``tests/test_end_to_end.py``
and in ``tests/shared/comms/test_groups.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import tensorboard  # noqa: F401 - slow to import, so once and not in every process

from shared.comms.shaped_network import HERE, Job, succeed

PRELOAD = (
    *("torch", "torch.distributed", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"),
    *("pytest", "tests.shared.engine.line"),
)
"""What modules of tests import, imported once for the processes of all jobs."""


def run(function: Callable[..., Any], *arguments: Any, processes: int = 2, limit_s: float = 90) -> list[Any]:
    """What ``function(*arguments)`` returns in each of the processes, by rank; raises what one of them raised.

    The function is one of a module. Its processes find what ``torchrun`` would tell them in the environment.
    """
    job = Job([HERE], processes, _on_one_thread, function, arguments, preload=PRELOAD)
    return [result for (result,) in succeed(job.results(limit_s))]


def _on_one_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any]:
    torch.set_num_threads(1)
    # A process that was killed has no result at all.
    return (function(*arguments),)
