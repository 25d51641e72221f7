"""Length-prefixed frames and lines of text: bytes in, payloads out. No sockets, threads or clocks.

    0           4                4 + length
    +-----------+----------------+
    |  length   |  payload       |   length: unsigned, 32 bits, big-endian; payload only
    +-----------+----------------+

A length whose first byte is an ASCII letter would announce over a gigabyte, which no limit allows. So a
stream that begins with a letter is text, one request a line, from its first byte to its end.
"""

from __future__ import annotations

import struct
from typing import Sequence

from robowire.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError, TruncatedFrame
from robowire.wire.payload_memory import GROWTH, PayloadMemory

__all__ = [
    "DEFAULT_MAX_PAYLOAD",
    "MAX_LINE",
    "MAX_MAX_PAYLOAD",
    "FrameDecoder",
    "TextLine",
    "frame_header",
]

_LENGTH = struct.Struct("!I")

# Three 640x480 RGB cameras are 2.6 MiB, so 64 MiB suffices for any robot we know,
# while a hostile prefix cannot make us allocate 4 GiB.
DEFAULT_MAX_PAYLOAD = 64 * 1024 * 1024

# The largest limit anyone may configure: "A" is 0x41, so a frame of this length cannot look like text.
MAX_MAX_PAYLOAD = 0x4100_0000 - 1

# The longest header line that a browser or a probe sends fits; no line that we answer needs 100 bytes.
MAX_LINE = 8192

_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class TextLine(str):
    """One line of a text stream, without its line ending."""


def frame_header(length: int) -> bytes:
    """Return the 4 bytes that go before a payload of ``length`` bytes.

    Send header and payload with one ``sendmsg``: a large payload is not copied, and a small frame leaves as
    one packet.

    Raises:
        LocalProtocolError: ``length`` does not fit 32 bits.
    """
    if length > 0xFFFF_FFFF:
        raise LocalProtocolError(f"payload of {length} bytes does not fit a 32-bit length")
    return _LENGTH.pack(length)


