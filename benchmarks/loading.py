"""From process start to a network's first outputs: the cost of loading in CPU-seconds and memory.

The peer builds the shipped networks with the classes of their libraries (MONAI, mmdet3d, pytorch-forecasting), loads
the weights, and calls the networks. Ours loads the predictor, whose network is a program that ONNX Runtime reads from a
file, and calls it. Each runs in its own process, in turns, with one thread. Imports are included, and memory is the
peak of the process. If the artifact has no ONNX file, or one for a fixed input size, the file is made beforehand, as
``trivium programs --make onnx`` does.

The bars, for each network: at least 60 % fewer CPU-seconds, and at least 40 % less memory.

    python -m benchmarks.loading [--quick]
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

from benchmarks.report import progress, report
from shared.app import find
from shared.deploy.artifact import Artifact
from shared.deploy.registry import shipped

SECONDS_BAR, MEMORY_BAR = 0.60, 0.40
NETWORKS = (("finance", "tft-anomaly"), ("driving", "pointpillars"), ("driving", "fcos3d"), ("medical", "lung_nodules"))
_SCRIPT = """
import json, time, warnings
from pathlib import Path
import numpy as np
from shared.app import find
from shared.deploy.registry import shipped
warnings.filterwarnings("ignore")
app = find({app!r})
artifact = next(one for one in shipped(app) if one.manifest.name == {model!r})
sizes = {{spec.name: [1, *(64 if n == -1 else n for n in spec.shape[1:])] for spec in artifact.manifest.inputs}}
inputs = {{name: np.zeros(shape, np.float32) for name, shape in sizes.items()}}
{code}
# On Linux, a child's ru_maxrss includes the memory of its parent.
(memory,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(json.dumps([time.process_time(), int(memory) * 1024 / 1e6]))
"""
LOAD_PEER = """
import torch
from shared.deploy.programs.artifact_network import dense_network
torch.set_num_threads(1)
dense = dense_network(app, artifact)
with torch.inference_mode():
    dense.module(*(torch.from_numpy(inputs[name]) for name in dense.inputs))
"""
LOAD_OURS = """
from shared.deploy.predictor import programs_of
program = programs_of(app.predictor([artifact], "cpu"))[artifact.manifest.name]
assert program.name == "onnx", program.remarks
program.arrays(inputs)
"""


def main() -> None:
    """Measures both for each network and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the networks that ship with a program alone, one turn")
    quick = parser.parse_args().quick
    figures: dict[str, float] = {}
    ratios, ok = [], True
    with tempfile.TemporaryDirectory(prefix="trivium-loading-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for app, model in NETWORKS[:2] if quick else NETWORKS:
            artifact = next(one for one in shipped(find(app)) if one.manifest.name == model)
            if not quick:
                _make_onnx(app, artifact)
            samples: dict[str, list[tuple[float, float]]] = {"peer": [], "ours": []}
            for _ in range(1 if quick else 3):
                progress(f"{model}: the library's classes, then ours")
                for name, code in (("peer", LOAD_PEER), ("ours", LOAD_OURS)):
                    samples[name].append(_run_process(app, model, code))
            seconds = [statistics.median(one for one, _ in samples[name]) for name in ("peer", "ours")]
            memory = [statistics.median(one for _, one in samples[name]) for name in ("peer", "ours")]
            figures |= {
                f"{model}, the library's classes, CPU-seconds": seconds[0],
                f"{model}, ours, CPU-seconds": seconds[1],
                f"{model}, the library's classes, MB": memory[0],
                f"{model}, ours, MB": memory[1],
            }
            ratios.append(seconds[0] / seconds[1])
            ok &= seconds[1] <= (1 - SECONDS_BAR) * seconds[0] and memory[1] <= (1 - MEMORY_BAR) * memory[0]
    figures["load of the machine"] = os.getloadavg()[0]
    note = f"one thread; the bars are {SECONDS_BAR:.0%} fewer CPU-seconds and {MEMORY_BAR:.0%} less memory for each"
    report("loading", figures, ratio=min(ratios), ok=ok, note=note)


def _make_onnx(app: str, artifact: Artifact) -> None:
    """Exports the ONNX file of an artifact into the cache."""
    from shared.deploy.programs.artifact_network import dense_network
    from shared.deploy.programs.making import make_programs, random_examples
    from shared.deploy.programs.store import add_to_cache, weights_digest

    dense = dense_network(find(app), artifact)
    with tempfile.TemporaryDirectory(prefix="trivium-programs-") as folder:
        entries = make_programs(dense, ["onnx"], Path(folder), weights_digest(artifact), random_examples(dense))
        add_to_cache(artifact, Path(folder), entries)


def _run_process(app: str, model: str, code: str) -> tuple[float, float]:
    """Runs a process; returns its CPU-seconds and its peak memory in MB."""
    script = _SCRIPT.format(app=app, model=model, code=code)
    environment = os.environ | {"TRIVIUM_PROGRAM": "onnx", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    seconds, memory = json.loads(process.stdout.splitlines()[-1])
    return float(seconds), float(memory)


if __name__ == "__main__":
    main()
