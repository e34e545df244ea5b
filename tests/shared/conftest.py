"""Fixtures that the tests of the server and of the store share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shared.postgresql import PostgreSQL, running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server, started for these tests and stopped after them."""
    yield from running()
