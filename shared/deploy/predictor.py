"""What every door (command line, JSON route, form) calls: one predictor for each application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Files on local disk, as a person or a program handed them in, and options as text.

    ``files`` holds what was named: one file, several, or one directory. Uploaded files keep their names.
    ``seconds`` is how long the asker waits, so that what takes longer can be refused at once; None where nobody does.
    """

    files: tuple[Path, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What comes out, the same through every door.

    ``result`` is the content of ``result.json`` in JSON types; it is deterministic and holds no times or paths.
    ``picture`` is a PNG that a person can look at. ``files`` maps names (no folders) to content: outputs in the
    field's formats, and what the form's viewer reads. ``model`` is the name of the shipped model that answered, where
    an application has several.
    """

    result: dict[str, Any]
    picture: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)
    model: str | None = None


class Predictor(Protocol[Inputs, Outputs]):
    """Pure: the same request gives the same response. The server owns queue, batch and clock.

    ``decode`` raises ``Refusal`` for input that cannot be used. ``predict`` takes as many inputs as the server puts
    together, and returns as many outputs in the same order; a batch gives what its members would give alone.
    """

    def decode(self, request: Request) -> Inputs: ...

    def predict(self, batch: Sequence[Inputs]) -> Sequence[Outputs]: ...

    def encode(self, outputs: Outputs) -> Response: ...


def answer(predictor: Predictor[Any, Any], request: Request) -> Response:
    """One request through a predictor, without a server."""
    return predictor.encode(predictor.predict([predictor.decode(request)])[0])
