"""The head's word to its workers: a TCP line each way, so that a fleet that is taken down leaves no worker behind.

A worker cannot tell from a silent GCS whether the head was taken down (then it must end at once) or died and will be
back (then its agents must go on). So every worker's keeper holds one connection to the head's keeper: it is told the
revision at first, and `bye` when the fleet ends; a connection that breaks without that word means "hold on".
Nothing secret passes, and nothing is obeyed but `bye` from the head that the worker itself called.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

PORT_AFTER_RAY = 1
"""The beacon listens on the port after the GCS's."""


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice within a minute and a half that the other host is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Beacon:
    """The head's side: a thread that answers each worker and keeps its connection.

    Args:
        host: the address to listen on.
        port: the port.
        greeting: what each worker is told, JSON values.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int, greeting: dict[str, Any]) -> None:
        self._greeting = json.dumps(greeting).encode() + b"\n"
        self._workers: list[socket.socket] = []
        self._lock = threading.Lock()
        self._server = socket.create_server((host, port), backlog=128)
        threading.Thread(target=self._accept, name="beacon", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                worker, _ = self._server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                keep_alive(worker)
                worker.sendall(self._greeting)
                with self._lock:
                    self._workers.append(worker)

    def bye(self) -> None:
        """Tell every worker that the fleet ends, and stop listening."""
        self._server.close()
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.sendall(b"bye\n")
                worker.close()


class Listener:
    """The worker's side: one connection, made again when it breaks.

    Attributes:
        greeting: what the head said at first.
        own_address: this host's address on the way to the head.
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.host, self.port = host, port
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._buffer = b""
        self.own_address: str = self._socket.getsockname()[0]
        while b"\n" not in self._buffer:
            part = self._socket.recv(65536)
            if not part:
                raise ConnectionError(f"{host}:{port} closed the connection before it said anything")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        self.greeting: dict[str, Any] = json.loads(line)
        keep_alive(self._socket)
        self._socket.setblocking(False)

    def said_bye(self) -> bool:
        """Return whether the head ended the fleet. Raises ConnectionError when the connection broke without a word."""
        try:
            part = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not part:
            raise ConnectionError("the head closed the connection without a word")
        self._buffer += part
        return b"bye\n" in self._buffer

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close()
