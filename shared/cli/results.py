"""What ``trivium predict`` prints of a result: its sentences, and a table of the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shared.app import App, Table

_MAX_ROWS = 10
_SENTENCE_FIELDS = ("remarks", "notes")


def result_table(app: App, result: Mapping[str, Any]) -> Table | None:
    """The application's own table, or a table of the first list of objects in ``result``; None without such a list."""
    if app.result_table is not None:
        return app.result_table(result)
    lists = {name: value for name, value in result.items() if isinstance(value, list) and name not in _SENTENCE_FIELDS}
    for name, items in lists.items():
        if all(isinstance(item, dict) for item in items):
            return _table(f"{app.title}: {name}: {len(items)}", items)
    return None


def _table(title: str, items: list[dict[str, Any]]) -> Table:
    shown = items[:_MAX_ROWS]
    names = dict.fromkeys(name for item in items for name in item)
    columns = [name for name in names if any(_fits_in_cell(item.get(name)) for item in items)]
    return Table(
        title=title + (f", the first {_MAX_ROWS} shown" if len(items) > _MAX_ROWS else ""),
        columns=columns,
        rows=[[_format_value(item.get(name)) for name in columns] for item in shown],
    )


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields the sentences of a result's ``remarks`` and ``notes``, at any depth."""
    for name, value in result.items():
        if name in _SENTENCE_FIELDS and isinstance(value, list):
            yield from (str(sentence) for sentence in value)
        elif isinstance(value, dict):
            yield from sentences(value)


def _fits_in_cell(value: object) -> bool:
    return value is not None and (not isinstance(value, (dict, list)) or len(value) <= 3)


def _format_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list):
        return ", ".join(_format_value(item) for item in value)
    return str(value)
