"""Prints the progress of a benchmark, and its results: a table for people, a last line of JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def hardware() -> str:
    """The processor, the number of usable cores, the GPU if there is one, and torch's version."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {cores} cores{gpu}, torch {torch.__version__}"


def one_thread() -> int:
    """Computes with one thread from now on, unless TRIVIUM_THREADS or OMP_NUM_THREADS is set; returns the number.

    CPU-seconds of several threads include those in which they wait for each other, on a busy machine most of them.
    """
    from shared.threads import set_compute_threads

    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ.setdefault("TRIVIUM_THREADS", "1")
    return set_compute_threads()


_START = time.monotonic()


def progress(text: str) -> None:
    """Says on standard error what is done or begins now, with the seconds since the start."""
    print(f"{time.monotonic() - _START:6.0f} s  {text}", file=sys.stderr, flush=True)


def report(name: str, figures: dict[str, float], *, ratio: float, ok: bool, note: str = "") -> None:
    """Prints the measurements.

    ``ratio`` is how many times better ours is than the peer. ``ok`` is True if both computed the same and the bars of
    the benchmark were met. The last line is JSON with name, figures, ratio, hardware, ok and note.
    """
    hardware_name = hardware()
    table = Table(title=f"{name}  ({hardware_name})", title_justify="left")
    table.add_column("measured")
    table.add_column("value", justify="right")
    for key, value in figures.items():
        table.add_row(key, f"{value:,.4g}")
    table.add_row("ratio", f"{ratio:.2f}")
    console = Console()
    console.print(table)
    if note:
        console.print(note)
    summary = {"name": name, "figures": figures, "ratio": ratio, "hardware": hardware_name, "ok": ok, "note": note}
    print(json.dumps(summary), flush=True)
