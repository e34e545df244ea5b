"""The routes that infer: tensors in, tensors out, with next to nothing around a small network."""

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
from shared.serve.runtime.connection import receive_into, while_connected, within_upload_limits
from shared.serve.runtime.models import processes_wanted
from shared.serve.runtime.places import Place
from shared.serve.worker.codec import BadTensor
from shared.serve.worker.messages import MAX_INLINE, Blob, SharedBytes
from shared.serve.worker.schemas import InferenceRequest, InferenceResponse

_LENGTH = "Inference-Header-Content-Length"
_MAX_CHUNK = 1 << 16
_MAX_SENT = 1 << 18
_MIN_PACKED = 1 << 14
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": InferenceError, "description": "The request does not fit the protocol or the model"},
    404: {"model": InferenceError, "description": "There is no such model, or it was unloaded"},
    408: {"model": InferenceError, "description": "The request came too slowly"},
    413: {"model": InferenceError, "description": "Too large"},
    415: {"model": InferenceError, "description": "Compressed in another way than gzip or deflate"},
    422: {"model": InferenceError, "description": "The outputs cannot be written as JSON"},
    503: {"model": InferenceError, "description": "There is no room, or the model cannot be loaded"},
    504: {"model": InferenceError, "description": "The deadline passed"},
}
_LENGTH_WORDS = "how many bytes the JSON part has, where binary tensors follow it"
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        **file_content("application/octet-stream"),
        "description": "JSON, or where an output is wanted as binary data JSON and the tensors after it",
        "headers": header(_LENGTH, _LENGTH_WORDS, "integer"),
    }
}


class DirectRoute(APIRoute):
    """A route that is described as any other, whose endpoint is given the request and the path's parameters as text.

    What FastAPI does for each request besides (finding the route among those of all routers, dependencies and the
    stacks they are closed by, fields of the response) takes as long as a small network.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self.methods and scope["method"] not in self.methods:
            await super().handle(scope, receive, send)  # 405
            return
        answer: Response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await answer(scope, receive, send)


def add_infer_routes(server: FastAPI) -> None:
    """Adds the routes to the server itself, not to a router that it includes; what is added first is found first."""
    body = request_body("application/json", InferenceRequest)
    body["requestBody"]["content"] |= file_content("application/octet-stream")["content"]
    shared: dict[str, Any] = {
        "methods": ["POST"],
        "route_class_override": DirectRoute,
        "tags": ["Open Inference Protocol"],
        "response_model": InferenceResponse,
        "responses": _ANSWERED | _REFUSED,
        "openapi_extra": {**body, "parameters": [header_parameter(_LENGTH, _LENGTH_WORDS, "integer")]},
    }
    server.router.add_api_route("/v2/models/{name}/infer", infer, operation_id="oip_infer", **shared)
    versioned = "/v2/models/{name}/versions/{version}/infer"
    server.router.add_api_route(versioned, infer_version, operation_id="oip_infer_version", **shared)


async def infer(request: Request, name: str) -> Response:
    """Runs the network on tensors. Where binary data follows the JSON part, a header states that part's length."""
    networks: Networks = request.app.state.networks
    return await _answer(request, networks, networks.find(name, None))


async def infer_version(request: Request, name: str, version: str) -> Response:
    """Runs one version of the network on tensors, as the route without a version does."""
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
        header_length = _header_length(request.headers.get(_LENGTH), settings.max_json_bytes)
        body = await _body(request, header_length, networks, network, place, reserve, stack)
        parts, binary = await while_connected(request, network.infer(body, header_length, place.group))
    headers = {_LENGTH: str(len(parts[0]))} if binary else {}
    parts, packed = await _packed(parts, request.headers.get("accept-encoding", ""))
    if packed:
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    # The answer may take long to send: of the request only memory is held that the answer lies in.
    held = body if isinstance(body, SharedBytes) and binary and not packed else None
    return PartsResponse(parts, headers, "application/octet-stream" if binary else "application/json", held)


class PartsResponse(Response):
    """An answer in parts, sent a little at a time: what the socket does not take at once is copied, and moved often.

    ``held`` is kept until all is sent.
    """

    def __init__(self, parts: Sequence[Blob], headers: Mapping[str, str], media_type: str, held: object = None) -> None:
        size = sum(len(part) for part in parts)
        super().__init__(headers={**headers, "Content-Length": str(size)}, media_type=media_type)
        self._parts, self._size, self._held = parts, size, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._size
        for part in self._parts:
            for start in range(0, len(part), _MAX_SENT):
                piece = memoryview(part)[start : start + _MAX_SENT]
                left -= len(piece)
                # Some event loops copy nothing, and hold on to what the socket has not taken yet: at the end that must
                # be nothing of what is held here. What is larger than their buffers goes out before the last message.
                copied = left < _MAX_SENT and self._held is not None
                body = bytes(piece) if copied else piece
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _packed(parts: Sequence[Blob], accepted: str) -> tuple[Sequence[Blob], bool]:
    """The answer, compressed where the client asks for it by name and it is worth while."""
    if sum(map(len, parts)) < _MIN_PACKED or not _takes_gzip(accepted):
        return parts, False
    return [await run_in_threadpool(gzip.compress, b"".join(parts), compresslevel=1)], True


