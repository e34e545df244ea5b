"""What the routes of the protocol depend on, as annotated types."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shared.serve.oip.networks import NetworkModel, Networks


async def get_networks(request: Request) -> Networks:
    """The networks of the server."""
    networks: Networks = request.app.state.networks
    return networks


NetworksDep = Annotated[Networks, Depends(get_networks)]


async def get_newest(networks: NetworksDep, name: str) -> NetworkModel:
    """The live version of the model that the path names."""
    return networks.find(name, None)


async def get_version(networks: NetworksDep, name: str, version: str) -> NetworkModel:
    """The version of a model that the path names."""
    return networks.find(name, version)


NewestDep = Annotated[NetworkModel, Depends(get_newest)]
VersionDep = Annotated[NetworkModel, Depends(get_version)]
