"""The command line accepts the commands in README and docs, with their settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

from shared.app import find, installed
from shared.cli import arguments as commands
from shared.cli.settings import parse_data, parse_recipe
from shared.cli.train import named_components
from shared.recipes import choose_recipe, named_data_set

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("apps/*/README.md")]


def documented() -> list[tuple[str, str]]:
    """The page and the command of each line in a code block that starts with ``trivium``."""
    found = []
    for page in sorted(PAGES):
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if command.startswith("trivium "):
                    found.append((str(page.relative_to(ROOT)), " ".join(shlex.split(command, comments=True)[1:])))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "command"), documented())
def test_the_command_line_accepts_documented_commands(page, command):
    words = [re.sub(r"^(N|NAME)$", "1", word) for word in command.split(" ")]
    parsed, rest = tyro.cli(commands.Command, prog="trivium", args=words, return_unknown_args=True)
    settings = [word for word in rest if word != "--"]
    if isinstance(parsed, commands.Train):
        app = find(parsed.app)
        recipe = choose_recipe(app, parsed.recipe)[1]
        data = None if parsed.data is None else named_data_set(app, parsed.data, recipe)
        parse_recipe(recipe, data, settings, "trivium train", named_components(parsed))
    elif isinstance(parsed, commands.Quantize) and parsed.data is not None:
        # The artifact names the application, but does not exist here: use the application that has the data set.
        apps = [app for app in installed().values() if parsed.data in app.data_sets()]
        parse_data(apps[0], parsed.data, settings, "")
    elif isinstance(parsed, commands.Evaluate | commands.Calibrate | commands.Import) and parsed.data is not None:
        parse_data(find(parsed.app), parsed.data, settings, "")
    elif isinstance(parsed, commands.Evaluate) and settings:
        # The result files that the applications' protocols take.
        assert {word for word in settings if word.startswith("--")} <= {
            *("--submission", "--annotations", "--excluded", "--series"),
            *("--results", "--labels", "--frames", "--scores"),
        }
    elif isinstance(parsed, commands.Gateway):
        tyro.cli(find(parsed.app).gateway(), prog="trivium gateway", args=settings)
    else:
        assert not settings


def test_readmes_and_docs_contain_commands():
    pages = {page for page, _ in documented()}
    assert {"README.md", "README.zh-CN.md", "docs/engineers.md", "docs/medical.md", "docs/driving.md"} <= pages
    english, chinese = ([c for page, c in documented() if page == name] for name in ("README.md", "README.zh-CN.md"))
    assert english == chinese


def test_the_two_readmes_have_the_same_figures():
    """The numbers of each table row, in any order: languages order them differently."""
    rows = []
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        table = [line for line in text.splitlines() if line.startswith("| ") and "`trivium reproduce" in line]
        rows.append([set(re.findall(r"\d+(?:\.\d+)?", line)) for line in table])
    assert len(rows[0]) == len(rows[1])
    for english, chinese in zip(*rows, strict=True):
        assert english == chinese
