"""Measures the latency of programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from shared.deploy.programs.program import Program, Tensors

_SECONDS, _MIN_RUNS, _MAX_RUNS = 0.25, 2, 20


def measure_latency(
    programs: Mapping[str, Program], example: Tensors, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The minimum latency of a call of each program, in milliseconds. The programs are called in turns,
    each at least 2 and at most 20 times, until its calls add up to 0.25 s.

    ``clock`` returns seconds; ``time.process_time`` measures CPU time, which other load on the machine disturbs less.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(_MAX_RUNS):
        for name, program in programs.items():
            if turn >= _MIN_RUNS and sum(times[name]) > _SECONDS:
                continue
            start = clock()
            program(example)
            if program.device != "cpu":
                import torch

                torch.cuda.synchronize()
            times[name].append(clock() - start)
    return {name: 1e3 * min(seconds) for name, seconds in times.items()}
