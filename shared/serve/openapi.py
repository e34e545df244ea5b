"""The description of the interface, where FastAPI cannot tell it from a route's signature.

A body that is streamed is no parameter of its route; its pydantic model is named in ``request_body`` instead, and
``DescribedAPI`` puts the model's schema among the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from shared.app import Schemas
from shared.secure.access import API_KEY_HEADER
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


def header(name: str, words: str, kind: str = "string") -> dict[str, Any]:
    """What a response says in ``headers`` of a header that it may have."""
    return {name: {"description": words, "schema": {"type": kind}}}


def header_parameter(name: str, words: str, kind: str = "string") -> dict[str, Any]:
    """What a route says in ``parameters`` of ``openapi_extra`` of a header that no parameter of its own reads."""
    return {"name": name, "in": "header", "required": False, "description": words, "schema": {"type": kind}}


_RETRY_AFTER = header("Retry-After", "in how many seconds to ask again, where that is known", "integer")
_FORM, _ANSWER = "PredictForm", "CaseAnswer"
"""What a request of any application is, and its answer, in ``shared.serve.api.schemas``."""
_REVIEWS = ("ReviewBody", "ReviewAnswer", "Reviews")
"""What a review of any application is, its answer, and those of a case."""
_EVERYWHERE = {
    "421": "The server is not known by this `Host`",
    "500": "A fault of the server's; its log has the details",
}
_BODIES = {
    "400": "The body cannot be read",
    "408": "The body did not come, or too slowly",
    "413": "Too large",
}
_WRITES = {
    "403": "A write from a page of another site, or one that a user's key does not allow",
    "429": "One client has too many requests inside; see Retry-After",
    "503": "There is no room, or the server is being shut down; see Retry-After",
}


class DescribedAPI(FastAPI):
    """A server whose description heads each route with its docstring's first line and holds the ``bodies``.

    It states what is answered before a route is reached, too, and for each application, by its name in ``apps``, what
    its options and its result are. ``limits`` says by the last part of a path how large the body of a POST may be.
    """

    def __init__(
        self,
        *,
        bodies: list[type[BaseModel]],
        apps: Mapping[str, Schemas],
        requires_key: bool,
        limits: Mapping[str, str],
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self._bodies, self._apps, self._requires_key, self._limits = bodies, apps, requires_key, limits

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if lines := operation.get("description", "").splitlines():
                        operation["summary"] = lines[0].rstrip(".")
                    if method == "post" and (most := self._limits.get(path.rpartition("/")[2])) is not None:
                        operation["requestBody"]["description"] = most
                    error = _REFERENCE.format(model="InferenceError" if path.startswith("/v2") else "Problem")
                    told = _EVERYWHERE | ({} if method == "get" else _WRITES)
                    for status, words in (told | (_BODIES if "requestBody" in operation else {})).items():
                        body = {"application/json": {"schema": {"$ref": error}}}
                        operation["responses"].setdefault(status, {"description": words, "content": body})
                    for status in ("429", "503"):
                        if status in operation["responses"]:
                            operation["responses"][status]["headers"] = _RETRY_AFTER
            _, definitions = models_json_schema([(m, "validation") for m in self._bodies], ref_template=_REFERENCE)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions.get("$defs", {}))
            for name, described in self._apps.items():
                _describe_app(document, name, described)
            _leave_out_general_schemas(document)
            _leave_out_empty_defaults(schemas)
            if self._requires_key:
                _describe_keys(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _describe_app(document: dict[str, Any], name: str, described: Schemas) -> None:
    """Gives the application's routes a form with its options, and an answer with its result."""
    schemas = document["components"]["schemas"]
    options, result = (
        TypeAdapter(kind).json_schema(ref_template=_REFERENCE) for kind in (described.options, described.result)
    )
    for schema in (options, result):
        schemas |= schema.pop("$defs", {})
    schemas[described.result.__name__] = result
    form, answer = (schemas[general] for general in (_FORM, _ANSWER))
    prefix = name.title().replace("_", "")
    own = {general: f"{prefix}{general}" for general in (_FORM, _ANSWER)}
    schemas[own[_FORM]] = form | {
        "title": own[_FORM],
        "description": "Files, or the name of a sample instead, and options; one left empty is not said.",
        "properties": form["properties"] | options["properties"],
        "additionalProperties": False,
    }
    of_result = {"$ref": _REFERENCE.format(model=described.result.__name__)}
    schemas[own[_ANSWER]] = answer | {
        "title": own[_ANSWER],
        "properties": answer["properties"] | {"result": of_result},
    }
    own |= _describe_missed(schemas, prefix, described.missed)
    for path, operations in document["paths"].items():
        if path.startswith(f"/api/{name}/"):
            document["paths"][path] = _renamed(operations, own)


def _describe_missed(schemas: dict[str, Any], prefix: str, missed: type | None) -> dict[str, str]:
    """Gives reviews what the application says of missed findings; returns the names of its own schemas."""
    own = {general: f"{prefix}{general}" for general in _REVIEWS}
    if missed is None:
        listed: dict[str, Any] = {"maxItems": 0}
    else:
        described = TypeAdapter(missed).json_schema(ref_template=_REFERENCE)
        schemas |= described.pop("$defs", {})
        schemas[missed.__name__] = described
        listed = {"items": {"$ref": _REFERENCE.format(model=missed.__name__)}}
    for general, name in own.items():
        made = _renamed(schemas[general], own) | {"title": name}
        if "missed" in made["properties"]:
            made["properties"]["missed"] |= listed
        schemas[name] = made
    return own


def _leave_out_general_schemas(document: dict[str, Any]) -> None:
    """Takes away what every application has put its own in the place of, which clients would take by mistake."""
    for general in (_FORM, _ANSWER, *reversed(_REVIEWS), "JsonValue"):
        if json.dumps(_REFERENCE.format(model=general)) not in json.dumps(document):
            document["components"]["schemas"].pop(general, None)


def _leave_out_empty_defaults(schemas: Mapping[str, Any]) -> None:
    """Takes away the defaults that say nothing: openapi-typescript wants a property given that has a default."""
    for schema in schemas.values():
        for described in schema.get("properties", {}).values():
            if not described.get("default", True):
                del described["default"]


def _renamed(part: Any, names: Mapping[str, str]) -> Any:
    """A part of the document whose references to the schemas among ``names`` are to those that they name."""
    if isinstance(part, dict):
        references = {_REFERENCE.format(model=old): _REFERENCE.format(model=new) for old, new in names.items()}
        return {
            key: references.get(value, value) if key == "$ref" else _renamed(value, names)
            for key, value in part.items()
        }
    return [_renamed(one, names) for one in part] if isinstance(part, list) else part


def _describe_keys(document: dict[str, Any]) -> None:
    """States that each operation wants a key, but for the probes of the server's health."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A key, as `trivium keys add NAME` prints it"},
        "header": {
            "type": "apiKey",
            "in": "header",
            "name": API_KEY_HEADER,
            "description": "The same key, where a proxy wants the header Authorization for itself",
        },
    }
    document["security"] = [{"key": []}, {"header": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in PROBES:
                operation["security"] = [{}, *document["security"]]
            else:
                error = _REFERENCE.format(model="InferenceError" if path.startswith("/v2") else "Problem")
                body = {"application/json": {"schema": {"$ref": error}}}
                operation["responses"]["401"] = {"description": "No key, or one that is not known", "content": body}
