"""One TCP connection that carries frames: the only file on the client side that touches a socket.

Every OS error becomes one of ours here. After any of them the connection is closed: a stream that was left in
the middle of a frame is never read again.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any, Callable, Sequence

from robowire.address import join_address
from robowire.errors import (
    ConnectFailed,
    ConnectionLost,
    ProtocolError,
    RequestTimeout,
    TransportError,
    TruncatedFrame,
)
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD, FrameDecoder, TextLine
from robowire.wire.pickle.writer import Buffer

__all__ = ["Connection", "require_seconds"]

# The kernel takes at most this many buffers in one call (IOV_MAX is 1024 on Linux and macOS).
_MAX_BUFFERS = 1024


def require_seconds(**seconds: float) -> None:
    """Do nothing, if every time is a positive number.

    Raises:
        ValueError: One is not; names it.
    """
    for name, value in seconds.items():
        if not value > 0:  # nor is it no number at all
            raise ValueError(f"{name} is {value!r}, expected a positive number of seconds")


class Connection:
    """A connected socket that sends and receives payloads. One thread at a time reads, and one writes.

    Args:
        sock: A connected TCP socket, or one of a pair of Unix sockets; owned by this object from now on.
        max_payload: Largest payload to accept, in bytes.
        text: Whether the peer may speak text lines (servers only).
        clock: Seconds, monotonic; tests pass their own.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        text: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sock = sock
        self._clock = clock
        self.decoder = FrameDecoder(max_payload, text=text)
        self.bytes_received = 0
        self.bytes_sent = 0
        try:
            self.peer = _address(sock.getpeername())
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                # Without this, two small sends meet Nagle and delayed acknowledgement: 44 ms a request.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:  # the peer left between accept and here
            sock.close()
            raise ConnectionLost(f"connection was lost at once: {exc.strerror or exc}") from exc

    @classmethod
    def connect(
        cls, host: str, port: int, *, timeout_s: float, max_payload: int = DEFAULT_MAX_PAYLOAD
    ) -> Connection:
        """Return a connection to ``host:port``.

        Raises:
            ConnectFailed: Nobody answers there within ``timeout_s``, or the name is unknown.
        """
        try:
            sock = socket.create_connection((host, port), timeout=timeout_s)
        except socket.timeout as exc:
            raise ConnectFailed(f"{host}:{port} did not answer within {timeout_s:g} s") from exc
        except ConnectionRefusedError as exc:
            raise ConnectFailed(f"nothing listens on {host}:{port}: is the server running there?") from exc
        except OSError as exc:
            raise ConnectFailed(f"cannot connect to {host}:{port}: {exc.strerror or exc}") from exc
        return cls(sock, max_payload=max_payload)

    def send(self, buffers: Sequence[Buffer], *, timeout_s: float) -> None:
        """Send the buffers in order, gathered by the kernel, not copied.

        Raises:
            RequestTimeout: The peer did not take them within ``timeout_s``; the connection is closed.
            ConnectionLost: The connection ended; it is closed.
        """
        views: list[memoryview] = [memoryview(buffer) for buffer in buffers]
        deadline = self._clock() + timeout_s
        try:
            while views:
                self._sock.settimeout(max(deadline - self._clock(), 1e-3))
                sent = self._sock.sendmsg(views[:_MAX_BUFFERS])
                self.bytes_sent += sent
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except OSError as exc:
            raise self._fail(exc, f"did not read our bytes within {timeout_s:g} s") from exc

    def receive(self, *, wait_s: float | None, finish_s: float) -> bytearray | TextLine | None:
        """Return the next payload or line, or ``None`` where the peer ended the stream between two of them.

        Args:
            wait_s: Seconds to wait for its first byte; ``None`` waits for ever.
            finish_s: Seconds from the first byte to the last, so that a peer which sends a byte a minute is
                not served.

        Raises:
            RequestTimeout: Either time passed; the connection is closed.
            ConnectionLost: The connection broke; it is closed.
            RemoteProtocolError: The peer broke the framing; the connection is closed.
        """
        deadline: float | None = self._clock() + finish_s if self.decoder.mid_frame else None
        first_deadline = None if wait_s is None else self._clock() + wait_s
        try:
            while True:
                until = first_deadline if deadline is None else deadline
                self._sock.settimeout(None if until is None else max(until - self._clock(), 1e-3))
                received = self._sock.recv_into(self.decoder.get_buffer())
                if received == 0:
                    self.decoder.receive_eof()
                    return None
                self.bytes_received += received
                event = self.decoder.buffer_updated(received)
                if event is not None:
                    return event
                if deadline is None:
                    deadline = self._clock() + finish_s
        except OSError as exc:
            what = (
                f"sent nothing for {wait_s:g} s"
                if deadline is None
                else f"did not finish a frame within {finish_s:g} s"
            )
            raise self._fail(exc, what) from exc
        except ProtocolError:
            self.close()
            raise

    def exchange(self, buffers: Sequence[Buffer], *, timeout_s: float) -> bytearray:
        """Send one request and return the payload that answers it, for clients.

        Args:
            buffers: The request's frame.
            timeout_s: Seconds to send it, as many until the reply begins, and as many until that is complete.

        Raises:
            RequestTimeout: One of these times passed; the connection is closed.
            ConnectionLost: The connection ended before the reply was complete; it is closed.
            RemoteProtocolError: The peer broke the framing; the connection is closed.
        """
        try:
            self.send(buffers, timeout_s=timeout_s)
            payload = self.receive(wait_s=timeout_s, finish_s=timeout_s)
            if payload is None:
                raise ConnectionLost(f"{self.peer} closed the connection before it answered; see its log")
        except TruncatedFrame as exc:
            raise ConnectionLost(f"{self.peer} was lost in the middle of its reply: {exc}") from exc
        except BaseException:  # KeyboardInterrupt too: a connection is never left half read
            self.close()
            raise
        assert isinstance(payload, bytearray)  # clients' decoders read no text
        return payload

    def wait(self, timeout_s: float) -> bool:
        """Return, in ``timeout_s`` at most, whether something can be read, be it the end of the stream."""
        poll = select.poll()  # not on Windows, where no server of ours runs
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1e3))

    def ended(self) -> bool:
        """Return whether the peer ended the stream, or broke it, and nothing is left to read before the end.

        It may still read: who shuts down one half of a connection only looks the same.
        """
        try:
            return self.wait(0) and not self._sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def stop_reading(self) -> None:
        """Make a blocked or later :meth:`receive` see the end of the stream; any thread may call it."""
        try:
            self._sock.shutdown(socket.SHUT_RD)
        except OSError:  # not connected any more: nothing left to read
            return

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._sock.close()

    def _fail(self, exc: OSError, timeout: str) -> TransportError:
        self.close()
        if isinstance(exc, socket.timeout):
            return RequestTimeout(f"{self.peer} {timeout}; the connection was closed")
        return ConnectionLost(f"connection with {self.peer} was lost: {exc.strerror or exc}")


def _address(address: Any) -> str:
    if isinstance(address, (str, bytes)):  # a Unix socket; one of a pair has no name
        return "the other process"
    return join_address(*address[:2])
