"""``trivium serve``."""

from __future__ import annotations

from shared.cli.arguments import Serve
from shared.errors import InvalidInputError


def run(command: Serve) -> int:
    """Serves the applications until interrupted."""
    try:
        from shared.serve.server import run as serve
        from shared.serve.settings import read_settings
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"serving needs the package {error.name}; install trivium[serve]") from error

    settings = read_settings(
        host=command.host,
        port=command.port,
        grpc_port=command.grpc_port,
        tls_cert=command.tls_cert,
        tls_key=command.tls_key,
        registry=command.registry,
        device=command.device,
        program=command.program,
        store=command.store,
        keep_inputs=command.keep_inputs or None,
    )
    serve(settings, demo=command.demo)
    return 0
