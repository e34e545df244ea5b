"""The versions of the models and their stages: which one is live, promoted, rolled back and reloaded in one call."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from shared.serve.api.schemas import Problem
from shared.serve.known_keys import OperatorOnly
from shared.serve.runtime.live_versions import LiveVersions
from shared.store.promotions import Stage

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such model, or no such version of it"},
    409: {"model": Problem, "description": "No version was live before, or the one to retire is live"},
    422: {"model": Problem, "description": "The request, or the version's files, cannot be used"},
    503: {"model": Problem, "description": "The version cannot be loaded; the one that was live still is"},
}
router = APIRouter(prefix="/api/models", tags=["Server"])


class Versions(BaseModel):
    """The versions of a model, the oldest first, each with its stage."""

    model: str
    versions: dict[str, Stage] = Field(description="stage by version: candidate, live or retired")


class Models(BaseModel):
    """All models."""

    models: list[Versions]


class Promotion(BaseModel):
    """Which version is to be live, or retired."""

    model_config = ConfigDict(strict=True)

    version: int = Field(ge=1, lt=2**31)


async def get_live_versions(request: Request) -> LiveVersions:
    """What changes the versions that are served."""
    found: LiveVersions = request.app.state.live_versions
    return found


LiveVersionsDep = Annotated[LiveVersions, Depends(get_live_versions)]


@router.get("", operation_id="models")
async def models(live: LiveVersionsDep) -> Models:
    """Every model's versions and their stages."""
    return Models(models=[await _versions(live, name) for name in live.models()])


@router.post("/{name}/promote", operation_id="promote", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def promote(name: str, wanted: Promotion, live: LiveVersionsDep) -> Versions:
    """Makes a version the live one, once it is loaded beside the one that was, which answers what it was given."""
    await live.promote(name, wanted.version)
    return await _versions(live, name)


@router.post("/{name}/rollback", operation_id="rollback", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def roll_back(name: str, live: LiveVersionsDep) -> Versions:
    """Makes the version live again that was before the last promotion, or before a reload took up a newer one."""
    await live.roll_back(name)
    return await _versions(live, name)


@router.post("/{name}/retire", operation_id="retire", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def retire(name: str, wanted: Promotion, live: LiveVersionsDep) -> Versions:
    """Takes a version out of use: its workers end once they have answered, and it is not rolled back to.

    The live version cannot be retired. One that was retired can be promoted again.
    """
    await live.retire(name, wanted.version)
    return await _versions(live, name)


@router.post("/{name}/reload", operation_id="reload", responses=_PROBLEMS, dependencies=[OperatorOnly])
async def reload(name: str, live: LiveVersionsDep) -> Versions:
    """Reads the registry again, and has new workers take the place of the model's, which answer what they were given.

    A new version becomes live where none was ever promoted; else it is a candidate, which answers by its number.
    """
    await live.reload(name)
    return await _versions(live, name)


async def _versions(live: LiveVersions, name: str) -> Versions:
    return Versions(model=name, versions={str(v): stage for v, stage in (await live.stages(name)).items()})
