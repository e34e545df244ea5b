"""The parts of the OpenAPI document that FastAPI cannot derive from a route's signature.

A streamed body is not a parameter of its route. The route passes the body's pydantic model to ``request_body`` instead,
and ``DescribedAPI`` adds the model's schema to the document.
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
    """The ``openapi_extra`` of a route whose streamed body is a ``model``."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {content_type: {"schema": schema}}}}


def content(content_type: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """An entry of a route's ``responses`` for an answer that is not JSON: its content type and optional schema."""
    return {"content": {content_type: {} if schema is None else {"schema": schema}}}


def file_content(content_type: str) -> dict[str, Any]:
    """The same for an answer that is a file."""
    return content(content_type, {"type": "string", "format": "binary"})


def header(name: str, description: str, kind: str = "string") -> dict[str, Any]:
    """An entry of a response's ``headers`` for a header that it may have."""
    return {name: {"description": description, "schema": {"type": kind}}}


def header_parameter(name: str, description: str, kind: str = "string") -> dict[str, Any]:
    """An entry of ``parameters`` in a route's ``openapi_extra``, for a header that its function does not declare."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": kind}}


_RETRY_AFTER = header("Retry-After", "seconds to wait before the next attempt, if known", "integer")
_FORM, _ANSWER = "PredictForm", "CaseAnswer"
"""The general schemas of a request and its answer, in ``shared.serve.api.schemas``."""
_REVIEWS = ("ReviewBody", "ReviewAnswer", "Reviews")
"""The general schemas of a review, its answer, and the list of a case's reviews."""
_COMMON_RESPONSES = {
    "421": "The server does not answer for this `Host`",
    "500": "An internal error; the server's log has the details",
}
_BODY_RESPONSES = {
    "400": "The body cannot be read",
    "408": "The body did not arrive in time, or too slowly",
    "413": "Too large",
}
_UNAVAILABLE_RESPONSE = {"503": "The store's database cannot be reached; see Retry-After"}
_NO_KEY_RESPONSE = {"401": "No key, or an unknown one"}
_WRITE_RESPONSES = {
    "403": "A write from a page of another site, or one that a user's key does not allow",
    "429": "The client has too many concurrent requests; see Retry-After",
    "503": "The server is at capacity or shutting down; see Retry-After",
}

_SECURITY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key, as `trivium keys add NAME` prints it"},
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": API_KEY_HEADER,
        "description": "The same key, for use behind a proxy that needs the header Authorization itself",
    },
}
_KEY_REQUIRED: list[dict[str, list[str]]] = [{"key": []}, {"header": []}]


class DescribedAPI(FastAPI):
    """A FastAPI server with a complete OpenAPI document.

    The summary of each route is the first line of its docstring. The document also has the schemas of the ``bodies``,
    the answers of the middleware, and the options and the result of each application in ``apps`` (by name). ``limits``
    describes the maximum size of a POST body, by the last segment of the path.
    """

    def __init__(
        self,
        *,
        bodies: list[type[BaseModel]],
        apps: Mapping[str, Schemas],
        requires_key: bool,
        limits: Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._bodies, self._apps, self._requires_key, self._limits = bodies, apps, requires_key, limits

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, built on the first call."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    self._complete_operation(path, method, operation)
            _, definitions = models_json_schema([(m, "validation") for m in self._bodies], ref_template=_REFERENCE)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions.get("$defs", {}))
            for name, types in self._apps.items():
                _add_app_schemas(document, name, types)
            _remove_replaced_schemas(document)
            _remove_empty_defaults(schemas)
            if self._requires_key:
                document["components"]["securitySchemes"] = _SECURITY_SCHEMES
                document["security"] = _KEY_REQUIRED
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _complete_operation(self, path: str, method: str, operation: dict[str, Any]) -> None:
        """Adds the summary, the limit of the body, and the answers of the middleware to an operation."""
        if lines := operation.get("description", "").splitlines():
            operation["summary"] = lines[0].rstrip(".")
        if method == "post" and (limit := self._limits.get(path.rpartition("/")[2])) is not None:
            operation["requestBody"]["description"] = limit
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        added = _COMMON_RESPONSES | ({} if path in PROBES else _UNAVAILABLE_RESPONSE)
        added |= {} if method == "get" else _WRITE_RESPONSES
        added |= _BODY_RESPONSES if "requestBody" in operation else {}
        if self._requires_key and path in PROBES:
            operation["security"] = [{}, *_KEY_REQUIRED]
        elif self._requires_key:
            added |= _NO_KEY_RESPONSE
        error = {"$ref": _REFERENCE.format(model="InferenceError" if path.startswith("/v2") else "Problem")}
        responses = operation["responses"]
        for status, description in added.items():
            body = {"application/json": {"schema": error}}
            responses.setdefault(status, {"description": description, "content": body})
        for status in responses.keys() & {"429", "503"}:
            responses[status]["headers"] = _RETRY_AFTER


