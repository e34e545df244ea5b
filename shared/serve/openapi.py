"""The description of the interface, where FastAPI cannot tell it from a route's signature.

A body that is streamed is no parameter of its route; its pydantic model is named in ``request_body`` instead, and
``DescribedAPI`` puts the model's schema among the others.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"


def request_body(content_type: str, model: type[BaseModel]) -> dict[str, Any]:
    """What a route passes as ``openapi_extra`` to say that its streamed body is a ``model``."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {content_type: {"schema": schema}}}}


class DescribedAPI(FastAPI):
    """A server whose description heads each route with its docstring's first line and holds the ``bodies``."""

    def __init__(self, *, bodies: list[type[BaseModel]], **given: Any) -> None:
        super().__init__(**given)
        self._bodies = bodies

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                if lines := operation.get("description", "").splitlines():
                    operation["summary"] = lines[0].rstrip(".")
            _, definitions = models_json_schema([(m, "validation") for m in self._bodies], ref_template=_REFERENCE)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions.get("$defs", {}))
        assert self.openapi_schema is not None
        return self.openapi_schema
