"""Free ports below the kernel's own range, so that no outgoing connection takes one between choice and use."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 15_000, 30_000


def port_free(host: str, port: int) -> bool:
    """Return whether a server may listen on the port of this host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # What a server does; without it a port in TIME_WAIT would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return different free ports."""
    found: list[int] = []
    for port in random.sample(range(FIRST, LAST), 2000):
        if port_free(host, port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"expected {count} free ports between {FIRST} and {LAST} on {host}, found {len(found)}")
