"""SIGTERM, SIGUSR1 and Ctrl-C, and the lines of a redirected log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from shared.engine import interruption
from shared.engine.loop import fit
from shared.engine.noise import seed_generators
from shared.engine.run import Run
from tests.shared.engine import line
from tests.shared.engine.line import ROOT, train, weights
from tests.shared.processes import run

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def interrupted_at(call, number):
    """A task that receives the signal ``number`` in call number ``call`` of its loss."""

    class Interrupted(line.Regression):
        calls = 0

        def loss(self, model, batch):
            Interrupted.calls += 1
            if Interrupted.calls == call:
                signal.raise_signal(number)
            return super().loss(model, batch)

    return Interrupted


@pytest.fixture(autouse=True)
def handlers_of_a_new_process():
    """Other tests in the same process may have left their handlers, and a signal without one ends the process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.mark.parametrize(
    ("number", "ends_as", "code"),
    [
        (signal.SIGTERM, SystemExit, (143,)),
        (signal.SIGUSR1, SystemExit, (138,)),
        (signal.SIGINT, KeyboardInterrupt, ()),
    ],
)
def test_a_signal_saves_a_checkpoint_of_the_current_step(tmp_path, capsys, number, ends_as, code):
    handlers = [signal.getsignal(signal_number) for signal_number in SIGNALS]
    train(tmp_path / "whole")
    with pytest.raises(ends_as) as raised:
        fit(line.recipe(interrupted_at(13, number)), Run(tmp_path / "run", "line", "line"), device="cpu")
    assert raised.value.args == code
    assert "stopped and saved at step 13; start the same command again to resume" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-00000013").is_dir()
    assert [signal.getsignal(signal_number) for signal_number in SIGNALS] == handlers
    assert train(tmp_path / "run").steps == 30
    for name, tensor in weights(tmp_path / "whole", 30).items():
        assert torch.equal(weights(tmp_path / "run", 30)[name], tensor)


def test_a_second_signal_ends_the_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "_REPEAT_WINDOW_S", 0.0)

    class Impatient(line.Regression):
        def loss(self, model, batch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Impatient)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_a_signal_that_is_forwarded_twice_counts_once(tmp_path):
    class Twice(line.Regression):
        def loss(self, model, batch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            return super().loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Twice)
    assert (tmp_path / "checkpoints" / "step-00000001").is_dir()


def test_the_command_exits_with_143_on_sigterm(tmp_path):
    code = (
        "import signal, sys; from apps.finance.task import ForecastTask; from shared.cli.main import main\n"
        "learn, calls = ForecastTask.loss, []\n"
        "def loss(self, model, batch):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: signal.raise_signal(signal.SIGTERM)\n"
        "    return learn(self, model, batch)\n"
        "ForecastTask.loss = loss\n"
        "sys.exit(main(['train', 'finance', '--recipe', 'tiny', '--device', 'cpu', '--out', sys.argv[1]]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 143, completed.stderr
    assert "stopped and saved at step 2; start the same command again to resume" in completed.stdout
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_a_run_in_a_thread_does_not_handle_signals(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path, steps=5)))
    thread.start()
    thread.join()
    assert results[0].steps == 5


def train_until_told(path):
    """The second process receives a signal in its third step. Returns the exit of each process."""
    with pytest.raises(SystemExit) as ended:
        train(path, interrupted_at(3, 15) if os.environ["RANK"] == "1" else line.Regression, checkpoint_every=100)
    return ended.value.code


def test_all_processes_stop_at_the_same_step_if_one_receives_a_signal(tmp_path):
    assert run(train_until_told, tmp_path / "run") == [143, 143]
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    # They poll on the next logging step at the latest.
    assert saved.name in {"step-00000003", "step-00000004", "step-00000005"}


def test_a_redirected_log_has_a_line_for_every_logging_step(tmp_path):
    code = "import sys; from tests.shared.engine import line; from pathlib import Path\n"
    code += "from shared.engine.loop import fit; from shared.engine.run import Run\n"
    code += "fit(line.recipe(), Run(Path(sys.argv[1]), 'line', 'quick'), device='cpu')\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=environment, capture_output=True, text=True, check=True
    )
    lines = completed.stdout.splitlines()
    assert lines[0] == "line quick: on cpu, fp32, set in the recipe"
    assert [row.split(":")[1].strip() for row in lines if " loss " in row and "/30" in row] == [
        f"step {step}/30, epoch {-(-step // 10)}/3" for step in range(5, 31, 5)
    ]
    assert any(row.startswith("line quick: step 10 validated, loss ") for row in lines)


def test_seeding_the_generators_matches_manual_seed():
    for seed in (0, 1, 2**63 - 1):
        torch.manual_seed(seed)
        expected = torch.rand(5), torch.randn(5), torch.randperm(9)
        torch.manual_seed(99)
        seed_generators(seed, torch.device("cpu"))
        assert all(map(torch.equal, expected, (torch.rand(5), torch.randn(5), torch.randperm(9))))
