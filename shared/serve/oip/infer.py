"""The inference routes: tensors in, tensors out, with minimal overhead around a small network."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.known_keys import group_of
from shared.serve.oip.networks import NetworkModel, Networks
from shared.serve.oip.schemas import InferenceError
from shared.serve.openapi import file_content, header, header_parameter, request_body
from shared.serve.runtime.connection import receive_body, receive_body_into, while_connected
from shared.serve.runtime.models import uses_worker_processes
from shared.serve.runtime.places import Place
from shared.serve.worker.codec import BadTensor
from shared.serve.worker.messages import MAX_INLINE_BYTES, Blob, SharedBytes
from shared.serve.worker.schemas import InferenceRequest, InferenceResponse

_LENGTH_HEADER = "Inference-Header-Content-Length"
_DECOMPRESSED_CHUNK_BYTES = 1 << 16
_MAX_SEND_BYTES = 1 << 18
_MIN_BYTES_TO_COMPRESS = 1 << 14
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": InferenceError, "description": "The request does not fit the protocol or the model"},
    404: {"model": InferenceError, "description": "There is no such model, or it was unloaded"},
    408: {"model": InferenceError, "description": "The request arrived too slowly"},
    413: {"model": InferenceError, "description": "Too large"},
    415: {"model": InferenceError, "description": "The compression is neither gzip nor deflate"},
    422: {"model": InferenceError, "description": "The outputs cannot be written as JSON"},
    503: {"model": InferenceError, "description": "The server is at capacity, or the model cannot be loaded"},
    504: {"model": InferenceError, "description": "The deadline passed"},
}
_LENGTH_DESCRIPTION = "the length of the JSON part in bytes, if binary tensors follow it"
_SUCCESS: dict[int | str, dict[str, Any]] = {
    200: {
        **file_content("application/octet-stream"),
        "description": "JSON; if an output was requested as binary data, JSON followed by the tensors",
        "headers": header(_LENGTH_HEADER, _LENGTH_DESCRIPTION, "integer"),
    }
}


class DirectRoute(APIRoute):
    """A route that the OpenAPI document describes like any other, but that calls its endpoint directly.

    The endpoint gets the request and the path parameters as text. What FastAPI does besides for each request (search
    for the route in all routers, dependencies and their exit stacks, response fields) takes as long as a small network.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods and scope["method"] not in self.methods:
            await super().handle(scope, receive, send)  # 405
            return
        response: Response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)


def add_infer_routes(server: FastAPI) -> None:
    """Adds the routes to the server itself rather than to a router. Call it first: earlier routes are matched first."""
    body = request_body("application/json", InferenceRequest)
    body["requestBody"]["content"] |= file_content("application/octet-stream")["content"]
    shared: dict[str, Any] = {
        "methods": ["POST"],
        "route_class_override": DirectRoute,
        "tags": ["Open Inference Protocol"],
        "response_model": InferenceResponse,
        "responses": _SUCCESS | _PROBLEMS,
        "openapi_extra": {**body, "parameters": [header_parameter(_LENGTH_HEADER, _LENGTH_DESCRIPTION, "integer")]},
    }
    server.router.add_api_route("/v2/models/{name}/infer", infer, operation_id="oip_infer", **shared)
    versioned = "/v2/models/{name}/versions/{version}/infer"
    server.router.add_api_route(versioned, infer_version, operation_id="oip_infer_version", **shared)


async def infer(request: Request, name: str) -> Response:
    """Runs the network on tensors. If binary data follows the JSON part, a header gives the length of the JSON part."""
    networks: Networks = request.app.state.networks
    return await _answer(request, networks, networks.find(name, None))


async def infer_version(request: Request, name: str, version: str) -> Response:
    """Runs one version of the network on tensors, like the route without a version."""
    networks: Networks = request.app.state.networks
    return await _answer(request, networks, networks.find(name, version))


async def _answer(request: Request, networks: Networks, network: NetworkModel) -> Response:
    settings = networks.settings
    with (
        network.metrics.failures(),
        network.limit.admit(group_of(request.scope)) as place,
        networks.memory.reserve(place) as reserve,
        ExitStack() as stack,
    ):
        json_length = _json_length(request.headers.get(_LENGTH_HEADER), settings.max_json_bytes)
        body = await _receive_body(request, json_length, networks, network, place, reserve, stack)
        parts, binary = await while_connected(request, network.infer(body, json_length, place.group))
    headers = {_LENGTH_HEADER: str(len(parts[0]))} if binary else {}
    parts, compressed = await _compress(parts, request.headers.get("accept-encoding", ""))
    if compressed:
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    # Sending may take long, so the memory of the request is kept only if the answer is in it.
    held = body if isinstance(body, SharedBytes) and binary and not compressed else None
    return PartsResponse(parts, headers, "application/octet-stream" if binary else "application/json", held)


