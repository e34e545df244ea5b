"""The systemd units: systemd accepts their settings, and the command line accepts the commands that they start."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tyro

from shared.app import find
from shared.cli import arguments as commands
from shared.serve.settings import Settings

UNITS = sorted((Path(__file__).parents[1] / "deploy" / "systemd").glob("*.service"))
PROGRAM = "/opt/trivium/.venv/bin/trivium"


def service(unit: Path) -> dict[str, str]:
    """The settings in the unit's section ``[Service]``."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(unit.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def test_there_is_a_unit_for_the_server_and_one_for_the_gateway():
    assert [unit.stem for unit in UNITS] == ["trivium-gateway", "trivium-server"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_verifies_the_unit(unit, tmp_path):
    (tmp_path / unit.name).write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0 and unit.name not in completed.stdout + completed.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_starts_a_valid_command(unit):
    program, *words = shlex.split(service(unit)["ExecStart"])
    assert program == PROGRAM
    if words[-1] == "$TRIVIUM_GATEWAY":
        (example,) = [line for line in unit.read_text(encoding="utf-8").splitlines() if "TRIVIUM_GATEWAY=" in line]
        words[-1:] = shlex.split(example.partition("=")[2])
    parsed, rest = tyro.cli(commands.Command, prog="trivium", args=words, return_unknown_args=True)
    if isinstance(parsed, commands.Gateway):
        gateway = tyro.cli(find(parsed.app).gateway(), args=rest)
        assert (gateway.to, gateway.from_) == ("PACS@pacs.hospital:104", ("CT1", "PACS"))
        assert str(parsed.spool).startswith(f"/var/lib/{service(unit)['StateDirectory']}/")
    else:
        assert isinstance(parsed, commands.Serve) and rest == []


def test_the_server_unit_sets_its_folders_and_leaves_time_to_drain():
    (unit,) = [unit for unit in UNITS if unit.stem == "trivium-server"]
    settings = service(unit)
    environment = dict(word.split("=") for word in settings["Environment"].split())
    assert environment["TRIVIUM_STORE"].startswith(f"/var/lib/{settings['StateDirectory']}/")
    assert environment["XDG_CACHE_HOME"] == f"/var/cache/{settings['CacheDirectory']}"
    assert int(settings["TimeoutStopSec"]) >= Settings().drain_s + 5
