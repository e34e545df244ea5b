"""Options of an application or an importer: ``--option name=value``."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidInputError


def named_options(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Parses the ``name=value`` words of each ``--option``; returns the values by name.

    Raises ``InvalidInputError`` for a word without ``=`` and for a name that is given twice.
    """
    options: dict[str, str] = {}
    for text in (text for group in groups for text in group):
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidInputError(f"--option {text}: write it as name=value")
        if name in options:
            raise InvalidInputError(f"--option {name} is given twice")
        options[name] = value
    return options