class PartsResponse(Response):
    """A response in parts, sent in small pieces, because what the socket does not take at once is copied repeatedly.

    ``held`` is referenced until everything is sent.
    """

    def __init__(self, parts: Sequence[Blob], headers: Mapping[str, str], media_type: str, held: object = None) -> None:
        size = sum(len(part) for part in parts)
        super().__init__(headers={**headers, "Content-Length": str(size)}, media_type=media_type)
        self._parts, self._size, self._held = parts, size, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        remaining = self._size
        for part in self._parts:
            for start in range(0, len(part), _MAX_SEND_BYTES):
                piece = memoryview(part)[start : start + _MAX_SEND_BYTES]
                remaining -= len(piece)
                # Some event loops do not copy what the socket has not taken yet, but keep a reference to it. At the end
                # this must not be the held memory, so the last pieces are copied. Anything beyond the size of the
                # loops' buffers is sent before the last message.
                copy = remaining < _MAX_SEND_BYTES and self._held is not None
                body = bytes(piece) if copy else piece
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _compress(parts: Sequence[Blob], accept_encoding: str) -> tuple[Sequence[Blob], bool]:
    """Compresses the answer with gzip if the client names it and the answer is large enough; also returns whether."""
    if sum(map(len, parts)) < _MIN_BYTES_TO_COMPRESS or not _accepts_gzip(accept_encoding):
        return parts, False
    return [await run_in_threadpool(gzip.compress, b"".join(parts), compresslevel=1)], True


def _accepts_gzip(accept_encoding: str) -> bool:
    """Whether Accept-Encoding names gzip with a weight other than 0, which would refuse it (RFC 9110, 12.5.3)."""
    for entry in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters)
    return False


async def _receive_body(
    request: Request,
    json_length: int | None,
    networks: Networks,
    network: NetworkModel,
    place: Place,
    reserve: Callable[[int], None],
    stack: ExitStack,
) -> bytearray | SharedBytes:
    """Receives the request's body. It calls ``reserve`` with the size, in advance if Content-Length gives it.

    A large body takes a turn, which ends when ``stack`` is closed. Raises ``InvalidInputError`` (413) above the limit.
    """
    settings = networks.settings
    max_bytes = settings.max_tensor_bytes
    if json_length is None and settings.max_json_bytes < max_bytes:
        max_bytes, too_large = settings.max_json_bytes, _too_much_json(settings.max_json_bytes)
    else:
        too_large = InvalidInputError(
            f"the request is larger than this server accepts ({max_bytes:,} bytes); send fewer rows at once, or "
            "increase TRIVIUM_MAX_TENSOR_BYTES",
            status=413,
        )
    decompress = _decompressor(request.headers.get("content-encoding", ""))
    content_length = request.headers.get("content-length", "")
    size_known = len(content_length) < 20 and content_length.isdecimal() and decompress is None
    if size_known and int(content_length) > max_bytes:
        raise too_large
    if size_known:
        reserve(int(content_length))
        return await _receive_sized_body(
            request, int(content_length), json_length or 0, networks, network, place, stack
        )
    body = bytearray()
    async for received in receive_body(request, settings, place):
        for chunk in [received] if decompress is None else decompress(received):
            if len(body) + len(chunk) > max_bytes:
                raise too_large
            reserve(len(chunk))
            body += chunk
    return body


async def _receive_sized_body(
    request: Request,
    size: int,
    json_length: int,
    networks: Networks,
    network: NetworkModel,
    place: Place,
    stack: ExitStack,
) -> bytearray | SharedBytes:
    """Receives a body of known size, which HTTP enforces; a large one into memory that a worker process can read."""
    settings = networks.settings
    if size < MAX_INLINE_BYTES or not uses_worker_processes(settings):
        body = bytearray()
        async for chunk in receive_body(request, settings, place):
            body += chunk
        return body
    turn, remaining = stack.enter_context(network.turns.join(place.group)), size
    with network.limit.held_back(place.group):
        await network.turns.wait(turn)
    shared = networks.shared_memory.take(size, json_length, network.room(size))
    async with aclosing(receive_body_into(request, shared.body, settings, place)) as received_sizes:
        async for received in received_sizes:
            remaining -= received
            if remaining > 0:
                with network.limit.held_back(place.group):
                    await network.turns.wait(turn)
    turn.is_complete = True
    if remaining:
        raise BadTensor(f"the body is {remaining} bytes shorter than the Content-Length")
    return shared


def _decompressor(encoding: str) -> Callable[[bytes], Iterator[bytes]] | None:
    """A function that decompresses a body in small chunks, so that its size can be limited; None if uncompressed."""
    if encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() not in ("gzip", "deflate"):
        raise InvalidInputError(f"the body's encoding {encoding[:40]!r} is neither gzip nor deflate", status=415)
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def decompress(data: bytes) -> Iterator[bytes]:
        try:
            while data:
                yield decompressor.decompress(data, _DECOMPRESSED_CHUNK_BYTES)
                data = decompressor.unconsumed_tail
        except zlib.error as error:
            raise BadTensor(f"the body cannot be decompressed: {error}") from error

    return decompress


def _json_length(value: str | None, max_bytes: int) -> int | None:
    """The length of the JSON part in bytes, from its header; None if there is no such header."""
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 19:
        raise BadTensor(f"{_LENGTH_HEADER} must be a number of bytes, not {value[:40]!r}")
    if int(value) > max_bytes:
        raise _too_much_json(max_bytes)
    return int(value)


def _too_much_json(max_bytes: int) -> InvalidInputError:
    return InvalidInputError(
        f"the request has more JSON than this server accepts ({max_bytes:,} bytes); send tensors as binary data "
        f"(binary_data_size, {_LENGTH_HEADER}), or increase TRIVIUM_MAX_JSON_BYTES",
        status=413,
    )
