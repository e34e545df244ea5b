"""The Open Inference Protocol over gRPC: the same networks behind the same queues as over REST."""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import json_format
from pydantic import BaseModel

from shared.errors import InvalidInputError
from shared.secure.access import Key
from shared.secure.tls import Certificate, Renewals
from shared.serve.access_line import log_line, usable_identifier
from shared.serve.known_keys import KnownKeys, check_no_group, check_operator
from shared.serve.middleware.draining import Drain
from shared.serve.middleware.per_client import ClientPlaces
from shared.serve.oip import grpc_tensors, repository, routes
from shared.serve.oip.grpc_messages import PACKAGE, message
from shared.serve.oip.grpc_upload import Upload
from shared.serve.oip.networks import Networks
from shared.serve.oip.schemas import RepositoryParameters, ServerReady
from shared.serve.runtime.limits import Busy, RequestLimit
from shared.serve.runtime.places import Place

log = logging.getLogger("trivium.serve")
_SERVICE = f"{PACKAGE}.GRPCInferenceService"
_MAX_MESSAGE = 64_000_000
"""gRPC holds a message in memory before it is admitted, so it may be smaller than a body over REST."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_STOP_S = 1.0
_IDLE_S = 60.0
"""A connection that has no call for so long is closed; clients begin another with their next call by themselves."""

_MAX_CONNECTIONS = 8192
_CALLS = 10
"""For each request that may be inside, how many calls are open: streams without a request, questions, refusals."""
_PROBES = ("ServerLive", "ServerReady")
_OF_OPERATORS = ("RepositoryModelLoad", "RepositoryModelUnload")
Method = Callable[[Any, str | None], Awaitable[Any]]


class GrpcService:
    """The methods of ``GRPCInferenceService``. What it does not have (shared memory, tracing) is UNIMPLEMENTED.

    ``state`` is the application's: its networks, readiness, drain, store, metrics and places of clients.
    """

    def __init__(self, state: Any, version: str) -> None:
        self._state, self._version = state, version
        self._networks: Networks = state.networks
        self._drain: Drain = state.drain
        self._keys: KnownKeys | None = state.keys
        self._places: ClientPlaces = state.client_places
        self._coming = RequestLimit("the server", self._networks.settings.request_limit)

    async def start(self, host: str, port: int, certificate: Certificate | None = None) -> tuple[Any, int]:
        """Listens, over TLS with a ``certificate``, and gives the server and the port.

        Raises ``InvalidInputError`` for an address that is taken.
        """
        size = min(self._networks.settings.max_tensor_bytes, _MAX_MESSAGE)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", _most_connections()),
                ("grpc.max_connection_idle_ms", round(1000 * _IDLE_S)),
                ("grpc.server_handshake_timeout_ms", round(1000 * self._networks.settings.header_s)),
            ],
            maximum_concurrent_rpcs=_CALLS * self._networks.settings.request_limit,
        )
        server.add_generic_rpc_handlers((self._handlers(),))
        address = f"[{host}]" if ":" in host else host
        try:
            if certificate is None:
                found = server.add_insecure_port(f"{address}:{port}")
            else:
                found = server.add_secure_port(f"{address}:{port}", _credentials(certificate))
        except RuntimeError as error:
            raise InvalidInputError(f"{host}:{port} cannot be listened on; choose another with --grpc-port") from error
        await server.start()
        return server, found

    def _handlers(self) -> Any:
        asking: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        working: dict[str, Method] = {
            "ModelInfer": self._infer,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            # On the wire a stream of one message is that message, and here it can be waited for with a limit.
            name: grpc.stream_unary_rpc_method_handler(
                self._guarded(name, method, works=name in working),
                request_deserializer=message(f"{name}Request").FromString,
                response_serializer=message(f"{name}Response").SerializeToString,
            )
            for name, method in (asking | working).items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=message("ModelInferRequest").FromString,
            response_serializer=message("ModelStreamInferResponse").SerializeToString,
        )
        return grpc.method_handlers_generic_handler(_SERVICE, handlers)

    def _guarded(self, name: str, method: Method, *, works: bool) -> Method:
        """The method with what the middleware does over REST: key, drain, client places, identifier, log, errors."""

        async def answer(requests: AsyncIterator[Any], context: Any) -> Any:
            metadata = dict(context.invocation_metadata())
            number, traceparent = usable_identifier(metadata.get("x-request-id", "")), metadata.get("traceparent", "")
            await context.send_initial_metadata((("x-request-id", number),))
            began, status, key = time.monotonic(), 499, None
            try:
                if name not in _PROBES:
                    key = await self._key(metadata)
                if name in _OF_OPERATORS:
                    check_operator(key)
                request = await self._received(requests, str(context.peer()), works=works)
                reply = await (self._work(method, request, context, key) if works else method(request, _group(key)))
                status = 200
                return reply
            except InvalidInputError as refusal:
                status = refusal.status
                if isinstance(refusal, Busy):
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", str(1000 * refusal.retry_after_s)),))
                await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), str(refusal))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:
                status, error = 500, secrets.token_hex(4)
                log.exception("error %s in %s, request %s", error, name, number)
                words = f"Something went wrong in the server (error {error}). Its log holds the details."
                await context.abort(grpc.StatusCode.INTERNAL, words)
            finally:
                self._log(name, context, number, traceparent, began, status, key)

        return answer

    def _log(
        self, name: str, context: Any, number: str, traceparent: str, began: float, status: int, key: Key | None
    ) -> None:
        took, path = time.monotonic() - began, f"/{_SERVICE}/{name}"
        self._state.metrics.requested(path, "POST", status, took)
        log_line(number, _client(context), "POST", path, status, took, traceparent, "" if key is None else key.name)

    async def _key(self, metadata: Mapping[str, Any]) -> Key | None:
        """The key that a call brings; refuses (401) one without, where keys are wanted."""
        return None if self._keys is None else await self._keys.find(metadata)

    async def _received(self, requests: AsyncIterator[Any], peer: str, *, works: bool) -> Any:
        """The message of a call, which has a place while it comes where it is one that works. Raises ``Busy``."""
        with self._coming.admit() if works else nullcontext(Place()) as place:
            return await Upload(requests, *_address(peer), self._networks.settings).whole(place)

    async def _work(self, method: Method, request: Any, context: Any, key: Key | None) -> Any:
        if self._drain.begun:
            raise InvalidInputError("the server is being shut down; try again in a few seconds", status=503)
        with self._places.take(_client(context)):
            self._drain.inside += 1
            try:
                return await method(request, _group(key))
            finally:
                self._drain.inside -= 1

    async def _server_live(self, request: Any, group: str | None) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, group: str | None) -> Any:
        found: ServerReady = await routes.server_readiness(self._state)
        return message("ServerReadyResponse")(ready=found.ready)

    async def _model_ready(self, request: Any, group: str | None) -> Any:
        network = self._networks.find(request.name, request.version or None)
        try:
            await network.model.get()
        except InvalidInputError as refusal:
            if refusal.status not in (404, 503):  # unloaded, or cannot be loaded
                raise
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=True)

    async def _server_metadata(self, request: Any, group: str | None) -> Any:
        return message("ServerMetadataResponse")(name="trivium", version=self._version, extensions=routes.EXTENSIONS)

    async def _model_metadata(self, request: Any, group: str | None) -> Any:
        network = self._networks.find(request.name, request.version or None)
        versions = [network.version] if request.version else self._networks.versions(request.name)
        return _filled("ModelMetadataResponse", routes.describe(network, versions))

    async def _model_config(self, request: Any, group: str | None) -> Any:
        found = repository.describe_config(self._networks.find(request.name, request.version or None), self._networks)
        return message("ModelConfigResponse")(config=_filled("ModelConfig", found))

    async def _model_statistics(self, request: Any, group: str | None) -> Any:
        check_no_group(group)
        found = repository.statistics_of(self._networks, request.name or None, request.version or None)
        return _filled("ModelStatisticsResponse", found)

    async def _repository_index(self, request: Any, group: str | None) -> Any:
        made = message("RepositoryIndexResponse")()
        for entry in repository.index_of(self._networks, ready=request.ready):
            made.models.add(**entry.model_dump())
        return made

    async def _load(self, request: Any, group: str | None) -> Any:
        _repository_parameters(request).check_load()
        await self._networks.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, group: str | None) -> Any:
        _repository_parameters(request).check_unload()
        await self._networks.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()

    async def _infer(self, request: Any, group: str | None) -> Any:
        networks = self._networks
        network = networks.find(request.model_name, request.model_version or None)
        with network.metrics.failures(), network.limit.admit(group) as place, networks.memory.reserve(place) as reserve:
            reserve(request.ByteSize())
            body, length = grpc_tensors.request_body(request)
            parts, _ = await network.infer(body, length, group)
            reply = grpc_tensors.response(parts)
            if request.parameters["triton_enable_empty_final_response"].bool_param:
                reply.parameters["triton_final_response"].bool_param = True
            return reply

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers each request of a stream in turn; one that is refused does not end the stream.

        A stream takes the place of another call: one that brings nothing for as long as an upload may take ends.
        So does one whose key was revoked. The log has a line for each request, and one for what ends the stream.
        """
        metadata = dict(context.invocation_metadata())
        number, traceparent = usable_identifier(metadata.get("x-request-id", "")), metadata.get("traceparent", "")
        await context.send_initial_metadata((("x-request-id", number),))
        key: Key | None = None

        def log_request(status: int) -> None:
            self._log("ModelStreamInfer", context, number, traceparent, began, status, key)

        seconds = self._networks.settings.upload_s
        while True:
            began = time.monotonic()
            try:
                key = await self._key(metadata)
                request = await asyncio.wait_for(anext(requests), seconds)
                began = time.monotonic()
                key = await self._key(metadata)
            except InvalidInputError as refusal:
                log_request(refusal.status)
                await context.abort(_CODES[refusal.status], str(refusal))
            except StopAsyncIteration:
                return
            except TimeoutError:
                log_request(408)
                words = f"nothing came over the stream for {seconds:g} seconds; begin another"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, words)
            made, status = message("ModelStreamInferResponse")(), 499
            try:
                made.infer_response.CopyFrom(await self._work(self._infer, request, context, key))
                status = 200
            except InvalidInputError as refusal:
                status = refusal.status
                made.error_message, made.infer_response.id = str(refusal), request.id
            except Exception:
                status = 500
                raise
            finally:
                log_request(status)
            yield made


