"""How long programs take, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from shared.deploy.programs.program import Program, Tensors

_SECONDS, _MIN_RUNS, _MAX_RUNS = 0.25, 2, 20


def measure(
    programs: Mapping[str, Program], example: Tensors, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The least milliseconds of a call of each, taken in turns for about a second in all.

    ``clock`` tells seconds: ``time.process_time`` has those of the processor, which others on the machine disturb less.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(_MAX_RUNS):
        for name, program in programs.items():
            if turn >= _MIN_RUNS and sum(times[name]) > _SECONDS:
                continue
            began = clock()
            program(example)
            if program.device != "cpu":
                import torch

                torch.cuda.synchronize()
            times[name].append(clock() - began)
    return {name: 1e3 * min(taken) for name, taken in times.items()}
