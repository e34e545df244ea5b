"""The JSON routes of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from fastapi.utils import generate_unique_id

from shared.serve.api import cases, jobs, predict, reviews
from shared.serve.api.deps import with_service
from shared.serve.api.schemas import INVALID_INPUT_RESPONSE
from shared.serve.service import Service

_ROUTERS = (predict.router, cases.router, reviews.router, jobs.router)


def app_routes(service: Service) -> APIRouter:
    """The routes that every application has, for the application of ``service``, under /api/<name>."""
    name = service.app.name
    router = APIRouter(
        prefix=f"/api/{name}",
        tags=[name],
        dependencies=[Depends(with_service(service))],
        responses=INVALID_INPUT_RESPONSE,
        generate_unique_id_function=lambda route: f"{name}_{route.name}",
    )
    for subrouter in _ROUTERS:
        router.include_router(subrouter)
    return router


def domain_operation_ids(app: str, domain: APIRouter) -> Callable[[APIRoute], str]:
    """A function that names the operations of an application's own routes, such as ``medical_cases``.

    Client generators turn these names into function names. If a name is already taken, FastAPI's default is used.
    """
    routes = (route for router in (*_ROUTERS, domain) for route in router.routes if isinstance(route, APIRoute))
    name_counts = Counter(route.name for route in routes if route.include_in_schema)
    return lambda route: f"{app}_{route.name}" if name_counts[route.name] == 1 else generate_unique_id(route)
