"""The Open Inference Protocol over gRPC, with the same networks and queues as over REST."""

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
from shared.secure.tls import Certificate, CertificateReloader
from shared.serve.access_line import log_access, request_identifier
from shared.serve.known_keys import KnownKeys, check_no_group, check_operator
from shared.serve.middleware.draining import Drain
from shared.serve.middleware.per_client import ClientLimit
from shared.serve.oip import grpc_tensors, repository, routes
from shared.serve.oip.grpc_messages import PACKAGE, message
from shared.serve.oip.grpc_upload import Upload
from shared.serve.oip.networks import Networks
from shared.serve.oip.schemas import RepositoryParameters, ServerReady
from shared.serve.runtime.limits import Busy, RequestLimit
from shared.serve.runtime.places import Place

log = logging.getLogger("trivium.serve")
_SERVICE = f"{PACKAGE}.GRPCInferenceService"
_MAX_MESSAGE_BYTES = 64_000_000
"""gRPC receives a message into memory before it is admitted, so the limit is smaller than for a body over REST."""
_STATUS_CODES = {
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
_SHUTDOWN_GRACE_S = 1.0
_IDLE_TIMEOUT_S = 60.0
"""A connection without a call is closed after this time; clients reconnect automatically with their next call."""

_MAX_CONNECTIONS = 8192
_CALLS_PER_REQUEST = 10
"""Open calls allowed per admitted request, for streams without a request, queries, and calls that are refused."""
_PROBES = ("ServerLive", "ServerReady")
_OPERATOR_METHODS = ("RepositoryModelLoad", "RepositoryModelUnload")
Method = Callable[[Any, str | None], Awaitable[Any]]


class GrpcService:
    """The methods of ``GRPCInferenceService``. Others (shared memory, tracing) return UNIMPLEMENTED.

    ``state`` is the state of the FastAPI application: networks, readiness, drain, store, metrics and client limit.
    """

    def __init__(self, state: Any, version: str) -> None:
        self._state, self._version = state, version
        self._networks: Networks = state.networks
        self._drain: Drain = state.drain
        self._keys: KnownKeys | None = state.keys
        self._client_limit: ClientLimit = state.client_limit
        self._upload_limit = RequestLimit("the server", self._networks.settings.request_limit)

    async def start(self, host: str, port: int, certificate: Certificate | None = None) -> tuple[Any, int]:
        """Starts listening, over TLS if there is a ``certificate``, and returns the server and the port.

        Raises ``InvalidInputError`` if the address is in use.
        """
        max_message_bytes = min(self._networks.settings.max_tensor_bytes, _MAX_MESSAGE_BYTES)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", _max_connections()),
                ("grpc.max_connection_idle_ms", round(1000 * _IDLE_TIMEOUT_S)),
                ("grpc.server_handshake_timeout_ms", round(1000 * self._networks.settings.header_s)),
            ],
            maximum_concurrent_rpcs=_CALLS_PER_REQUEST * self._networks.settings.request_limit,
        )
        server.add_generic_rpc_handlers((self._handlers(),))
        address = f"[{host}]" if ":" in host else host
        try:
            if certificate is None:
                bound_port = server.add_insecure_port(f"{address}:{port}")
            else:
                bound_port = server.add_secure_port(f"{address}:{port}", _credentials(certificate))
        except RuntimeError as error:
            raise InvalidInputError(f"cannot listen on {host}:{port}; choose another port with --grpc-port") from error
        await server.start()
        return server, bound_port

    def _handlers(self) -> Any:
        queries: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        admitted: dict[str, Method] = {
            "ModelInfer": self._infer,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            # On the wire, a stream of one message equals that message. As a stream, it can be received with a timeout.
            name: grpc.stream_unary_rpc_method_handler(
                self._guarded(name, method, needs_place=name in admitted),
                request_deserializer=message(f"{name}Request").FromString,
                response_serializer=message(f"{name}Response").SerializeToString,
            )
            for name, method in (queries | admitted).items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=message("ModelInferRequest").FromString,
            response_serializer=message("ModelStreamInferResponse").SerializeToString,
        )
        return grpc.method_handlers_generic_handler(_SERVICE, handlers)

    def _guarded(self, name: str, method: Method, *, needs_place: bool) -> Method:
        """Adds what the middleware does over REST to a method: keys, drain, client limit, request ids, log, errors."""

        async def answer(requests: AsyncIterator[Any], context: Any) -> Any:
            metadata = dict(context.invocation_metadata())
            request_id = request_identifier(metadata.get("x-request-id", ""))
            traceparent = metadata.get("traceparent", "")
            await context.send_initial_metadata((("x-request-id", request_id),))
            started, status, key = time.monotonic(), 499, None
            try:
                if name not in _PROBES:
                    key = await self._key(metadata)
                if name in _OPERATOR_METHODS:
                    check_operator(key)
                request = await self._receive(requests, str(context.peer()), needs_place=needs_place)
                reply = await (
                    self._run_with_place(method, request, context, key) if needs_place else method(request, _group(key))
                )
                status = 200
                return reply
            except InvalidInputError as error:
                status = error.status
                if isinstance(error, Busy):
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", str(1000 * error.retry_after_s)),))
                await context.abort(_STATUS_CODES.get(status, grpc.StatusCode.INTERNAL), str(error))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:
                status, error_id = 500, secrets.token_hex(4)
                log.exception("error %s in %s, request %s", error_id, name, request_id)
                detail = f"Something went wrong in the server (error {error_id}). Its log has the details."
                await context.abort(grpc.StatusCode.INTERNAL, detail)
            finally:
                self._log(name, context, request_id, traceparent, started, status, key)

        return answer

    def _log(
        self, name: str, context: Any, request_id: str, traceparent: str, started: float, status: int, key: Key | None
    ) -> None:
        seconds, path = time.monotonic() - started, f"/{_SERVICE}/{name}"
        self._state.metrics.observe_http_request(path, "POST", status, seconds)
        log_access(
            request_id, _client(context), "POST", path, status, seconds, traceparent, "" if key is None else key.name
        )

    async def _key(self, metadata: Mapping[str, Any]) -> Key | None:
        """The key of a call; None if the server requires no keys. Refuses (401) a call without a valid key."""
        return None if self._keys is None else await self._keys.find(metadata)

    async def _receive(self, requests: AsyncIterator[Any], peer: str, *, needs_place: bool) -> Any:
        """Receives the message of a call; it has a place meanwhile if the method needs one. Raises ``Busy``."""
        with self._upload_limit.admit() if needs_place else nullcontext(Place()) as place:
            return await Upload(requests, *_address(peer), self._networks.settings).receive(place)

    async def _run_with_place(self, method: Method, request: Any, context: Any, key: Key | None) -> Any:
        if self._drain.is_draining:
            raise InvalidInputError("the server is being shut down; try again in a few seconds", status=503)
        with self._client_limit.take(_client(context)):
            self._drain.running += 1
            try:
                return await method(request, _group(key))
            finally:
                self._drain.running -= 1

    async def _server_live(self, request: Any, group: str | None) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, group: str | None) -> Any:
        readiness: ServerReady = await routes.server_readiness(self._state)
        return message("ServerReadyResponse")(ready=readiness.ready)

    async def _model_ready(self, request: Any, group: str | None) -> Any:
        network = self._networks.find(request.name, request.version or None)
        try:
            await network.model.get()
        except InvalidInputError as error:
            if error.status not in (404, 503):  # unloaded, or cannot be loaded
                raise
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=True)

    async def _server_metadata(self, request: Any, group: str | None) -> Any:
        return message("ServerMetadataResponse")(name="trivium", version=self._version, extensions=routes.EXTENSIONS)

    async def _model_metadata(self, request: Any, group: str | None) -> Any:
        network = self._networks.find(request.name, request.version or None)
        versions = [network.version] if request.version else self._networks.versions(request.name)
        return _to_message("ModelMetadataResponse", routes.describe(network, versions))

    async def _model_config(self, request: Any, group: str | None) -> Any:
        config = repository.describe_config(self._networks.find(request.name, request.version or None), self._networks)
        return message("ModelConfigResponse")(config=_to_message("ModelConfig", config))

    async def _model_statistics(self, request: Any, group: str | None) -> Any:
        check_no_group(group)
        statistics = repository.statistics_of(self._networks, request.name or None, request.version or None)
        return _to_message("ModelStatisticsResponse", statistics)

    async def _repository_index(self, request: Any, group: str | None) -> Any:
        response = message("RepositoryIndexResponse")()
        for entry in repository.index_of(self._networks, ready=request.ready):
            response.models.add(**entry.model_dump())
        return response

    async def _load(self, request: Any, group: str | None) -> Any:
        RepositoryParameters(parameters=dict(request.parameters)).check_load()
        await self._networks.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, group: str | None) -> Any:
        RepositoryParameters(parameters=dict(request.parameters)).check_unload()
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
        """Answers the requests of a stream one after the other; a refused request does not end the stream.

        An open stream occupies a call, so it ends if it sends nothing for as long as an upload may take, or if its key
        is revoked. The log has a line for each request, and one for the error that ends the stream.
        """
        metadata = dict(context.invocation_metadata())
        request_id, traceparent = request_identifier(metadata.get("x-request-id", "")), metadata.get("traceparent", "")
        await context.send_initial_metadata((("x-request-id", request_id),))
        key: Key | None = None

        def log_request(status: int) -> None:
            self._log("ModelStreamInfer", context, request_id, traceparent, started, status, key)

        seconds = self._networks.settings.upload_s
        while True:
            started = time.monotonic()
            try:
                key = await self._key(metadata)
                request = await asyncio.wait_for(anext(requests), seconds)
                started = time.monotonic()
                key = await self._key(metadata)
            except InvalidInputError as error:
                log_request(error.status)
                await context.abort(_STATUS_CODES[error.status], str(error))
            except StopAsyncIteration:
                return
            except TimeoutError:
                log_request(408)
                detail = f"the stream received nothing for {seconds:g} seconds; open a new one"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, detail)
            response, status = message("ModelStreamInferResponse")(), 499
            try:
                response.infer_response.CopyFrom(await self._run_with_place(self._infer, request, context, key))
                status = 200
            except InvalidInputError as error:
                status = error.status
                response.error_message, response.infer_response.id = str(error), request.id
            except Exception:
                status = 500
                raise
            finally:
                log_request(status)
            yield response


