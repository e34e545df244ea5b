"""Dependencies of the routes, as annotated types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Header, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool

from shared.errors import InvalidInputError
from shared.serve.api.uploads import Upload, receive
from shared.serve.known_keys import GroupDep, require_operator
from shared.serve.middleware.accepted_hosts import LOOPBACK_NAMES
from shared.serve.runtime.connection import receive_body
from shared.serve.runtime.places import Place
from shared.serve.service import Service
from shared.serve.upload_folders import upload_folder
from shared.store.disk import raising_disk_full
from shared.store.records import Case, Origin

_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def with_service(service: Service) -> Callable[[Request], Awaitable[None]]:
    """A dependency for a router, which makes ``ServiceDep`` return this service in all its routes."""

    async def set_service(request: Request) -> None:
        request.state.service = service

    return set_service


async def get_service(request: Request) -> Service:
    """The service of the application that the path belongs to."""
    service: Service = request.state.service
    return service


async def get_services(request: Request) -> Mapping[str, Service]:
    """The services of all applications, by name."""
    services: Mapping[str, Service] = request.app.state.services
    return services


ServiceDep = Annotated[Service, Depends(get_service)]
ServicesDep = Annotated[Mapping[str, Service], Depends(get_services)]
LimitDep = Annotated[int, Query(ge=1, le=200, description="the maximum number of entries")]
BeforeDep = Annotated[str | None, Query(description="the id of the last entry of a page, to get the next page")]


async def get_operator(request: Request) -> None:
    """Admits operators or, on a server without keys, clients on the server's own machine; refuses others (403).

    A proxy on this machine is not admitted: it forwards requests of others, under another host name or with a header
    that says so.
    """
    if request.app.state.keys is not None:
        await require_operator(request)
        return
    client = request.client.host if request.client is not None else ""
    try:
        local = ip_address(client).is_loopback
    except ValueError:
        local = False
    host = request.headers.get("host", "").lower()
    loopback_host = not {host, host.rpartition(":")[0]}.isdisjoint(LOOPBACK_NAMES)
    if not (local and loopback_host) or any(name in request.headers for name in _PROXY_HEADERS):
        raise InvalidInputError(
            "this page is shown only on the server's own machine or, if keys are required, to operators", status=403
        )


def get_case(service: ServiceDep, case_id: str, group: GroupDep) -> Case:
    """The case that the path names. Refuses (404) a case that does not exist or that the client's key may not see."""
    return service.case(case_id, group)


CaseDep = Annotated[Case, Depends(get_case)]


async def get_origin(
    group: GroupDep, trivium_interface: Annotated[str | None, Header(include_in_schema=False)] = None
) -> Origin:
    """The interface and the group of a request."""
    return Origin("form" if trivium_interface == "form" else "json", group)


OriginDep = Annotated[Origin, Depends(get_origin)]


async def get_upload(request: Request, service: ServiceDep, group: GroupDep) -> AsyncIterator[Upload]:
    """The form of a request that is admitted before its body is read; refuses (503) without room.

    The request keeps its place until its answer is ready.
    """
    with service.admit(group) as place:
        async with _receive(request, service, place) as upload:
            yield upload


async def get_job_upload(request: Request, service: ServiceDep, group: GroupDep) -> AsyncIterator[Upload]:
    """The form of a job; refuses (503), before its body is read, if too many jobs wait."""
    await run_in_threadpool(service.check_room_for_jobs, group)
    with service.admit_job(group) as place:
        async with _receive(request, service, place) as upload:
            yield upload


UploadDep = Annotated[Upload, Depends(get_upload, scope="function")]
JobUploadDep = Annotated[Upload, Depends(get_job_upload, scope="function")]


@asynccontextmanager
async def _receive(request: Request, service: Service, place: Place) -> AsyncIterator[Upload]:
    """Streams the form's files to a folder, within the server's limits. A folder that nothing took over is removed."""
    settings = service.settings
    async with contextmanager_in_threadpool(upload_folder(settings.store, service.app.name)) as folder:
        with raising_disk_full("the upload cannot be stored"):
            upload = await receive(
                receive_body(request, settings, place),
                request.headers,
                folder,
                max_bytes=settings.max_upload_bytes,
                max_files=settings.max_files,
            )
        yield upload
