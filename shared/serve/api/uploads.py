"""Uploads, streamed to disk as they arrive: files are not held in memory, and the limits apply while they arrive."""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from shared.errors import InvalidInputError

_CHUNK_BYTES = 1 << 20
_MAX_NAME_BYTES = 200
_MAX_FIELD_BYTES = 1 << 16
_MAX_FIELDS = 100


@dataclass(slots=True)
class Upload:
    """An uploaded form: its files in ``folder``, its other fields as text, and when it arrived (monotonic clock)."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)

    def add_field(self, name: str, value: str) -> None:
        """Adds a field. Refuses a repeated one, because one of the two values would be ignored."""
        if name in self.fields:
            raise InvalidInputError(f"the field {name!r} is given twice; send it once")
        self.fields[name] = value


async def receive(
    stream: AsyncIterator[bytes], headers: Mapping[str, str], folder: Path, *, max_bytes: int, max_files: int
) -> Upload:
    """Reads a form from a request body into ``folder``.

    Files are in the field ``files`` (multipart/form-data); a form without files may be
    application/x-www-form-urlencoded. Raises ``InvalidInputError`` with status 413 above ``max_bytes``, 415 for another
    content type, and 400 or 422 for a form that cannot be read or used.
    """
    content_length = headers.get("content-length", "")
    if content_length.isdecimal() and (len(content_length) > 19 or int(content_length) > max_bytes):
        raise _too_large(max_bytes)
    content_type, options = parse_options_header(headers.get("content-type", ""))
    if content_type == b"multipart/form-data" and options.get(b"boundary"):
        form = _Form(folder, options[b"boundary"], max_files)
        try:
            async for chunk in _limited(stream, max_bytes):
                arrived = time.monotonic()
                await run_in_threadpool(form.write, chunk)
            return form.finish(arrived)
        finally:
            form.close()
    if content_type == b"application/x-www-form-urlencoded":
        body = b""
        async for chunk in _limited(stream, max_bytes):
            body += chunk[: _CHUNK_BYTES + 1 - len(body)]
        try:
            fields = parse_qsl(body.decode(), strict_parsing=bool(body), max_num_fields=_MAX_FIELDS)
        except ValueError:  # a raw file, which curl labels as a form; Python's error would repeat all of it
            fields = None
        if fields is not None and len(body) <= _CHUNK_BYTES:
            upload = Upload(folder)
            for name, value in fields:
                upload.add_field(name, value)
            return upload
    raise InvalidInputError(
        "send multipart/form-data with the field `files` (curl -F files=@FILE), or with `sample` and a sample's name",
        status=415,
    )


async def _limited(stream: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The stream in chunks of about a mebibyte; refuses a stream of more than ``max_bytes``."""
    total, buffer, size = 0, [], 0
    async for chunk in stream:
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        buffer.append(chunk)
        size += len(chunk)
        if size >= _CHUNK_BYTES:
            yield b"".join(buffer)
            buffer, size = [], 0
    yield b"".join(buffer)


def _too_large(max_bytes: int) -> InvalidInputError:
    return InvalidInputError(
        f"the request is larger than this server accepts ({max_bytes:,} bytes); send less, or increase "
        "TRIVIUM_MAX_UPLOAD_BYTES",
        status=413,
    )


def safe_name(name: str) -> str:
    """The name of a file without folders and control characters, cut to 200 bytes before its suffix."""
    base = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    base = "".join(letter for letter in base if letter.isprintable()).strip()
    if not base.strip(". "):
        return "upload"
    stem, suffix = (base, "") if len(Path(base).suffix) > 20 else (Path(base).stem, Path(base).suffix)
    while len((stem + suffix).encode()) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


class _Form:
    """Callbacks of the multipart parser, which write parts with a file name to disk and the others into fields."""

    def __init__(self, folder: Path, boundary: bytes, max_files: int) -> None:
        self._folder, self._max_files = folder, max_files
        self._upload = Upload(folder)
        self._name_counts: Counter[str] = Counter()
        self._header_name, self._header_value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._file: BinaryIO | None = None
        self._field: tuple[str, bytearray] | None = None
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._on_end,
            },
        )

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise InvalidInputError(f"the form cannot be read: {error}", status=400) from error

    def finish(self, arrived: float) -> Upload:
        if not self._complete:
            raise InvalidInputError("the form is incomplete; was the upload interrupted?", status=400)
        self._upload.arrived = arrived
        return self._upload

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self._headers = {}

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise InvalidInputError("a part of the form has no name", status=400)
        if b"filename" not in options:
            if len(self._upload.fields) >= _MAX_FIELDS:
                raise InvalidInputError(f"the form has more than {_MAX_FIELDS} fields")
            self._field = (name, bytearray())
        elif options[b"filename"]:
            if name != "files":
                raise InvalidInputError(f"the field {name!r} contains a file; send files in the field 'files'")
            if len(self._upload.files) >= self._max_files:
                raise InvalidInputError(
                    f"the form has more than {self._max_files} files; send them as one zip file", status=413
                )
            self._open(safe_name(options[b"filename"].decode(errors="replace")))

    def _open(self, name: str) -> None:
        # Files with the same name, such as a series from several folders, keep it; each gets its own folder.
        self._name_counts[name.casefold()] += 1
        path = self._folder / str(self._name_counts[name.casefold()]) / name
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("xb")
        self._upload.files.append(path)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
        elif self._field is not None:
            name, value = self._field
            if len(value) + end - start > _MAX_FIELD_BYTES:
                raise InvalidInputError(f"the field {name!r} is longer than {_MAX_FIELD_BYTES} bytes")
            value += data[start:end]

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._field is not None:
            name, value = self._field
            self._upload.add_field(name, value.decode(errors="replace"))
            self._field = None

    def _on_end(self) -> None:
        self._complete = True