def _add_app_schemas(document: dict[str, Any], name: str, types: Schemas) -> None:
    """Adds the application's own schemas: a form with its options, and an answer with its result."""
    schemas = document["components"]["schemas"]
    options, result = (TypeAdapter(kind).json_schema(ref_template=_REFERENCE) for kind in (types.options, types.result))
    for schema in (options, result):
        schemas |= schema.pop("$defs", {})
    schemas[types.result.__name__] = result
    form, answer = (schemas[general] for general in (_FORM, _ANSWER))
    prefix = name.title().replace("_", "")
    schema_names = {general: f"{prefix}{general}" for general in (_FORM, _ANSWER)}
    schemas[schema_names[_FORM]] = form | {
        "title": schema_names[_FORM],
        "description": "Files, or the name of a sample instead, and options; an empty option counts as not given.",
        "properties": form["properties"] | options["properties"],
        "additionalProperties": False,
    }
    result_reference = {"$ref": _REFERENCE.format(model=types.result.__name__)}
    schemas[schema_names[_ANSWER]] = answer | {
        "title": schema_names[_ANSWER],
        "properties": answer["properties"] | {"result": result_reference},
    }
    schema_names |= _add_review_schemas(schemas, prefix, types.missed)
    for path, operations in document["paths"].items():
        if path.startswith(f"/api/{name}/"):
            document["paths"][path] = _rename_references(operations, schema_names)


def _add_review_schemas(schemas: dict[str, Any], prefix: str, missed: type | None) -> dict[str, str]:
    """Adds the application's schemas of reviews, with its type of a missed finding (None: it takes none).

    Returns the names of these schemas by those of the general ones.
    """
    schema_names = {general: f"{prefix}{general}" for general in _REVIEWS}
    if missed is None:
        missed_schema: dict[str, Any] = {"maxItems": 0}
    else:
        schema = TypeAdapter(missed).json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[missed.__name__] = schema
        missed_schema = {"items": {"$ref": _REFERENCE.format(model=missed.__name__)}}
    for general, name in schema_names.items():
        app_schema = _rename_references(schemas[general], schema_names) | {"title": name}
        if "missed" in app_schema["properties"]:
            app_schema["properties"]["missed"] |= missed_schema
        schemas[name] = app_schema
    return schema_names


def _remove_replaced_schemas(document: dict[str, Any]) -> None:
    """Removes the general schemas that every application has replaced, so that clients do not use them by mistake."""
    for general in (_FORM, _ANSWER, *reversed(_REVIEWS), "JsonValue"):
        if json.dumps(_REFERENCE.format(model=general)) not in json.dumps(document):
            document["components"]["schemas"].pop(general, None)


def _remove_empty_defaults(schemas: Mapping[str, Any]) -> None:
    """Removes empty defaults, because openapi-typescript makes every property with a default a required one."""
    for schema in schemas.values():
        for property_schema in schema.get("properties", {}).values():
            if not property_schema.get("default", True):
                del property_schema["default"]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without null, which FastAPI adds to optional ones: in a URL or a header there is no null."""
    schemas = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return rest | schemas[0] if len(schemas) == 1 else schema


def _rename_references(part: Any, names: Mapping[str, str]) -> Any:
    """A part of the document with the references to schemas renamed; ``names`` has the new names by the old."""
    if isinstance(part, dict):
        references = {_REFERENCE.format(model=old): _REFERENCE.format(model=new) for old, new in names.items()}
        return {
            key: references.get(value, value) if key == "$ref" else _rename_references(value, names)
            for key, value in part.items()
        }
    return [_rename_references(item, names) for item in part] if isinstance(part, list) else part
