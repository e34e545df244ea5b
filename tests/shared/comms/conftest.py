"""A cluster of two hosts for the tests, made of network namespaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.comms.shaped_network import Host, missing_rights, shaped_network


@pytest.fixture(scope="package")
def hosts() -> Iterator[list[Host]]:
    """Two hosts with 200 Mbit/s between them."""
    if reason := missing_rights():
        pytest.skip(f"no network namespaces here: {reason}")
    with shaped_network(2, 200) as made:
        yield made
