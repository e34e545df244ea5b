"""The text of a resolved configuration, as mmengine writes it into a checkpoint and into ``work_dirs``: literals alone.

A configuration is a Python program; what mmengine dumps (``Config.pretty_text``) assigns literals. It is read as a
syntax tree, nothing of it is executed, and what is no literal is refused.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

from shared.errors import InvalidInputError

_MAX_CHARACTERS = 1_000_000
_DEEPEST = 60
_NUMBERS = {"inf": math.inf, "nan": math.nan}
"""How Python writes the numbers that are no literals."""


def read_config_text(text: str, name: str) -> dict[str, Any]:
    """The values of a dump by the names that they are assigned to, tuples as lists; ``name`` says whose text it is.

    Raises ``InvalidInputError`` with the line of what is no literal, ``dict(...)`` or ``float('inf')``.
    """
    if len(text) > _MAX_CHARACTERS:
        raise InvalidInputError(f"the configuration in {name} has {len(text)} characters; at most a million are read")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(
            f"the configuration in {name} cannot be read: {str(error) or type(error).__name__}; expected is the text "
            "that mmengine writes of a resolved one"
        ) from error
    found = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                found[key] = _value(value, name, 0)
            case _:
                raise _refused(statement, name)
    return found


def _value(node: ast.expr, name: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise InvalidInputError(f"the configuration in {name} is nested deeper than {_DEEPEST} levels")
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=word) if word in _NUMBERS:
            return _NUMBERS[word]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _value(operand, name, depth + 1)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, name, depth + 1) for part in parts]
        case ast.Dict(keys=keys, values=values):
            return _pairs(node, keys, values, name, depth)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            names = [None if word.arg is None else ast.Constant(word.arg) for word in keywords]
            return _pairs(node, names, [word.value for word in keywords], name, depth)
        case ast.Call(func=ast.Name(id="dict"), args=[ast.Dict(keys=keys, values=values)], keywords=[]):
            return _pairs(node, keys, values, name, depth)
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(word))], keywords=[]):
            if word.lstrip("+-") in _NUMBERS:
                return float(word)
    raise _refused(node, name)


def _pairs(
    node: ast.expr, keys: Sequence[ast.expr | None], values: Sequence[ast.expr], name: str, depth: int
) -> dict[str, Any]:
    """A dictionary; its keys are strings, numbers among them written out as JSON does."""
    found = {}
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str | int):
            raise _refused(node, name)
        found[str(key.value)] = _value(value, name, depth + 1)
    return found


def _refused(node: ast.stmt | ast.expr, name: str) -> InvalidInputError:
    return InvalidInputError(
        f"line {node.lineno} of the configuration in {name} is no literal ({type(node).__name__}), and nothing in it "
        "is executed; give the resolved one, which mmengine writes into the checkpoint and into work_dirs"
    )
