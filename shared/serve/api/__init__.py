"""The JSON routes of the server."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute

from shared.serve.api import cases, jobs, predict, reviews
from shared.serve.api.deps import use
from shared.serve.api.schemas import REFUSED
from shared.serve.service import Service


def app_routes(service: Service) -> APIRouter:
    """The routes that every application has, as those of one, under /api/<name>."""
    name = service.app.name

    def operation_id(route: APIRoute) -> str:
        return f"{name}_{route.name}"

    router = APIRouter(
        prefix=f"/api/{name}",
        tags=[service.app.title],
        dependencies=[Depends(use(service))],
        responses=REFUSED,
        generate_unique_id_function=operation_id,
    )
    router.include_router(predict.router)
    router.include_router(cases.router)
    router.include_router(reviews.router)
    router.include_router(jobs.router)
    return router
