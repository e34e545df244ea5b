"""Routes for model versions and their stages: promote, roll back, retire and reload, each in one call."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from shared.serve.api.schemas import Problem
from shared.serve.known_keys import OperatorOnly
from shared.serve.runtime.live_versions import LiveVersions
from shared.store.promotions import VersionStage

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such model, or no such version of it"},
    409: {"model": Problem, "description": "There is no earlier live version, or the version to retire is live"},
    422: {"model": Problem, "description": "The request, or the version's files, cannot be used"},
    503: {"model": Problem, "description": "The version cannot be loaded; the live version has not changed"},
}
router = APIRouter(prefix="/api/models", tags=["Server"])


class Versions(BaseModel):
    """The versions of a model, the oldest first, each with its stage."""

    model: str
    versions: dict[str, VersionStage] = Field(description="stage by version: candidate, live or retired")


class Models(BaseModel):
    """All models."""

    models: list[Versions]


class Promotion(BaseModel):
    """The version to promote or retire."""

    model_config = ConfigDict(strict=True)

    version: int = Field(ge=1, lt=2**31)


async def get_live_versions(request: Request) -> LiveVersions:
    """The object that changes which versions are served."""
    live_versions: LiveVersions = request.app.state.live_versions
    return live_versions


LiveVersionsDep = Annotated[LiveVersions, Depends(get_live_versions)]


@router.get("", operation_id="models")
async def models(live: LiveVersionsDep) -> Models:
    """The versions of every model, and their stages."""
    return Models(models=[await _versions(live, name) for name in live.models()])


@router.post("/{name}/promote", operation_id="promote", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def promote(name: str, promotion: Promotion, live: LiveVersionsDep) -> Versions:
    """Makes a version live after loading it beside the current one, which still answers the requests it has."""
    await live.promote(name, promotion.version)
    return await _versions(live, name)


@router.post("/{name}/rollback", operation_id="rollback", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def roll_back(name: str, live: LiveVersionsDep) -> Versions:
    """Makes the version live that was live before the last promotion, or before a reload found a newer version."""
    await live.roll_back(name)
    return await _versions(live, name)


@router.post("/{name}/retire", operation_id="retire", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def retire(name: str, promotion: Promotion, live: LiveVersionsDep) -> Versions:
    """Retires a version: its workers end after answering their requests, and a rollback does not return to it.

    The live version cannot be retired. A retired version can be promoted again.
    """
    await live.retire(name, promotion.version)
    return await _versions(live, name)


@router.post("/{name}/reload", operation_id="reload", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def reload(name: str, live: LiveVersionsDep) -> Versions:
    """Reads the registry again and replaces the model's workers; the old ones still answer the requests they have.

    A new version becomes live if no version was ever promoted; otherwise it is a candidate, which answers only requests
    that name its version.
    """
    await live.reload(name)
    return await _versions(live, name)


async def _versions(live: LiveVersions, name: str) -> Versions:
    return Versions(model=name, versions={str(v): stage for v, stage in (await live.stages(name)).items()})
