"""Runs of several processes: they share batches, agree on when to stop, and train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.comms.group import Group
from shared.engine.evaluate import evaluate
from tests.shared.engine import line
from tests.shared.engine.line import ROOT, train, weights


def test_processes_agree_on_when_the_minutes_are_over(tmp_path):
    script = tmp_path / "clocks.py"
    script.write_text(
        "import os, sys, time; from pathlib import Path; from tests.shared.engine import line\n"
        "from shared.engine.loop import fit; from shared.engine.run import Run\n"
        "rank, clock = int(os.environ['RANK']), time.monotonic\n"
        "time.monotonic = lambda: clock() * (1 + 0.5 * rank)\n"
        "recipe = line.recipe(epochs=100_000, minutes=0.02, log_every=1, patience=100_000)\n"
        "result = fit(recipe, Run(Path(sys.argv[1]), 'line', 'line'), device='cpu', quiet=True)\n"
        "Path(sys.argv[1], f'said-{rank}').write_text(f'{result.reason} {result.steps}')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    one, other = ((tmp_path / "run" / f"said-{rank}").read_text() for rank in range(2))
    assert one == other and one.startswith("minutes ")


def test_two_processes_share_the_batches_and_agree_with_one(tmp_path):
    script = Path(__file__).with_name("line.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path / "two"), "15"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = train(tmp_path / "two", steps=20)
    assert resumed.steps == 20
    assert [entry["samples"] for entry in resumed.history] == [13, 13]
    again = subprocess.run([*command, str(tmp_path / "two"), "30"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "two" / "result.json").read_text())["steps"] == 30


def test_without_noise_in_the_model_three_processes_train_what_one_trains(tmp_path):
    code = (
        "import sys; from tests.shared.engine import line; from dataclasses import replace; from pathlib import Path\n"
        "from shared.engine.loop import fit; from shared.engine.run import Run\n"
        "recipe = replace(line.recipe(), model=line.Network(dropout=0.0))\n"
        "fit(recipe, Run(Path(sys.argv[1]), 'line', 'line'), device='cpu', quiet=True)\n"
    )
    script = tmp_path / "calm.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for processes in (1, 3):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run([*command, str(script), str(tmp_path / str(processes))], env=environment, check=True)
    one, three = weights(tmp_path / "1", 30), weights(tmp_path / "3", 30)
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_model_that_two_processes_score_is_the_one_that_is_kept(tmp_path):
    script = tmp_path / "normalised.py"
    script.write_text(
        "import sys; from tests.shared.engine import line; from dataclasses import dataclass, replace\n"
        "from pathlib import Path; from torch import nn\n"
        "from shared.engine.loop import fit; from shared.engine.run import Run\n"
        "class Normalised(line.Network):\n"
        "    def build(self, input=None): return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))\n"
        "def recipe(): return replace(line.recipe(), model=Normalised())\n"
        "if __name__ == '__main__':\n"
        "    fit(recipe(), Run(Path(sys.argv[1]), 'line', 'line'), device='cpu', quiet=True)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*command, str(tmp_path / "run")], env=environment, check=True)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    model.load_state_dict(weights(tmp_path / "run", 30))
    alone = Group(0, 1, torch.device("cpu"))
    scores = evaluate(model, line.Regression(), line.Points(13), 4, alone)
    last = json.loads((tmp_path / "run" / "result.json").read_text())["history"][-1]
    assert scores["loss"] == pytest.approx(last["loss"], rel=1e-6)


def test_means_over_what_is_counted_are_the_same_on_any_number_of_processes(tmp_path):
    script = tmp_path / "counted.py"
    script.write_text(
        "import sys; from tests.shared.engine import line; from dataclasses import replace; from pathlib import Path\n"
        "from shared.engine.loop import fit; from shared.engine.run import Run\n"
        "from shared.engine.task import WeightedLoss\n"
        "class Counted(line.Regression):\n"
        "    def loss(self, model, batch):\n"
        "        # Few samples count, and they lie unevenly among the processes; in some batches there is none.\n"
        "        counts = batch['x'][:, :1] > 0.7\n"
        "        square = (model(batch['x']) - batch['y']).square() * counts\n"
        "        mean = WeightedLoss(square.sum() / counts.sum().clamp(min=1), counts.sum())\n"
        "        return {'square': mean, 'plain': model(batch['x']).square().mean() * 0.1}\n"
        "recipe = replace(line.recipe(Counted, log_every=1), model=line.Network(dropout=0.0))\n"
        "fit(recipe, Run(Path(sys.argv[1]), 'line', 'line'), device='cpu', quiet=True)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    losses = {}
    for processes in (1, 3):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        subprocess.run([*command, str(script), str(tmp_path / str(processes))], env=environment, check=True)
        events = (tmp_path / str(processes) / "events.jsonl").read_text().splitlines()
        losses[processes] = [e["loss"] for e in map(json.loads, events) if e["event"] == "train"]
    assert len(losses[1]) == 30 and losses[3] == pytest.approx(losses[1], rel=1e-4)
    one, three = weights(tmp_path / "1", 30), weights(tmp_path / "3", 30)
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=1e-5, atol=1e-6)


def test_what_the_leader_refuses_every_process_refuses(tmp_path):
    (tmp_path / "notes.txt").touch()
    script = tmp_path / "refused.py"
    script.write_text(
        "import sys; from tests.shared.engine import line; from pathlib import Path\n"
        "from shared.engine.loop import fit; from shared.engine.run import Run\n"
        "from shared.errors import InvalidInputError\n"
        "try:\n"
        "    fit(line.recipe(), Run(Path(sys.argv[1]), 'line', 'line'), device='cpu', quiet=True)\n"
        "except InvalidInputError as error:\n"
        "    sys.stdout.write(f'{error}\\n')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.count("holds files and is not a run") == 2
