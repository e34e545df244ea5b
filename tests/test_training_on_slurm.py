"""deploy/slurm/train.sbatch on a real Slurm with two nodes: what it starts, what it requeues, and exact resumption."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.cli.main import main
from tests.shared.line_app import install
from tests.shared.processes import run
from tests.shared.slurm import Slurm, running

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
TRAINING = (
    "line --recipe tiny --device cpu --precision fp32 --limits.steps 3000 --limits.log-every 100"
    " --limits.validate-every 1000 --limits.patience 1000 --limits.checkpoint-every 10000"
)
# Replaces python: records its arguments and environment, then waits, saves or exits as the job's variables say. Slurm
# signals sleep before this shell, so wait may return before the trap has run.
STUB = """#!/bin/bash
if [ -n "${WAITS:-}" ]; then trap 'exit 143' TERM; fi
if [ "$SLURM_PROCID" = 1 ]; then sleep "${SECOND_NODE_TAKES:-0}"; fi
echo "$SLURM_PROCID ${OMP_NUM_THREADS:-} $RUN $*" >> "$NOTES/$SLURM_JOB_ID"
if [ -n "${SAVES:-}" ]; then mkdir -p "$RUN/checkpoints/step-$RANDOM$RANDOM"; fi
if [ -n "${WAITS:-}" ]; then sleep 60 & wait; exit 143; fi
exit "${ENDS_WITH:-0}"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    yield from running()


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose python only records how it was started."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STUB)
    (tmp_path / "bin" / "python").chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NOTES": str(tmp_path)}


def submit(slurm: Slurm, folder: Path, *options: str, words: str = "finance", **environment: str) -> str:
    fixed = (f"--chdir={folder}", f"--output={folder}/out-%j", *options)
    return slurm.submit(*fixed, SCRIPT, *words.split(), **environment)


def records(folder: Path, job: str) -> list[list[str]]:
    """What the job's processes recorded: node rank, threads, run directory, and the words of the command."""
    return sorted(line.split(" ") for line in (folder / job).read_text().splitlines())


