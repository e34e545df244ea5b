"""The description of the interface, where FastAPI cannot tell it from a route's signature.

A body that is streamed is no parameter of its route; its pydantic model is named in ``request_body`` instead, and
``DescribedAPI`` puts the model's schema among the others.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.serve.middleware.key_required import PROBES

_REFERENCE = "#/components/schemas/{model}"


def request_body(content_type: str, model: type[BaseModel]) -> dict[str, Any]:
    """What a route passes as ``openapi_extra`` to say that its streamed body is a ``model``."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {content_type: {"schema": schema}}}}


def content(content_type: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a route says in ``responses`` of an answer that is no JSON: its type, and a schema where it is one value."""
    return {"content": {content_type: {} if schema is None else {"schema": schema}}}


def file_content(content_type: str) -> dict[str, Any]:
    """The same of a file."""
    return content(content_type, {"type": "string", "format": "binary"})


_EVERYWHERE = {
    "421": "The server is not known by this `Host`",
    "500": "A fault of the server's; its log has the details",
}
_WRITES = {
    "403": "A write from a page of another site, or one that a user's key does not allow",
    "429": "One client has too many requests inside; see Retry-After",
    "503": "There is no room, or the server is being shut down; see Retry-After",
}


class DescribedAPI(FastAPI):
    """A server whose description heads each route with its docstring's first line and holds the ``bodies``.

    It states what is answered before a route is reached, too.
    """

    def __init__(self, *, bodies: list[type[BaseModel]], requires_key: bool, **given: Any) -> None:
        super().__init__(**given)
        self._bodies, self._requires_key = bodies, requires_key

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if lines := operation.get("description", "").splitlines():
                        operation["summary"] = lines[0].rstrip(".")
                    error = _REFERENCE.format(model="InferenceError" if path.startswith("/v2") else "Problem")
                    for status, words in (_EVERYWHERE | ({} if method == "get" else _WRITES)).items():
                        body = {"application/json": {"schema": {"$ref": error}}}
                        operation["responses"].setdefault(status, {"description": words, "content": body})
            _, definitions = models_json_schema([(m, "validation") for m in self._bodies], ref_template=_REFERENCE)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions.get("$defs", {}))
            if self._requires_key:
                _describe_keys(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _describe_keys(document: dict[str, Any]) -> None:
    """States that each operation wants a key, but for the probes of the server's health."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A key, as `trivium keys add NAME` prints it"}
    }
    document["security"] = [{"key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in PROBES:
                operation["security"] = [{}, {"key": []}]
            else:
                error = _REFERENCE.format(model="InferenceError" if path.startswith("/v2") else "Problem")
                body = {"application/json": {"schema": {"$ref": error}}}
                operation["responses"]["401"] = {"description": "No key, or one that is not known", "content": body}
