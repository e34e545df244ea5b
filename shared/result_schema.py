"""The fields about models that the ``result.json`` of every application has."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class ComputedWith(TypedDict):
    """Facts by model name, for the models that took part in the answer. An application's result type extends this."""

    versions: NotRequired[Annotated[dict[str, int], Field(description="the version of its artifact")]]
    programs: NotRequired[Annotated[dict[str, str], Field(description="what its network was computed with")]]
    program_reasons: NotRequired[Annotated[dict[str, str], Field(description="why that program")]]
