"""``shared.launch``: torchrun's arguments, with the exit code of the training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import free_port
from tests.shared.line_app import install

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "done": (["true"], 0),
    "failed": (["sh", "-c", "exit 1"], 1),
    "killed": (["sh", "-c", "kill -9 $$$$"], 137),  # torchrun reads $$ as a dollar sign
    "refused": (["trivium", "train", "finance", "--recipe", "tiny", "--limits.batch", "0"], 2),
}


def launch(*words: str, site: Path = ROOT) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "shared.launch", *words]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{site}", "PATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def launches() -> dict[str, subprocess.Popen[str]]:
    """Launches each command in ``COMMANDS``, all at the same time, because each spends most of its time waiting."""
    words = ("--standalone", "--nproc-per-node", "1", "--no-python")
    return {name: launch(*words, *command) for name, (command, _) in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_exit_code_is_that_of_the_process_that_failed(
    launches: dict[str, subprocess.Popen[str]], name: str
) -> None:
    _, errors = launches[name].communicate(timeout=120)
    assert launches[name].returncode == COMMANDS[name][1], errors
    assert "Traceback" not in errors


def test_when_one_host_is_stopped_the_others_save_and_stop_too(tmp_path: Path) -> None:
    """As on Kubernetes, where one pod of a Job is evicted."""
    place = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    train = ["trivium", "train", "line", "--recipe", "tiny", "--device", "cpu", "--limits.patience", "1000"]
    train += ["--limits.steps", "100000", "--limits.log-every", "10", "--limits.validate-every", "100000"]
    train += ["--limits.checkpoint-every", "100000", "--out", str(tmp_path / "run")]
    site = install(tmp_path / "site")
    hosts = [launch(*place, "--node-rank", str(rank), "--no-python", *train, site=site) for rank in range(2)]
    try:
        assert hosts[0].stdout is not None
        assert any("step 10/100000" in line for line in hosts[0].stdout)
        hosts[1].send_signal(signal.SIGTERM)
        output = hosts[0].communicate(timeout=120)[0]
        hosts[1].communicate(timeout=120)
    finally:
        for host in hosts:
            host.terminate()
    assert [host.returncode for host in hosts] == [143, 143]
    assert "start the same command again to resume" in output
