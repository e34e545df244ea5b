"""The units for systemd: what they set is understood by systemd, and what they start by the command line."""

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
    """What the unit sets under ``[Service]``."""
    read = configparser.ConfigParser(interpolation=None)
    read.optionxform = str
    read.read_string(unit.read_text(encoding="utf-8"))
    return dict(read["Service"])


def test_there_is_one_for_the_server_and_one_for_the_gateway():
    assert [unit.stem for unit in UNITS] == ["trivium-gateway", "trivium-server"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_no_fault(unit, tmp_path):
    (tmp_path / unit.name).write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and unit.name not in said.stdout + said.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_is_started_is_a_command(unit):
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


def test_the_server_has_its_store_in_its_folder_and_the_time_to_drain():
    (unit,) = [unit for unit in UNITS if unit.stem == "trivium-server"]
    stated = service(unit)
    set_there = dict(word.split("=") for word in stated["Environment"].split())
    assert set_there["TRIVIUM_STORE"].startswith(f"/var/lib/{stated['StateDirectory']}/")
    assert set_there["XDG_CACHE_HOME"] == f"/var/cache/{stated['CacheDirectory']}"
    assert int(stated["TimeoutStopSec"]) >= Settings().drain_s + 5
