"""Printing names from files to the terminal."""

from __future__ import annotations

import pytest

from shared.app import Table
from shared.cli.printing import print_line, print_table

HOSTILE_NAMES = ["[/foo]", "[bold]AAPL[/bold]", "\x1b]0;owned\x07\x1b[31mred", "[link=http://evil]y"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_markup_and_control_characters_in_a_name_have_no_effect(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table(title=name, columns=("series", name), rows=[[name, "1"]], notes=[name]))
    print_line(name)
    output = capsys.readouterr().out
    visible = name.replace("\x1b", "").replace("\x07", "")
    assert output.count(visible) == 5 and "\x1b" not in output and "\x07" not in output
