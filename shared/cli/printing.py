"""Prints tables and sentences to the terminal. Text from files is never read as markup or terminal control codes."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from shared.app import Table

console = Console()


def print_line(text: str) -> None:
    """Prints one line as it is, without wrapping."""
    console.print(_plain(text), soft_wrap=True, highlight=False)


def print_table(table: Table) -> None:
    """Prints a table, its notes and its further tables, as wide as the terminal, or 150 columns without one."""
    if table.title:
        print_line(table.title)
    shown = RichTable()
    for column in table.columns:
        shown.add_column(_plain(column), overflow="fold")
    for row in table.rows:
        shown.add_row(*map(_plain, row))
    (console if sys.stdout.isatty() else Console(width=150)).print(shown)
    for note in table.notes:
        print_line(note)
    for further in table.further:
        print_table(further)


def print_scores(title: str, scores: Mapping[str, float]) -> None:
    """Prints a table of scores by name."""
    rows = [(name, f"{value:.4g}") for name, value in scores.items()]
    print_table(Table(title=title, columns=("score", "value"), rows=rows))


def _plain(text: str) -> Text:
    """Removes control characters, which could move the cursor or set the window title."""
    return Text("".join(letter for letter in text if letter.isprintable() or letter == "\n"))
