"""What every application's ``result.json`` says of the models that it was computed with."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class ComputedWith(TypedDict):
    """By model, of those that had a part in the answer; an application's own result goes on from here."""

    versions: NotRequired[Annotated[dict[str, int], Field(description="the version of its artifact")]]
    programs: NotRequired[Annotated[dict[str, str], Field(description="what its network was computed with")]]
    program_reasons: NotRequired[Annotated[dict[str, str], Field(description="why that program")]]
