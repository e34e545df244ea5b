"""Escapes texts from a user's file in CSV cells, so that no spreadsheet runs them as a formula.

https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import re

_WHITESPACE = r"[ \t\r\n\v\f]*"
# Spreadsheets also split a line at semicolons and tabs, whatever separates its cells.
_FORMULA = re.compile(rf"(\A|[;\t\r\n])(?={_WHITESPACE}[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def text_cell(text: str) -> str:
    """The text with ``'`` before each part that Excel or LibreOffice would take for a formula; numbers are unchanged.

    Such a part begins with ``=``, ``+``, ``-`` or ``@``, possibly after whitespace. Only texts from others need this:
    a number that is written as a number is never a formula.
    """
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", text)
