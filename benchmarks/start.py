"""The start-up time of ``trivium predict``: the cost of its first prediction minus that of a second one.

Each application predicts on a sample twice in its own process, through the command itself; the first prediction also
imports the libraries and loads the model. Reported are CPU-seconds including the start of the interpreter, as the
median of ``--turns`` processes. Programs are chosen and compiled beforehand, as they are after the first prediction on
a machine. The time to import torch, which finance does not need, is also shown.

The bar: at most 2.5 CPU-seconds in each application.

    python -m benchmarks.start [--turns N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import report
from shared.app import installed

BAR = 2.5
_TWICE = """
import contextlib, io, json, sys, time
from shared import cli

spent = []
for _ in range(2):
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(sys.argv[1:]) == 0
    spent.append(time.process_time())
print(json.dumps([spent[0], spent[1] - spent[0], "torch" in sys.modules]))
"""
_TORCH = "import time, torch; print(time.process_time())"


def main() -> None:
    """Measures each application and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    figures: dict[str, float] = {}
    starts, notes = [], []
    for name, app in installed().items():
        sample = next(sample for sample in app.samples() if sample.synthetic)
        with tempfile.TemporaryDirectory(prefix="trivium-start-") as folder:
            files = [str(file) for file in sample.files(Path(folder))]
            command = ["predict", name, *files, "--out", str(Path(folder) / "out")]
            runs = [json.loads(_run(_TWICE, *command)) for _ in range(turns + 1)][1:]
        first, second = (statistics.median(run[n] for run in runs) for n in (0, 1))
        starts.append(first - second)
        figures |= {f"{name}, first prediction (CPU s)": first, f"{name}, another one (CPU s)": second}
        figures[f"{name}, start (CPU s)"] = first - second
        notes.append(f"{name} {'imports' if runs[0][2] else 'does not import'} torch")
    torch = statistics.median(float(_run(_TORCH)) for _ in range(turns))
    figures |= {"import torch alone (CPU s)": torch, "load of the machine": os.getloadavg()[0]}
    note = (
        f"{'; '.join(notes)}; samples are the synthetic ones; the bar is {BAR:g} s, ratio is the bar over the longest"
    )
    report("start", figures, ratio=BAR / max(starts), ok=max(starts) <= BAR, note=note)


def _run(code: str, *arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return process.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
