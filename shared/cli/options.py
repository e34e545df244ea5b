"""Options of an application or an importer: ``--option name=value``."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidInputError


def named_options(given: Sequence[Sequence[str]]) -> dict[str, str]:
    """The values by name, of what stands behind each ``--option``; refuses one that is given twice."""
    options: dict[str, str] = {}
    for text in (text for together in given for text in together):
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidInputError(f"--option {text}: write it as name=value")
        if name in options:
            raise InvalidInputError(f"--option {name} is given twice")
        options[name] = value
    return options
