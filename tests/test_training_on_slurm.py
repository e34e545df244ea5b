"""deploy/slurm/train.sbatch on a real Slurm of two nodes: what it starts, what it queues again, and exact going on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.cli.main import main
from tests.shared.processes import run
from tests.shared.slurm import Slurm, running

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
TRAINING = "finance --recipe tiny --device cpu --limits.patience 1000 --limits.steps 200 --limits.checkpoint-every 1000"
# In the place of python: notes what it was started with, and does what the job's variables say.
STUB = """#!/bin/bash
if [ -n "${WAITS:-}" ]; then trap 'exit 143' TERM; fi
echo "$SLURM_PROCID ${OMP_NUM_THREADS:-} $RUN $*" >> "$NOTES/$SLURM_JOB_ID"
if [ -n "${SAVES:-}" ]; then mkdir -p "$RUN/checkpoints/step-$RANDOM$RANDOM"; fi
if [ -n "${WAITS:-}" ]; then sleep 60 & wait; fi
exit "${ENDS_WITH:-0}"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    yield from running()


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose python only notes how it was started."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STUB)
    (tmp_path / "bin" / "python").chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NOTES": str(tmp_path)}


def submitted(slurm: Slurm, folder: Path, *options: str, words: str = "finance", **environment: str) -> str:
    fixed = (f"--chdir={folder}", f"--output={folder}/out-%j", *options)
    return slurm.submit(*fixed, SCRIPT, *words.split(), **environment)


def notes(folder: Path, job: str) -> list[list[str]]:
    """What the job's processes noted: node, threads, run, and the words of the command."""
    return sorted(line.split(" ") for line in (folder / job).read_text().splitlines())


def test_each_node_starts_torchrun_with_its_place(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    job = submitted(slurm, tmp_path, "--cpus-per-task=4", words="finance --recipe small", PROCESSES="2", **stub)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    first, second = notes(tmp_path, job)
    expected = "-P -m shared.launch --nnodes 2 --nproc-per-node 2 --node-rank {} --master-addr 127.0.0.1"
    ending = f"--no-python trivium train finance --recipe small --out runs/trivium-{job}"
    for rank, (number, threads, folder, *words) in enumerate((first, second)):
        assert (number, threads, folder) == (str(rank), "2", f"runs/trivium-{job}")
        assert " ".join(words).startswith(expected.format(rank)) and " ".join(words).endswith(ending)


def test_the_tasks_of_an_array_have_runs_and_ports_of_their_own(
    slurm: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    job = submitted(slurm, tmp_path, "--array=3-4", "--nodes=1", **stub)
    slurm.wait(f"{job}_3")
    slurm.wait(f"{job}_4")
    lines = [line for path in tmp_path.iterdir() if path.name.isdecimal() for line in notes(tmp_path, path.name)]
    assert {line[2] for line in lines} == {f"runs/trivium-{job}_3", f"runs/trivium-{job}_4"}
    assert len({line[line.index("--master-port") + 1] for line in lines}) == 2


def test_each_task_of_an_array_is_queued_again_by_itself(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    """Slurm gives one of the tasks the number of the whole array as its SLURM_JOB_ID."""
    job = submitted(slurm, tmp_path, "--array=1-2", "--nodes=1", WAITS="yes", **stub)
    until(lambda: len([path for path in tmp_path.iterdir() if path.name.isdecimal()]) == 2)
    for task, other in ((f"{job}_1", f"{job}_2"), (f"{job}_2", f"{job}_1")):
        before = slurm.facts(other)["Restarts"]
        slurm.tell("scancel", "--signal=TERM", task)
        assert slurm.wait(task, restarts=1)["Restarts"] == "1"
        assert slurm.facts(other)["Restarts"] == before
    slurm.tell("scancel", job)


@pytest.mark.parametrize(
    ("code", "saves", "again"),
    [(143, "", True), (138, "yes", True), (138, "", False), (2, "yes", False), (1, "yes", False), (0, "yes", False)],
)
def test_only_a_job_that_was_told_to_stop_is_queued_again(
    slurm: Slurm, tmp_path: Path, stub: dict[str, str], code: int, saves: str, again: bool
) -> None:
    job = submitted(slurm, tmp_path, "--nodes=1", SAVES=saves, ENDS_WITH=str(code), **stub)
    facts = slurm.wait(job, restarts=1)
    assert facts["Restarts"] == str(int(again))
    if again:
        slurm.tell("scancel", job)
    else:
        assert facts["JobState"] == ("FAILED" if code else "COMPLETED") and facts["ExitCode"] == f"{code}:0"
    assert ("stopped before anything was saved" in (tmp_path / f"out-{job}").read_text()) == (code == 138 and not saves)


def test_a_job_that_is_cancelled_stays_so(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    job = submitted(slurm, tmp_path, WAITS="yes", **stub)
    until(lambda: (tmp_path / job).exists() and len(notes(tmp_path, job)) == 2)
    slurm.tell("scancel", job)
    facts = slurm.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")


def test_a_job_that_slurm_itself_queues_again_is_so_once(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    """It gives way to another without a grace time, so that it has ended already when its script looks."""
    job = submitted(slurm, tmp_path, "--partition=no-grace", "--exclusive", WAITS="yes", **stub)
    until(lambda: (tmp_path / job).exists() and len(notes(tmp_path, job)) == 2)
    other = preempt(slurm)
    assert slurm.wait(job, restarts=1)["Restarts"] == "1"
    assert slurm.wait(other)["JobState"] == "COMPLETED"
    until(lambda: len(notes(tmp_path, job)) == 4)
    slurm.tell("scancel", job)
    facts = slurm.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "1")


def preempt(slurm: Slurm) -> str:
    """Submits a short job of a higher priority, on both nodes."""
    return slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "true")


def train_by_command(folder: Path) -> int:
    return main(["train", *TRAINING.split(), "--out", str(folder)])


@pytest.mark.timeout(600)
def test_a_training_that_was_stopped_and_preempted_is_the_same_training(slurm: Slurm, tmp_path: Path) -> None:
    """SIGUSR1 comes as before a time limit, to the job's steps; then a job of more priority, with SIGTERM."""
    assert run(train_by_command, tmp_path / "whole", limit_s=200) == [0, 0]
    # The script itself, with trivium's own commands: those of this Python.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RUN": str(tmp_path / "run")}
    job = submitted(slurm, tmp_path, "--exclusive", words=TRAINING, **environment)
    log = tmp_path / f"out-{job}"
    until(lambda: log.exists() and "step 10/200" in log.read_text())
    slurm.tell("scancel", "--signal=USR1", job)
    slurm.wait(job, restarts=1)
    until(lambda: log.read_text().count("step 30/200") == 1)
    assert slurm.wait(preempt(slurm))["JobState"] == "COMPLETED"
    facts = slurm.wait(job, limit_s=200)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), log.read_text()
    assert log.read_text().count("start the same command again to resume") == 2
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole, resumed = (
            load_file(tmp_path / one / "checkpoints" / "step-00000200" / name) for one in ("whole", "run")
        )
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the job did not come so far"
        time.sleep(0.1)
