"""A client of the wire as a third party writes it: a socket, struct and pickle."""

from __future__ import annotations

import pickle
import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    """Return when the condition holds, which must be soon."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class RawClient:
    """A connection to a server under test. Nothing here waits longer than five seconds."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=5)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, value: Any) -> None:
        self.sock.sendall(b"".join(encode_frame(value)))

    def send_payload(self, payload: bytes) -> None:
        self.sock.sendall(struct.pack("!I", len(payload)) + payload)

    def receive(self) -> Any:
        (length,) = struct.unpack("!I", self._exactly(4))
        return loads(self._exactly(length))

    def ask(self, value: Any) -> Any:
        self.send(value)
        return self.receive()

    def ask_pickled(self, value: Any) -> Any:
        """Ask as a client without our package does."""
        self.send_payload(pickle.dumps(value))
        return self.receive()

    def hello(self, **params: Any) -> Any:
        return self.ask({"method": "hello", "protocol_version": 1, **params})

    def say(self, text: str) -> str:
        """Send text and return all that comes until the server closes."""
        self.sock.sendall(text.encode())
        return self.read_to_the_end().decode()

    def read_to_the_end(self) -> bytes:
        received = b""
        while True:
            try:
                part = self.sock.recv(65536)
            except ConnectionResetError:  # what the server did not read of ours makes its close a reset
                return received
            if not part:
                return received
            received += part

    def closed(self) -> bool:
        """Whether the server closes without another byte."""
        return self.read_to_the_end() == b""

    def _exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            part = self.sock.recv(count - len(received))
            if not part:
                raise EOFError(f"the server closed after {len(received)} of {count} bytes")
            received += part
        return bytes(received)