class FrameDecoder:
    """Cut one peer's byte stream into payloads, or into lines.

    The decoder lends the buffer and the transport fills it, so a 3 MB observation is copied once, by the
    kernel::

        received = sock.recv_into(decoder.get_buffer())
        event = decoder.buffer_updated(received)  # None until a payload or a line is complete

    It never asks for a byte beyond the current frame, but by :meth:`get_buffers`: between frames nothing is
    buffered and the socket can be handed to another protocol.

    Args:
        max_payload: Largest payload to accept, in bytes. Checked before memory is set aside; may be changed
            between frames, so that it can be small until the peer has authenticated.
        text: Whether the stream may be text. Only servers read text.

    Attributes:
        memory: Where payloads get theirs.
        ahead: Bytes of the next frame that have come already, for :meth:`read_ahead`.
    """

    def __init__(self, max_payload: int = DEFAULT_MAX_PAYLOAD, *, text: bool = False) -> None:
        if not 0 < max_payload <= MAX_MAX_PAYLOAD:
            raise ValueError(f"max_payload is {max_payload}, expected 1 to {MAX_MAX_PAYLOAD} bytes")
        self.max_payload = max_payload
        self.memory = PayloadMemory()
        self._text = text
        self._header = bytearray(_LENGTH.size)
        self._payload: bytearray | None = None  # None while the header is incomplete
        self._length = 0  # announced for it
        self._target = memoryview(self._header)  # the part being filled
        self._filled = 0  # bytes of it filled so far
        self._line: bytearray | None = None  # not None once the stream turned out to be text
        self._byte = bytearray(1)
        self._expected: bytearray | None = None  # memory for a payload whose header has not come
        self.ahead = bytearray()

    @property
    def mid_frame(self) -> bool:
        """Whether a frame or a line has begun and is not complete."""
        return self._payload is not None or self._filled > 0 or bool(self._line)

    @property
    def in_payload(self) -> bool:
        """Whether all of :meth:`get_buffer` is needed: it is a part of the current payload."""
        return self._payload is not None

    def get_buffer(self) -> memoryview:
        """Return the part of the current header or payload still missing. Never empty."""
        if self._line is not None:
            return memoryview(self._byte)  # one byte, because the next line may be another request
        return self._target[self._filled :]

    def get_buffers(self) -> Sequence[memoryview]:
        """Return buffers to fill in their order, for :meth:`buffers_updated`.

        At the beginning of a frame they are its header and a payload as long as the last one, which mostly is
        right: then both take one system call.
        """
        if self._payload is not None or self._filled or self._line is not None or not self._length:
            return (self.get_buffer(),)
        if self._expected is None:
            self._expected = self.memory.take(self._length)
        return self._target, memoryview(self._expected)

    def buffers_updated(self, nbytes: int) -> bytearray | TextLine | None:
        """Process the first ``nbytes`` of :meth:`get_buffers`, as :meth:`buffer_updated` does.

        Where the payload was shorter than the last one, bytes of the next frame may have come too: then
        :attr:`ahead` holds them, and :meth:`read_ahead` is called before anything else is received.
        """
        payload = self._expected
        if payload is None or nbytes <= _LENGTH.size:
            return self.buffer_updated(nbytes)
        (length,) = _LENGTH.unpack(self._header)
        nbytes -= _LENGTH.size
        if length != self._length or length > self.max_payload:
            self.ahead += memoryview(payload)[:nbytes]
            event = self.buffer_updated(_LENGTH.size)
            return self.read_ahead() if event is None else event
        self._expected = None
        if nbytes < length:
            self._payload, self._target, self._filled = payload, memoryview(payload), 0
            return self.buffer_updated(nbytes)
        self.memory.keep(payload)
        return payload

    def read_ahead(self) -> bytearray | TextLine | None:
        """Process the bytes that came ahead, up to the end of a frame, as :meth:`buffer_updated` does."""
        event = None
        while self.ahead and event is None:
            buffer = self.get_buffer()
            taken = self.ahead[: len(buffer)]
            buffer[: len(taken)] = taken
            del self.ahead[: len(taken)]
            event = self.buffer_updated(len(taken))
        return event

    def buffer_updated(self, nbytes: int) -> bytearray | TextLine | None:
        """Process the first ``nbytes`` of :meth:`get_buffer`, which were filled.

        Returns:
            The payload or line if it is now complete, else ``None``. A payload is the caller's as long as
            anything refers to it; then its memory is used for the next one.

        Raises:
            FrameTooLarge: The peer announced more than ``max_payload`` bytes, or a line is longer than
                ``MAX_LINE``.
        """
        if self._line is not None:
            self._line += self._byte
            return self._line_updated()
        self._filled += nbytes
        if self._text and self._payload is None and self._header[0] in _LETTERS:
            self._line = self._header[: self._filled]
            return self._line_updated()
        if self._filled < len(self._target):
            return None
        if self._payload is None:
            (length,) = _LENGTH.unpack(self._header)
            if length > self.max_payload:
                raise FrameTooLarge(length, self.max_payload)
            self._length = length
            expected, self._expected = self._expected, None
            self._payload = self.memory.take(length, expected)
            self._target, self._filled = memoryview(self._payload), 0
            if length:
                return None
        elif self._filled < self._length:
            grown = bytearray(min(self._length, self._filled * GROWTH))
            grown[: self._filled] = self._payload
            self._payload, self._target = grown, memoryview(grown)
            return None
        payload = self._payload
        self._payload = None
        self._target, self._filled = memoryview(self._header), 0
        self.memory.keep(payload)
        return payload

    def receive_eof(self) -> None:
        """Process the end of the stream.

        Raises:
            TruncatedFrame: It ended inside a frame. Between frames, ending is normal, and so is a last line
                without its line ending.
        """
        if self._line is not None or not self.mid_frame:
            return
        part = "header" if self._payload is None else "payload"
        expected = _LENGTH.size if self._payload is None else self._length
        raise TruncatedFrame(f"stream ended after {self._filled} of {expected} {part} bytes")

    def _line_updated(self) -> TextLine | None:
        assert self._line is not None
        if len(self._line) > MAX_LINE:
            raise FrameTooLarge(len(self._line), MAX_LINE)
        if b"\n" not in self._line:
            return None
        line = self._line.split(b"\n")[0].rstrip(b"\r")
        if 0 < len(line) < _LENGTH.size - 1:  # it may have come as a header, with the next line behind it
            raise RemoteProtocolError(f"a line of {len(line)} bytes asks nothing")
        self._line = bytearray()
        try:
            return TextLine(line.decode("ascii"))
        except UnicodeDecodeError as exc:
            raise RemoteProtocolError("a line of text is not ASCII") from exc
