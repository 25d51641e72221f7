"""A connection that carries frames: what a :class:`Stream` brings, cut into payloads.

After any error the connection is closed: a stream that was left in the middle of a frame is never read again.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Callable, Sequence

from robowire.errors import (
    ConnectionLost,
    FrameTooLarge,
    ProtocolError,
    RequestTimeout,
    TlsFailed,
    TransportError,
    TruncatedFrame,
)
from robowire.transport.stream import Buffer, Stream
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD, FrameDecoder, TextLine

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "require_seconds"]

# What a TLS record's first two bytes make of a frame's length: an alert, and a handshake. Both would be
# frames of more than 350 MB, which no peer of ours sends.
_TLS_ALERT, _TLS_HANDSHAKE = 0x1503, 0x1603


def require_seconds(**seconds: float) -> None:
    """Check that every argument is a positive number.

    Raises:
        ValueError: One is not; names it.
    """
    for name, value in seconds.items():
        if not value > 0:  # NaN too
            raise ValueError(f"{name} is {value!r}, expected a positive number of seconds")


class Connection:
    """A stream that sends and receives payloads. One thread at a time reads, and one writes.

    Args:
        stream: A stream, or a socket for one; owned by this object from now on.
        max_payload: Largest payload to accept, in bytes.
        text: Whether the peer may speak text lines (servers only).
        clock: Seconds, monotonic; tests pass their own.

    Attributes:
        stream: What it reads and writes.
        decoder: What cuts it into payloads.
        peer: ``host:port`` of the other side, for messages.
        receive_s: Seconds from the first byte of what was received last to its last.
    """

    def __init__(
        self,
        stream: Stream | socket.socket,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        text: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream if isinstance(stream, Stream) else Stream(stream, clock=clock)
        self.peer = self.stream.peer
        self.decoder = FrameDecoder(max_payload, text=text)
        self.receive_s = 0.0
        self._clock = clock

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        *,
        timeout_s: float,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        tls: ssl.SSLContext | None = None,
    ) -> Connection:
        """Return a connection to ``host:port``.

        Raises:
            ConnectFailed: There is no answer within ``timeout_s``, nothing listens, or the name is unknown.
            TlsFailed: The certificate of one side is refused, or the server does not speak TLS.
        """
        return cls(Stream.connect(host, port, timeout_s=timeout_s, tls=tls), max_payload=max_payload)

    @property
    def bytes_received(self) -> int:
        """Bytes received so far, without those of TLS."""
        return self.stream.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Bytes sent so far, without those of TLS."""
        return self.stream.bytes_sent

    def send(self, buffers: Sequence[Buffer], *, timeout_s: float) -> None:
        """Send the buffers in order.

        Raises:
            RequestTimeout: The peer did not take them within ``timeout_s``; the connection is closed.
            ConnectionLost: The connection ended; it is closed.
        """
        try:
            self.stream.send(buffers, timeout_s)
        except TransportError:
            self.close()
            raise

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
            TlsFailed: The peer speaks TLS and this side does not; the connection is closed.
        """
        decoder, left_s, deadline = self.decoder, wait_s, None
        try:
            if decoder.ahead and (event := decoder.read_ahead()) is not None:
                return event
            if decoder.mid_frame:
                left_s, deadline = finish_s, self._clock() + finish_s
            parts = self.stream.polls
            while True:
                buffers = decoder.get_buffers() if parts else (decoder.get_buffer(),)
                received = self.stream.recv_into(buffers, left_s, whole=decoder.in_payload)
                if received == 0:
                    decoder.receive_eof()
                    return None
                event = decoder.buffers_updated(received)
                if event is not None:
                    self.receive_s = 0.0 if deadline is None else self._clock() - deadline + finish_s
                    return event
                now = self._clock()
                if deadline is None:
                    deadline = now + finish_s
                left_s = max(deadline - now, 1e-3)
        except RequestTimeout as exc:
            self.close()
            what = (
                f"sent nothing for {wait_s:g} s"
                if deadline is None
                else f"did not finish a frame within {finish_s:g} s"
            )
            raise RequestTimeout(f"{self.peer} {what}; the connection was closed") from exc
        except TransportError:
            self.close()
            raise
        except ProtocolError as exc:
            self.close()
            if isinstance(exc, FrameTooLarge) and exc.length >> 16 in (_TLS_ALERT, _TLS_HANDSHAKE):
                raise self._speaks_tls(exc.length) from exc
            raise

    def _speaks_tls(self, length: int) -> TlsFailed:
        if length >> 16 == _TLS_ALERT:
            return TlsFailed(f"{self.peer} speaks TLS: pass tls=True (programs: --tls)")
        return TlsFailed(
            f"a TLS client on a plain port: {self.peer} must leave tls out, "
            "or this server needs a certificate (--tls_cert)"
        )

    def exchange(self, buffers: Sequence[Buffer], *, timeout_s: float) -> bytearray:
        """Send one request and return the payload that answers it, for clients.

        Args:
            buffers: The request's frame.
            timeout_s: Seconds to send it, as many until the reply begins, and as many until that is complete.

        Raises:
            RequestTimeout: One of these times passed; the connection is closed.
            ConnectionLost: The connection ended before the reply was complete; it is closed.
            RemoteProtocolError: The peer broke the framing; the connection is closed.
            TlsFailed: Only one side speaks TLS, or a certificate is refused; the connection is closed.
        """
        try:
            self.stream.send(buffers, timeout_s)
            reply = self.receive(wait_s=timeout_s, finish_s=timeout_s)
            if reply is None:
                raise ConnectionLost(f"{self.peer} closed the connection before it answered; see its log")
        except TruncatedFrame as exc:
            raise ConnectionLost(f"{self.peer} was lost in the middle of its reply: {exc}") from exc
        except BaseException:  # KeyboardInterrupt too: a connection is never left half read
            self.close()
            raise
        assert isinstance(reply, bytearray)  # clients' decoders read no text
        return reply

    def wait(self, timeout_s: float) -> bool:
        """Return, in ``timeout_s`` at most, whether something can be read, be it the end of the stream."""
        return bool(self.decoder.ahead) or self.stream.wait_readable(timeout_s)

    def ended(self) -> bool:
        """Return whether the peer ended the stream, or broke it, and nothing is left to read before the end.

        It may still read: a peer that shuts down its sending half only looks the same.
        """
        return not self.decoder.ahead and self.stream.ended()

    def stop_reading(self) -> None:
        """Make a blocked or later :meth:`receive` see the end of the stream; any thread may call it."""
        self.stream.shutdown_read()

    def abandon(self) -> None:
        """Close the copy that a fork made of a connection; the other process goes on with it."""
        self.stream.abandon()

    def close(self) -> None:
        """Close the stream. May be called twice."""
        self.stream.close()
