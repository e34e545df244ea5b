"""``trivium versions``: the versions of a running server's models, and which of them is live."""

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

_TIMEOUT_S = 600.0


def run(command: Versions) -> int:
    """Changes a version's stage if requested, and prints the versions and their stages."""
    actions = [command.promote is not None, command.roll_back, command.retire is not None, command.reload]
    if sum(actions) > 1:
        raise InvalidInputError("give one of --promote, --roll-back, --retire and --reload")
    if any(actions) and not command.model:
        raise InvalidInputError("name the model, as in trivium versions pointpillars --promote 2")
    if not command.server.lower().startswith(("http://", "https://")):
        raise InvalidInputError(f"{command.server} is not the address of a server; write it as http://127.0.0.1:8000")
    models_url = f"{command.server.rstrip('/')}/api/models"
    model_url = f"{models_url}/{quote(command.model, safe='')}"
    if command.promote is not None:
        models = [_request_json(f"{model_url}/promote", {"version": command.promote})]
    elif command.retire is not None:
        models = [_request_json(f"{model_url}/retire", {"version": command.retire})]
    elif command.roll_back or command.reload:
        models = [_request_json(f"{model_url}/{'rollback' if command.roll_back else 'reload'}", {})]
    else:
        models = [model for model in _request_json(models_url)["models"] if command.model in ("", model["model"])]
        if not models:
            raise InvalidInputError(f"{command.server} has no model {command.model!r}")
    rows = [(model["model"], version, stage) for model in models for version, stage in model["versions"].items()]
    print_table(Table(title=command.server, columns=("model", "version", "stage"), rows=rows))
    return 0


def _request_json(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        for name, value in credentials().items():
            request.add_unredirected_header(name, value)
        # A new opener each time: urlopen's default opener keeps the certificates found at its first call.
        with urllib.request.build_opener().open(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise InvalidInputError(f"{error.url}: {_error_detail(error.read(), error)}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise InvalidInputError(f"{address} cannot be reached: {connection_problem(error)}") from error


def _error_detail(content: bytes, error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}; is --server the address of Trivium, including its path if it has one?"
