"""Ports, certificates and readiness of servers that tests start as processes."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

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


def make_certificate(certificate: Path, key: Path, name: str, *options: str) -> None:
    """Writes a certificate with this common name and its key, self-signed unless openssl's ``options`` name a CA."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*new, *files, "-subj", f"/CN={name}", *options], check=True, capture_output=True)
