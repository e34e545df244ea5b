"""Bytes of a text file to text: UTF-8, UTF-16 with its mark, GB18030, Windows-1252."""

from __future__ import annotations

import re

from shared.errors import InvalidInputError


def decode(content: bytes, name: str) -> str:
    """The text of a file, its lines ended by newlines; refuses what is no text."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\x00" in content[:4096]:
        raise InvalidInputError(f"{name} is not text; hand in a CSV file, or a Parquet file with the ending .parquet")
    try:
        text = content.decode(encoding, errors="replace" if encoding == "utf-16" else "strict")
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        lines = b"\n".join(line for line in content[:1_000_000].splitlines() if not line.isascii())[:65536]
        best = from_bytes(lines, cp_isolation=["gb18030", "cp1252"]).best()
        # A single character beyond ASCII can be either; Chinese headers have words of two and more.
        chinese = best is not None and best.encoding == "gb18030" and re.search("[\u4e00-\u9fff]{2}", str(best))
        text = content.decode("gb18030" if chinese else "cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")
