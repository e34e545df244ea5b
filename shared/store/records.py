"""The records of cases that the store takes and returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from shared.utc_time import iso_utc

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from: its ``interface`` (form, json, or a protocol's name) and the ``group`` of its key."""

    interface: str
    group: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """The parts of an answer to keep: the bytes of ``result.json`` and of a PNG, and the app's own files by name.

    ``later`` maps each file that is generated on request, possibly ``picture.png``, to the names of its sources in
    ``sources`` or ``files``. The sources named in ``lasting`` are kept as long as the case, and so are ``inputs``, the
    inputs that were analysed, if the server keeps inputs.
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
        """The total size in bytes."""
        contents = (*self.files.values(), *self.sources.values(), *self.inputs.values())
        return sum(map(len, (self.result, self.picture, *contents)))


class InputFile(BaseModel):
    """An uploaded file: its name, size in bytes and SHA-256. It does not contain the content.

    ``name`` is the kind of file, such as "nii.gz file", if names may be those of persons.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str


class CaseSummary(BaseModel):
    """A case in a list, without the result, which may be large. ``created_ns`` is UTC in nanoseconds.

    ``interface`` is the interface of the request: form, json, or the name of a protocol.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: str
    app: str
    created_ns: int
    interface: str
    inputs: tuple[InputFile, ...]

    @property
    def created(self) -> str:
        """The creation time in ISO 8601, UTC, to the millisecond."""
        return iso_utc(self.created_ns / 1e9)

    @property
    def names(self) -> list[str]:
        """The names of the inputs. Inputs that have only a kind are counted, as in "111 dcm files"."""
        counts = Counter(item.name for item in self.inputs)
        counted = {name: f"{count} {name}s" for name, count in counts.items() if count > 1 and name.endswith("file")}
        return [*counted.values(), *(item.name for item in self.inputs if item.name not in counted)]

    @property
    def label(self) -> str:
        """The names of the inputs, shortened for a list."""
        if not self.inputs:
            return self.id
        first, *others = self.names
        return f"{first} and {len(others)} more" if others else first


class Case(CaseSummary):
    """A complete case. ``inputs_sha256`` is the digest of all inputs together, independent of their order.

    ``files`` are the names of the app's own files, besides ``result.json`` and ``picture.png``. ``bytes`` is the total
    size of the files on disk. ``remark`` says why the case is not kept; None if it is kept. ``group`` is the group of
    the key that submitted it; None for a key without a group.
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
        """Whether a key of this group may see the case; a key without a group sees all."""
        return group in (None, self.group)
