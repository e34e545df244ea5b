"""A network that exceeds the memory is refused while it is built; a large one is reported."""

from dataclasses import replace
from pathlib import Path

import pytest

from shared import machine_memory
from shared.engine import network_size
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from tests.shared.engine.line import Network, recipe


def test_a_network_larger_than_the_memory_is_refused_while_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_size, "machine_memory_bytes", lambda: 1000)
    with pytest.raises(InvalidInputError, match=r"too large .* weights and their gradients .* \(100, 2\).*--model"):
        fit(replace(recipe(), model=Network(width=100)), Run(tmp_path / "run", "line", "line"), device="cpu")


def test_a_large_network_is_reported_while_it_is_built_and_a_small_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(recipe(), Run(tmp_path / "small", "line", "line"), device="cpu")
    assert "the network is large" not in capsys.readouterr().out
    monkeypatch.setattr(network_size, "LARGE_BYTES", 10)
    fit(recipe(), Run(tmp_path / "large", "line", "line"), device="cpu")
    output = capsys.readouterr().out
    assert (
        output.index("the network is large") < output.index("the same again for the gradients") < output.index("step ")
    )


def test_the_memory_of_this_machine_is_known() -> None:
    found = machine_memory.machine_memory_bytes()
    assert found is not None and found > 2**28
