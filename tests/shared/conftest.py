"""What tests of the server and of the store share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shared.postgresql import PostgreSQL, executable


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server, started for these tests and stopped after them."""
    if executable() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        found = PostgreSQL(Path(folder))
        found.start()
        try:
            yield found
        finally:
            found.stop()
