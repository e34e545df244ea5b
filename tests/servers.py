"""Ports and readiness of servers that tests start as processes."""

from __future__ import annotations

import socket

import httpx2 as httpx


def free_port() -> int:
    """A TCP port of the loopback interface that no process listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_up(address: str) -> bool:
    """Whether a GET request to this address is answered with status 200."""
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