def test_each_node_starts_torchrun_with_its_rank(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    job = submit(slurm, tmp_path, "--cpus-per-task=4", words="finance --recipe small", PROCESSES="2", **stub)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    first, second = records(tmp_path, job)
    expected = "-P -m shared.launch --nnodes 2 --nproc-per-node 2 --node-rank {} --master-addr 127.0.0.1"
    ending = f"--no-python trivium train finance --recipe small --out runs/trivium-{job}"
    for rank, (number, threads, folder, *words) in enumerate((first, second)):
        assert (number, threads, folder) == (str(rank), "2", f"runs/trivium-{job}")
        assert " ".join(words).startswith(expected.format(rank)) and " ".join(words).endswith(ending)


def test_each_task_of_a_job_array_has_its_own_run_and_port(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    job = submit(slurm, tmp_path, "--array=3-4", "--nodes=1", **stub)
    slurm.wait(f"{job}_3")
    slurm.wait(f"{job}_4")
    lines = [line for path in tmp_path.iterdir() if path.name.isdecimal() for line in records(tmp_path, path.name)]
    assert {line[2] for line in lines} == {f"runs/trivium-{job}_3", f"runs/trivium-{job}_4"}
    assert len({line[line.index("--master-port") + 1] for line in lines}) == 2


def test_each_task_of_a_job_array_is_requeued_separately(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    """One of the tasks has the ID of the whole array as its SLURM_JOB_ID."""
    job = submit(slurm, tmp_path, "--array=1-2", "--nodes=1", WAITS="yes", **stub)
    wait_until(lambda: len([path for path in tmp_path.iterdir() if path.name.isdecimal()]) == 2)
    for task, other_task in ((f"{job}_1", f"{job}_2"), (f"{job}_2", f"{job}_1")):
        before = slurm.facts(other_task)["Restarts"]
        slurm.run("scancel", "--signal=TERM", task)
        facts = slurm.wait(task, restarts=1)
        ended = facts["JobState"], facts["ExitCode"], facts["Reason"], (tmp_path / f"out-{facts['JobId']}").read_text()
        assert facts["Restarts"] == "1", ended
        assert slurm.facts(other_task)["Restarts"] == before
    slurm.run("scancel", job)


@pytest.mark.parametrize(
    ("code", "saves", "requeued"),
    [(143, "", True), (138, "yes", True), (138, "", False), (2, "yes", False), (1, "yes", False), (0, "yes", False)],
)
def test_only_a_job_that_was_signalled_to_stop_is_requeued(
    slurm: Slurm, tmp_path: Path, stub: dict[str, str], code: int, saves: str, requeued: bool
) -> None:
    job = submit(slurm, tmp_path, "--nodes=1", SAVES=saves, ENDS_WITH=str(code), **stub)
    facts = slurm.wait(job, restarts=1)
    assert facts["Restarts"] == str(int(requeued))
    if requeued:
        slurm.run("scancel", job)
    else:
        assert facts["JobState"] == ("FAILED" if code else "COMPLETED") and facts["ExitCode"] == f"{code}:0"
    assert ("stopped before anything was saved" in (tmp_path / f"out-{job}").read_text()) == (code == 138 and not saves)


def test_a_node_that_ends_first_leaves_the_others_time_to_save(
    slurm: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    job = submit(slurm, tmp_path, SECOND_NODE_TAKES="3", ENDS_WITH="1", **stub)
    slurm.wait(job)
    assert len(records(tmp_path, job)) == 2, (tmp_path / f"out-{job}").read_text()


@pytest.mark.parametrize("program", ["squeue", "scontrol"])
def test_a_job_is_requeued_if_the_controller_does_not_answer_at_first(
    slurm: Slurm, tmp_path: Path, stub: dict[str, str], program: str
) -> None:
    busy = tmp_path / "bin" / program
    busy.write_text(f'#!/bin/bash\nmkdir "$NOTES/asked" && exit 1\nexec {shutil.which(program)} "$@"\n')
    busy.chmod(0o755)
    job = submit(slurm, tmp_path, "--nodes=1", ENDS_WITH="143", **stub)
    assert slurm.wait(job, restarts=1)["Restarts"] == "1"
    slurm.run("scancel", job)


def test_a_cancelled_job_is_not_requeued(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    job = submit(slurm, tmp_path, WAITS="yes", **stub)
    wait_until(lambda: (tmp_path / job).exists() and len(records(tmp_path, job)) == 2)
    slurm.run("scancel", job)
    facts = slurm.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")


def test_a_job_that_slurm_requeues_itself_is_requeued_once(slurm: Slurm, tmp_path: Path, stub: dict[str, str]) -> None:
    """The job is preempted without a grace time, so it has already ended when its script asks for its state."""
    job = submit(slurm, tmp_path, "--partition=no-grace", "--exclusive", WAITS="yes", **stub)
    wait_until(lambda: (tmp_path / job).exists() and len(records(tmp_path, job)) == 2)
    preempting_job = preempt(slurm)
    assert slurm.wait(job, restarts=1)["Restarts"] == "1"
    assert slurm.wait(preempting_job)["JobState"] == "COMPLETED"
    wait_until(lambda: len(records(tmp_path, job)) == 4)
    slurm.run("scancel", job)
    facts = slurm.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "1")


def preempt(slurm: Slurm) -> str:
    """Submits a short job with higher priority on both nodes; returns its ID."""
    return slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "true")


def train_by_command(folder: Path, site: Path) -> int:
    sys.path.insert(0, str(site))
    return main(["train", *TRAINING.split(), "--out", str(folder)])


@pytest.mark.timeout(1200)
def test_a_stopped_and_preempted_training_ends_with_the_same_weights(slurm: Slurm, tmp_path: Path) -> None:
    """The job's steps receive SIGUSR1, as before a time limit; later a job with higher priority causes a SIGTERM."""
    site = install(tmp_path / "site")
    assert run(train_by_command, tmp_path / "whole", site, limit_s=500) == [0, 0]
    # The real script, with the python and trivium of this environment.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHONPATH": f"{ROOT}:{site}", "OMP_NUM_THREADS": "1"}
    environment["RUN"] = str(tmp_path / "run")
    job = submit(slurm, tmp_path, "--exclusive", words=TRAINING, **environment)
    log = tmp_path / f"out-{job}"
    wait_until(lambda: log.exists() and "step 100/3000" in log.read_text())
    slurm.run("scancel", "--signal=USR1", job)
    slurm.wait(job, restarts=1)
    wait_until(lambda: ", learning rate" in log.read_text().partition("resumed from")[2])
    assert slurm.wait(preempt(slurm))["JobState"] == "COMPLETED"
    facts = slurm.wait(job, limit_s=500)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), log.read_text()
    assert log.read_text().count("start the same command again to resume") == 2
    for name in ("model.safetensors", "optimizer.safetensors"):
        uninterrupted, resumed = (
            load_file(tmp_path / folder / "checkpoints" / "step-00003000" / name) for folder in ("whole", "run")
        )
        assert uninterrupted.keys() == resumed.keys() and all(
            torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted
        )


def wait_until(condition: Callable[[], bool], limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the job did not reach the expected state in time"
        time.sleep(0.1)