def _group(key: Key | None) -> str | None:
    return None if key is None else key.group


async def stop(server: Any) -> None:
    """Stops a server, after one second of grace for running calls."""
    await server.stop(_SHUTDOWN_GRACE_S)


def _max_connections() -> int:
    """An eighth of the limit on open files of this process; the connections over HTTP leave a quarter of it."""
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_CONNECTIONS if open_files == resource.RLIM_INFINITY else max(1, min(open_files // 8, _MAX_CONNECTIONS))


def _credentials(certificate: Certificate) -> Any:
    """TLS credentials that use the certificate that is in its files when a client connects."""
    reloader = CertificateReloader(certificate)
    current: list[Any] = []

    def read(pair: Certificate) -> None:
        current[:] = [grpc.ssl_server_certificate_configuration([(pair.key.read_bytes(), pair.chain.read_bytes())])]

    def newest() -> Any:
        reloader.reload_if_changed(read)
        return current[0]

    read(certificate)
    return grpc.dynamic_ssl_server_credentials(current[0], newest, require_client_authentication=False)


def _client(context: Any) -> str:
    """The IP address of the client."""
    return _address(str(context.peer()))[0] or "local"


def _address(peer: str) -> tuple[str, int]:
    """The address and port of a peer in gRPC's notation: ``ipv4:127.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def _to_message(name: str, model: BaseModel) -> Any:
    return json_format.ParseDict(model.model_dump(exclude_none=True), message(name)(), ignore_unknown_fields=True)
