"""Dependencies of the protocol's routes, as annotated types."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shared.serve.oip.networks import NetworkModel, Networks


async def get_networks(request: Request) -> Networks:
    """The networks of the server."""
    networks: Networks = request.app.state.networks
    return networks


NetworksDep = Annotated[Networks, Depends(get_networks)]


async def get_live(networks: NetworksDep, name: str) -> NetworkModel:
    """The live version of the model that the path names."""
    return networks.find(name, None)


async def get_version(networks: NetworksDep, name: str, version: str) -> NetworkModel:
    """The version that the path names of the model that the path names."""
    return networks.find(name, version)


LiveDep = Annotated[NetworkModel, Depends(get_live)]
VersionDep = Annotated[NetworkModel, Depends(get_version)]
