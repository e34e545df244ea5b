"""Finds the network interface through which the hosts of a job reach each other, where gloo would choose the wrong one.

Gloo listens on the address that the host's own name resolves to. On Debian and Ubuntu this is by default 127.0.1.1,
which other hosts cannot reach, and in many networks the name does not resolve at all, or to another machine's address.
Gloo then listens on the loopback interface.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_VARIABLE = "GLOO_SOCKET_IFNAME"
_DISCARD_PORT = 9
_SIOCGIFADDR = 0x8915
"""The request for an interface's IPv4 address (netdevice(7))."""


def choose_interface(own_address: str, other_addresses: Iterable[str]) -> None:
    """Sets ``GLOO_SOCKET_IFNAME`` if it is not set and gloo would listen on an address that others cannot reach.

    ``own_address`` is this host's address on the way to the first host, and ``other_addresses`` are those of the
    other hosts. On the first host its own address may be a loopback address: the way to another host counts then.
    """
    if os.environ.get(_VARIABLE) or is_reachable(_default_address()):
        return
    candidates = [own_address, *(local_address(other) for other in other_addresses if is_reachable(other))]
    for address in filter(is_reachable, candidates):
        if interface := _interface_of(address):
            os.environ[_VARIABLE] = interface
            return


def _default_address() -> str:
    """The address that gloo would listen on: the first one of this host's name that is its own; empty if none is."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind(address)
                return str(address[0])
    return ""


def local_address(host: str) -> str:
    """This host's address on the way to ``host``, or empty if there is no way. Nothing is sent."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, _DISCARD_PORT, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return ""


def is_reachable(address: str) -> bool:
    """Whether other hosts may reach the address: it is neither empty nor a loopback address."""
    return bool(address) and not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _interface_of(address: str) -> str | None:
    """The name of the interface that has the address (Linux), or None."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        import fcntl

        for _, name in socket.if_nameindex():
            with suppress(OSError):
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if ipaddress.ip_address(found[20:24]) == wanted:
                    return name
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            if ipaddress.ip_address(bytes.fromhex(digits)) == wanted:
                return name
    return None
