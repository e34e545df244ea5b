"""Texts of a user's file in a table that spreadsheets open: none is taken for a formula.

https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import re

_BLANKS = r"[ \t\r\n\v\f]*"
# Spreadsheets also split a line at semicolons and tabs, whatever separates its cells.
_FORMULA = re.compile(rf"(\A|[;\t\r\n])(?={_BLANKS}[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def text_cell(text: str) -> str:
    """The text of a cell with ``'`` before what Excel and LibreOffice would compute; a number as it is.

    These are texts that begin with ``=``, ``+``, ``-`` or ``@``, perhaps after blanks. Only texts that somebody else
    wrote need it: a number that is written as one is never a formula.
    """
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", text)
