"""What holds for every answer, one concern a file, from the outside in."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from fastapi import FastAPI

from shared.serve.known_keys import KnownKeys
from shared.serve.metrics import Metrics
from shared.serve.middleware.access_log import AccessLog
from shared.serve.middleware.cross_site import CrossSiteWrites
from shared.serve.middleware.draining import Drain, Draining
from shared.serve.middleware.early_refusal import EarlyRefusal
from shared.serve.middleware.key_required import KeyRequired
from shared.serve.middleware.own_hosts import OwnHosts
from shared.serve.middleware.per_client import ClientPlaces, PerClient
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
    most_json_bytes: int,
    places: ClientPlaces,
    metrics: Metrics,
    keys: KnownKeys | None,
    root: str,
) -> None:
    """Wraps the server. It answers under the names in ``hosts``, under any where that is None.

    It wants one of the ``keys``, and none where that is None. ``root`` is the path that it is reached under.

    ``json_routes`` match the paths of applications' own routes that take JSON, of ``most_json_bytes``; there may come
    more until it serves.

    ``checks`` by path raise ``Busy`` where a request of a group of keys would not be admitted.
    """
    # The last that is added is the outermost.
    server.add_middleware(SmallBodies, own=json_routes, most_bytes=most_json_bytes, longest_s=deadline_s)
    server.add_middleware(CrossSiteWrites)
    server.add_middleware(OwnHosts, hosts=hosts)
    server.add_middleware(Draining, drain=drain)
    server.add_middleware(UnexpectedErrors)
    server.add_middleware(EarlyRefusal, checks=checks, deadline_s=deadline_s)
    server.add_middleware(PerClient, places=places)
    if keys is not None:
        server.add_middleware(KeyRequired, keys=keys)
    server.add_middleware(SecurityHeaders)
    server.add_middleware(AccessLog, metrics=metrics)
    if root:
        server.add_middleware(RootPath, root=root)
