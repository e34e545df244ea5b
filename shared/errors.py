"""Bad input, refused at the edge."""

from __future__ import annotations


class InvalidInputError(Exception):
    """An input that cannot be used, with a sentence that names it and says what to do.

    Raised by adapters, predictors and the command line; the command exits with 2, the server answers with
    ``status``. The inside of the project trusts its types and never raises it.
    """

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status