def _takes_gzip(accepted: str) -> bool:
    """Whether Accept-Encoding names gzip, and not with a weight of 0, which refuses it (RFC 9110, section 12.5.3)."""
    for entry in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters)
    return False


async def _body(
    request: Request,
    header_length: int | None,
    networks: Networks,
    network: NetworkModel,
    place: Place,
    reserve: Callable[[int], None],
    stack: ExitStack,
) -> bytearray | SharedBytes:
    """The request's body. ``reserve`` is told of its size, before it is there where that is stated.

    A large one takes a turn, until ``stack`` is left.
    """
    settings = networks.settings
    most = settings.max_tensor_bytes
    if header_length is None and settings.max_json_bytes < most:
        most, refusal = settings.max_json_bytes, _too_much_json(settings.max_json_bytes)
    else:
        refusal = InvalidInputError(
            f"the request is larger than this server takes ({most:,} bytes); send fewer rows at once, or raise "
            "TRIVIUM_MAX_TENSOR_BYTES",
            status=413,
        )
    unpacked = _unpacker(request.headers.get("content-encoding", ""))
    stated = request.headers.get("content-length", "")
    known = len(stated) < 20 and stated.isdecimal() and unpacked is None
    if known and int(stated) > most:
        raise refusal
    if known:
        reserve(int(stated))
        return await _stated_body(request, int(stated), header_length or 0, networks, network, place, stack)
    body = bytearray()
    async for received in within_upload_limits(request, settings, place):
        for chunk in [received] if unpacked is None else unpacked(received):
            if len(body) + len(chunk) > most:
                raise refusal
            reserve(len(chunk))
            body += chunk
    return body


async def _stated_body(
    request: Request, size: int, header: int, networks: Networks, network: NetworkModel, place: Place, stack: ExitStack
) -> bytearray | SharedBytes:
    """A body whose size is stated, which HTTP holds it to; a large one in memory that a worker process can read."""
    settings = networks.settings
    if size < MAX_INLINE or not processes_wanted(settings):
        body = bytearray()
        async for chunk in within_upload_limits(request, settings, place):
            body += chunk
        return body
    turn, left = stack.enter_context(network.turns.join(place.group)), size
    with network.limit.held_back(place.group):
        await network.turns.wait(turn)
    shared = networks.shared_memory.take(size, header, network.room(size))
    async with aclosing(receive_into(request, shared.body, settings, place)) as coming:
        async for came in coming:
            left -= came
            if left > 0:
                with network.limit.held_back(place.group):
                    await network.turns.wait(turn)
    turn.whole = True
    if left:
        raise BadTensor(f"the body ends {left} bytes before the size that its header states")
    return shared


def _unpacker(encoding: str) -> Callable[[bytes], Iterator[bytes]] | None:
    """What unpacks a compressed body a little at a time, so that it cannot be larger than is found out; or None."""
    if encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() not in ("gzip", "deflate"):
        raise InvalidInputError(f"the body's encoding {encoding[:40]!r} is none of gzip and deflate", status=415)
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def unpack(data: bytes) -> Iterator[bytes]:
        try:
            while data:
                yield decompressor.decompress(data, _MAX_CHUNK)
                data = decompressor.unconsumed_tail
        except zlib.error as error:
            raise BadTensor(f"the body cannot be unpacked: {error}") from error

    return unpack


def _header_length(stated: str | None, most: int) -> int | None:
    if stated is None:
        return None
    if not stated.isdecimal() or len(stated) > 19:
        raise BadTensor(f"{_LENGTH} must be a number of bytes, not {stated[:40]!r}")
    if int(stated) > most:
        raise _too_much_json(most)
    return int(stated)


def _too_much_json(most: int) -> InvalidInputError:
    return InvalidInputError(
        f"the request has more JSON than this server reads ({most:,} bytes); send tensors as binary data "
        f"(binary_data_size, {_LENGTH}), or raise TRIVIUM_MAX_JSON_BYTES",
        status=413,
    )
