"""What is kept of a case, as the store gives it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from shared.utc_time import iso_utc

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from: the ``interface`` (form, json, or a protocol's name), and its key's ``group``."""

    interface: str
    group: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What is kept of an answer: ``result.json`` and a PNG as their bytes, and the app's own files by name.

    ``later`` says of files that are made when they are asked for, ``picture.png`` too, what they are made from: names
    in ``sources`` or in ``files``. Those of ``sources`` that are in ``lasting`` stay as long as the case, and so does
    what was analysed, ``inputs``, where it is to be kept at all.
    """

    result: Bytes
    picture: Bytes = b""
    files: Mapping[str, Bytes] = field(default_factory=dict)
    later: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sources: Mapping[str, Bytes] = field(default_factory=dict)
    lasting: Sequence[str] = ()
    inputs: Mapping[str, Bytes] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What all of it takes."""
        kept = (*self.files.values(), *self.sources.values(), *self.inputs.values())
        return sum(map(len, (self.result, self.picture, *kept)))


class InputFile(BaseModel):
    """A file that was handed in: its name, size in bytes and SHA-256. The content is not kept.

    ``name`` is the kind of the file where names may be those of persons: "nii.gz file".
    """

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str


class CaseSummary(BaseModel):
    """A case in a list, without the result, which may be large. ``created_ns`` is UTC in nanoseconds.

    ``interface`` is the way that the request came: form, json, or the name of a protocol.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: str
    app: str
    created_ns: int
    interface: str
    inputs: tuple[InputFile, ...]

    @property
    def created(self) -> str:
        """The time of the case in ISO 8601, UTC, to the millisecond."""
        return iso_utc(self.created_ns / 1e9)

    @property
    def names(self) -> list[str]:
        """The names of the inputs; kinds that stand for several are counted, as "111 dcm files"."""
        found = Counter(item.name for item in self.inputs)
        counted = {name: f"{count} {name}s" for name, count in found.items() if count > 1 and name.endswith("file")}
        return [*counted.values(), *(item.name for item in self.inputs if item.name not in counted)]

    @property
    def label(self) -> str:
        """The names of the inputs, shortened for a list."""
        if not self.inputs:
            return self.id
        first, *others = self.names
        return f"{first} and {len(others)} more" if others else first


class Case(CaseSummary):
    """A kept case, whole. ``inputs_sha256`` is the digest of all inputs together, in whichever order they came.

    ``files`` are the names of the app's own files, besides ``result.json`` and ``picture.png``; ``bytes`` is what all
    take on disk. ``remark`` says where that is so why the case is not kept. ``group`` is that of the key that handed it
    in, and None for one without.
    """

    inputs_sha256: str
    options: dict[str, str]
    artifact_name: str
    artifact_version: int
    files: tuple[str, ...]
    bytes: int = 0
    remark: str | None = None
    group: str | None = None

    def seen_by(self, group: str | None) -> bool:
        """Whether a key of the group may see it; None sees all."""
        return group in (None, self.group)
