"""Bytes of a text file to text: UTF-8, UTF-16, GB18030, Windows-1252."""

from __future__ import annotations

import re

from shared.errors import InvalidInputError


def decode(content: bytes, name: str) -> str:
    """The text of a file, its lines ended by newlines; refuses what is no text."""
    return content.decode(_encoding(content, name), errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _encoding(content: bytes, name: str) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    head = content[:4096]
    if b"\x00" in head:
        # Western text in UTF-16 without a mark has nothing but zeros at every other place.
        for order, places in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if len(places) > 8 and places.count(0) == len(places) == head.count(0):
                return order
        raise InvalidInputError(f"{name} is not text; hand in a CSV file, or a Parquet file with the ending .parquet")
    try:
        content.decode("utf-8-sig")
        return "utf-8-sig"
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        lines = b"\n".join(line for line in content[:1_000_000].splitlines() if not line.isascii())[:65536]
        best = from_bytes(lines, cp_isolation=["gb18030", "cp1252"]).best()
        # A single character beyond ASCII can be either; Chinese headers have words of two and more.
        chinese = best is not None and best.encoding == "gb18030" and re.search("[\u4e00-\u9fff]{2}", str(best))
        return "gb18030" if chinese else "cp1252"
