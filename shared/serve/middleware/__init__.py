"""The ASGI middleware, one concern per file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from fastapi import FastAPI

from shared.serve.known_keys import KnownKeys
from shared.serve.metrics import Metrics
from shared.serve.middleware.accepted_hosts import AcceptedHosts
from shared.serve.middleware.access_log import AccessLog
from shared.serve.middleware.cross_site import CrossSiteWrites
from shared.serve.middleware.draining import Drain, Draining
from shared.serve.middleware.early_refusal import EarlyRefusal
from shared.serve.middleware.key_required import KeyRequired
from shared.serve.middleware.per_client import ClientLimit, PerClient
from shared.serve.middleware.root_path import RootPath
from shared.serve.middleware.security_headers import SecurityHeaders
from shared.serve.middleware.small_bodies import SmallBodies
from shared.serve.middleware.unexpected_errors import UnexpectedErrors


def add_middleware(
    server: FastAPI,
    *,
    hosts: Collection[str] | None,
    drain: Drain,
    checks: Mapping[str, Callable[[str | None], None]],
    deadline_s: float,
    json_routes: Sequence[re.Pattern[str]],
    max_json_bytes: int,
    client_limit: ClientLimit,
    metrics: Metrics,
    keys: KnownKeys | None,
    root: str,
) -> None:
    """Adds all middleware to the server.

    The server accepts the host names in ``hosts`` (None: any), requires one of the ``keys`` (None: no key), and is
    reached under the path ``root``.

    ``json_routes`` match the paths of the applications' own routes that accept JSON, of at most ``max_json_bytes``;
    patterns may be added until the server starts.

    ``checks`` raise ``Busy``, by path, if a request of a group of keys would not be admitted.
    """
    # The middleware that is added last is the outermost.
    server.add_middleware(SmallBodies, json_routes=json_routes, max_bytes=max_json_bytes, timeout_s=deadline_s)
    server.add_middleware(CrossSiteWrites)
    server.add_middleware(AcceptedHosts, hosts=hosts)
    server.add_middleware(Draining, drain=drain)
    server.add_middleware(UnexpectedErrors)
    server.add_middleware(EarlyRefusal, checks=checks, deadline_s=deadline_s)
    server.add_middleware(PerClient, limit=client_limit)
    if keys is not None:
        server.add_middleware(KeyRequired, keys=keys)
    server.add_middleware(SecurityHeaders)
    server.add_middleware(AccessLog, metrics=metrics)
    if root:
        server.add_middleware(RootPath, root=root)
