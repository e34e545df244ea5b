"""The JSON routes of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from fastapi.utils import generate_unique_id

from shared.serve.api import cases, jobs, predict, reviews
from shared.serve.api.deps import use
from shared.serve.api.schemas import REFUSED
from shared.serve.service import Service

_ROUTERS = (predict.router, cases.router, reviews.router, jobs.router)


def app_routes(service: Service) -> APIRouter:
    """The routes that every application has, as those of one, under /api/<name>."""
    name = service.app.name
    router = APIRouter(
        prefix=f"/api/{name}",
        tags=[name],
        dependencies=[Depends(use(service))],
        responses=REFUSED,
        generate_unique_id_function=lambda route: f"{name}_{route.name}",
    )
    for one in _ROUTERS:
        router.include_router(one)
    return router


def domain_operation_ids(app: str, domain: APIRouter) -> Callable[[APIRoute], str]:
    """What names the operations of an application's own routes as those of every application are: ``medical_cases``.

    Generators of clients make functions of these names. A name that is there already gives way to FastAPI's.
    """
    routes = (route for one in (*_ROUTERS, domain) for route in one.routes if isinstance(route, APIRoute))
    named = Counter(route.name for route in routes if route.include_in_schema)
    return lambda route: f"{app}_{route.name}" if named[route.name] == 1 else generate_unique_id(route)