def _group(key: Key | None) -> str | None:
    return None if key is None else key.group


async def stop(server: Any) -> None:
    """Ends a server: what is computed still has a second."""
    await server.stop(_STOP_S)


def _most_connections() -> int:
    """An eighth of the files that this process may have open: the connections of HTTP leave a quarter."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_CONNECTIONS if files == resource.RLIM_INFINITY else max(1, min(files // 8, _MAX_CONNECTIONS))


def _credentials(certificate: Certificate) -> Any:
    """Shows the certificate that is in its files when a client connects."""
    renewals = Renewals(certificate)
    shown: list[Any] = []

    def read(pair: Certificate) -> None:
        shown[:] = [grpc.ssl_server_certificate_configuration([(pair.key.read_bytes(), pair.chain.read_bytes())])]

    def newest() -> Any:
        renewals.take_up(read)
        return shown[0]

    read(certificate)
    return grpc.dynamic_ssl_server_credentials(shown[0], newest, require_client_authentication=False)


def _client(context: Any) -> str:
    """The address of who asks."""
    return _address(str(context.peer()))[0] or "local"


def _address(peer: str) -> tuple[str, int]:
    """Address and port of a peer as gRPC writes it: ``ipv4:127.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def _filled(name: str, found: BaseModel) -> Any:
    return json_format.ParseDict(found.model_dump(exclude_none=True), message(name)(), ignore_unknown_fields=True)


def _repository_parameters(request: Any) -> RepositoryParameters:
    given = {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")
        for name, parameter in request.parameters.items()
    }
    return RepositoryParameters(parameters=given)
