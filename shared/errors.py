"""The error for invalid input, and the error numbers of a full disk."""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The ``errno`` of an ``OSError`` on a full disk or when the user's quota is used up."""


class InvalidInputError(Exception):
    """An input that cannot be used. The message names the input, what is wrong with it and what to do.

    It is raised where input enters: in adapters, services, predictors, the checks before a training, and the command
    line. A command then exits with code 2, and the server answers with the HTTP status ``status``.
    """

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status
