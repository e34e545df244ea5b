"""Bytes of a text file to text: UTF-8, UTF-16, GB18030 under Chinese words, Windows-1252."""

from __future__ import annotations

import itertools

from shared.errors import InvalidInputError


def decode(content: bytes, name: str) -> str:
    """The text of a file, its lines ended by newlines; refuses what is no text."""
    return _decode(content, name).replace("\r\n", "\n").replace("\r", "\n")


def _decode(content: bytes, name: str) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    head = content[:4096]
    if b"\x00" in head:
        # Western text in UTF-16 without a mark has nothing but noughts at every other place.
        for order, places in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if len(places) > 8 and places.count(0) == len(places) == head.count(0):
                return content.decode(order, errors="replace")
        raise InvalidInputError(f"{name} is not text; hand in a CSV file, or a Parquet file with the ending .parquet")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("gb18030" if _chinese(content) else "cp1252", errors="replace")


def _chinese(content: bytes) -> bool:
    """Whether the first line beyond ASCII makes sense as GB18030: two common hanzi in a row, else ASCII and marks.

    Common are the 3,755 hanzi of GB2312's first level; accents of Western headers rarely fall on two of them.
    """
    line = next((line for line in content.splitlines() if not line.isascii()), b"")
    try:
        words = line.decode("gb18030")
    except UnicodeDecodeError:
        return False
    plausible = all(
        mark.isascii() or "\u4e00" <= mark <= "\u9fff" or "\u3000" <= mark <= "\u303f" or "\uff00" <= mark <= "\uffef"
        for mark in words
    )
    return plausible and any(_common(one) and _common(other) for one, other in itertools.pairwise(words))


def _common(mark: str) -> bool:
    code = mark.encode("gb2312", errors="ignore")
    return len(code) == 2 and 0xB0 <= code[0] <= 0xD7
