"""Joining a job, the order of its ranks, and what the others say when a process is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from shared.comms.shaped_network import Job, succeed
from shared.observe.events import read_events
from tests.shared.comms import workers
from tests.shared.engine.line import ROOT


@pytest.mark.parametrize("how", ["kills", "stops", "sleeps", "raises"])
def test_the_processes_that_are_left_name_the_one_that_is_lost(hosts, how):
    job = Job(hosts, 2, workers.lose, how, 2)
    said = {rank: job.result(rank, 30) for rank in (0, 1, 3)}
    job.end()
    expected = {
        "kills": "is not heard from any more",
        "stops": "is not heard from any more",
        "sleeps": "lives but is too slow",
        "raises": "failed at step 3: ValueError: no such sample",
    }
    for rank in (0, 1, 3):
        assert isinstance(said[rank], str), said[rank]
        assert said[rank].startswith(f"rank 2 (on node1, process {job.processes[2].pid}) {expected[how]}")
        if how != "raises":
            assert "waits in all_reduce (all) since" in said[rank]


def test_routes_sum_as_the_backend_does_and_ranks_of_a_host_are_neighbours(hosts):
    for result in succeed(Job(hosts, 2, workers.sums, interleaved=True).results(60)):
        assert result["hosts"] == ["node0", "node0", "node1", "node1"]
        assert result["nodes"] == ((0, 1), (2, 3))
        assert len(result["found"]) == 50 and not any(result["found"].values())


@pytest.mark.parametrize(
    ("how", "odd", "words"),
    [
        ("mesh", 0, "strategy.shard is 3, and 4 processes do not divide into groups of that size; it can be 1, 2, 4"),
        ("settings", 2, "seed is 1"),
        ("batches", 2, "the number of training samples is 44 there and 40 elsewhere"),
        ("dtypes", 2, "float64"),
    ],
)
def test_what_processes_disagree_on_is_refused_on_each_and_names_the_odd_one(hosts, tmp_path, how, odd, words):
    said = succeed(Job(hosts, 2, workers.train_unlike, str(tmp_path / "run"), odd, how).results(60))
    assert len(set(said)) == 1 and words in said[0]
    if how != "mesh":
        assert f"rank {odd} (on node1, process " in said[0] or f"process {odd} was started" in said[0]


def test_a_run_goes_on_after_torchrun_has_restarted_it(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys; from dataclasses import replace; from pathlib import Path\n"
        "from shared.engine.loop import fit; from shared.engine.run import Run; from shared.strategy import DDP\n"
        "from tests.shared.engine import line\n"
        "class Killed(line.Regression):\n"
        "    steps = 0\n"
        "    def loss(self, model, batch):\n"
        "        Killed.steps += 1\n"
        "        dies = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1'\n"
        "        if dies and Killed.steps == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().loss(model, batch)\n"
        "recipe = replace(line.recipe(Killed, steps=10), strategy=DDP(silence_s=4))\n"
        "fit(recipe, Run(Path(sys.argv[1]), 'line', 'line'), device='cpu', quiet=True)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    run = tmp_path / "run"
    done = subprocess.run(
        [*command, str(script), str(run)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    begun = [event for event in read_events(run / "events.jsonl") if event["event"] == "begin"]
    assert [event["step"] for event in begun] == [0, 5]
    assert json.loads((run / "result.json").read_text())["steps"] == 10
