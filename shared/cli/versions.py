"""``trivium versions``: which versions a running server has, and which of them is live."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from shared.app import Table
from shared.cli.arguments import Versions
from shared.cli.printing import print_table
from shared.errors import InvalidInputError
from shared.job_client import connection_problem, credentials

_LONGEST_S = 600.0


def run(command: Versions) -> int:
    """Asks the server, and prints the versions that it has then."""
    wanted = [command.promote is not None, command.roll_back, command.retire is not None, command.reload]
    if sum(wanted) > 1:
        raise InvalidInputError("give one of --promote, --roll-back, --retire and --reload")
    if any(wanted) and not command.model:
        raise InvalidInputError("name the model, as in trivium versions pointpillars --promote 2")
    if not command.server.lower().startswith(("http://", "https://")):
        raise InvalidInputError(f"{command.server} is no address of a server; write it as http://127.0.0.1:8000")
    place = f"{command.server.rstrip('/')}/api/models"
    home = f"{place}/{quote(command.model, safe='')}"
    if command.promote is not None:
        found = [_ask(f"{home}/promote", {"version": command.promote})]
    elif command.retire is not None:
        found = [_ask(f"{home}/retire", {"version": command.retire})]
    elif command.roll_back or command.reload:
        found = [_ask(f"{home}/{'rollback' if command.roll_back else 'reload'}", {})]
    else:
        found = [one for one in _ask(place)["models"] if command.model in ("", one["model"])]
        if not found:
            raise InvalidInputError(f"{command.server} has no model {command.model!r}")
    rows = [(one["model"], version, stage) for one in found for version, stage in one["versions"].items()]
    print_table(Table(title=command.server, columns=("model", "version", "stage"), rows=rows))
    return 0


def _ask(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        for name, value in credentials().items():
            request.add_unredirected_header(name, value)
        # Of its own, for urlopen's keeps the certificates that its first call found.
        with urllib.request.build_opener().open(request, timeout=_LONGEST_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise InvalidInputError(f"{error.url}: {_sentence(error.read(), error)}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise InvalidInputError(f"{address} cannot be asked: {connection_problem(error)}") from error


def _sentence(content: bytes, error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}; is --server Trivium's address, with its path where it has one?"
