"""Parses the text of a resolved configuration, as mmengine writes it into checkpoints and ``work_dirs``.

A configuration is a Python program, but mmengine's dump (``Config.pretty_text``) only assigns literals. The text is
parsed as a syntax tree; nothing in it is executed, and anything but literals is refused.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

from shared.errors import InvalidInputError

_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 60
_NON_LITERAL_NUMBERS = {"inf": math.inf, "nan": math.nan}
"""Numbers that Python writes as names, not as literals."""


def read_config_text(text: str, name: str) -> dict[str, Any]:
    """The assigned values of a dump by name, with tuples as lists; ``name`` is the file's name for error messages.

    Raises ``InvalidInputError`` with the line of anything but literals, ``dict(...)`` and ``float('inf')``.
    """
    if len(text) > _MAX_CHARACTERS:
        raise InvalidInputError(f"the configuration in {name} has {len(text)} characters; at most a million are read")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(
            f"the configuration in {name} cannot be read: {str(error) or type(error).__name__}; expected the text "
            "that mmengine writes for a resolved one"
        ) from error
    values = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                values[key] = _parse_value(value, name, 0)
            case _:
                raise _refusal(statement, name)
    return values


def _parse_value(node: ast.expr, name: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"the configuration in {name} is nested deeper than {_MAX_DEPTH} levels")
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=word) if word in _NON_LITERAL_NUMBERS:
            return _NON_LITERAL_NUMBERS[word]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _parse_value(operand, name, depth + 1)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_parse_value(part, name, depth + 1) for part in parts]
        case ast.Dict(keys=keys, values=values):
            return _parse_pairs(node, keys, values, name, depth)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            names = [None if word.arg is None else ast.Constant(word.arg) for word in keywords]
            return _parse_pairs(node, names, [word.value for word in keywords], name, depth)
        case ast.Call(func=ast.Name(id="dict"), args=[ast.Dict(keys=keys, values=values)], keywords=[]):
            return _parse_pairs(node, keys, values, name, depth)
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(word))], keywords=[]):
            if word.lstrip("+-") in _NON_LITERAL_NUMBERS:
                return float(word)
    raise _refusal(node, name)


def _parse_pairs(
    node: ast.expr, keys: Sequence[ast.expr | None], values: Sequence[ast.expr], name: str, depth: int
) -> dict[str, Any]:
    """A dictionary with string keys; integer keys are converted to strings, as in JSON."""
    pairs = {}
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str | int):
            raise _refusal(node, name)
        pairs[str(key.value)] = _parse_value(value, name, depth + 1)
    return pairs


def _refusal(node: ast.stmt | ast.expr, name: str) -> InvalidInputError:
    return InvalidInputError(
        f"line {node.lineno} of the configuration in {name} is not a literal ({type(node).__name__}), and nothing "
        "in it is executed; give the resolved one, which mmengine writes into the checkpoint and into work_dirs"
    )
