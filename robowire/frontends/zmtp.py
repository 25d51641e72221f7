"""ZMTP 3, the protocol of ZeroMQ's sockets: bytes in, messages out. No sockets, threads or clocks.

    greeting    ff 00 00 00 00 00 00 00 01 7f | 3 | minor | mechanism, 20 bytes | as-server | 31 zeros
    frame       flags (1 more, 2 long, 4 command) | length, 1 byte or 8 | body
    command     length of its name, 1 byte | name | data

Written here, not left to libzmq: its only limit, ``ZMQ_MAXMSGSIZE``, is one of a single frame. A message of
frames without an end grows in its memory, and so do connections and messages that nobody asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from robowire.errors import FrameTooLarge, RemoteProtocolError, TruncatedFrame
from robowire.wire.payload_memory import FIRST_STEP, GROWTH, PayloadMemory
from robowire.wire.pickle.writer import Buffer
from robowire.wire.text_safety import quoted

__all__ = [
    "SIGNATURE",
    "Command",
    "Greeting",
    "Message",
    "Signature",
    "ZmtpDecoder",
    "command",
    "error_command",
    "greeting",
    "message",
    "parse_ready",
    "ready_command",
]

SIGNATURE = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"
_GREETING = 64
_MECHANISM = slice(12, 32)

_MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">Q")

# REQ sends an empty frame and a body; ROUTERs in between add an identity of up to 255 bytes each.
_MAX_FRAMES = 16
# READY with the properties of a socket has 40 bytes, PING at most 23.
_MAX_COMMAND = 4096

# A REQ client's request begins with an empty frame and the header of a long one. A client that has sent one
# is expected to send another of the same length, whose beginning is received in one piece.
_BEGINNING = b"\x01\x00\x02"
_BEGINNING_LENGTH = len(_BEGINNING) + 8
# The envelope of a REQ client's request, and its bytes in the reply.
_OF_REQ, _ENVELOPE_OF_REQ = [b""], b"\x01\x00"

# Messages up to so many bytes are copied into one buffer.
_JOINED = 32 * 1024


@dataclass(frozen=True)
class Signature:
    """The first 10 bytes of a greeting: this side greets now, since libzmq waits for it."""


@dataclass(frozen=True)
class Greeting:
    """The whole greeting of the peer.

    Attributes:
        version: Major and minor.
        mechanism: Such as ``"NULL"``.
    """

    version: tuple[int, int]
    mechanism: str


@dataclass(frozen=True)
class Command:
    """A command: ``READY``, ``PING``, ...

    Attributes:
        name: As sent.
        data: What follows the name.
    """

    name: bytes
    data: bytes


class Message(NamedTuple):
    """A message.

    Attributes:
        frames: At least one; the receiver owns them.
    """

    frames: list[bytearray]

    def split(self) -> tuple[list[bytearray], list[bytearray]]:
        """Return the envelope and the frames after it.

        The envelope ends with the first empty frame, and goes back with the reply; without an empty frame it
        is empty.
        """
        for number, frame in enumerate(self.frames, start=1):
            if not frame:
                return self.frames[:number], self.frames[number:]
        return [], self.frames


def greeting() -> bytes:
    """Return the greeting of this side: version 3.1, no security mechanism."""
    return SIGNATURE + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def command(name: bytes, data: bytes) -> bytes:
    """Return the frame of a command."""
    body = bytes([len(name)]) + name + data
    return _header(len(body), _COMMAND) + body


def ready_command(socket_type: str) -> bytes:
    """Return the frame that ends this side of the handshake."""
    properties = b""
    for name, value in (("Socket-Type", socket_type), ("Identity", "")):
        properties += bytes([len(name)]) + name.encode() + len(value).to_bytes(4, "big") + value.encode()
    return command(b"READY", properties)


def error_command(reason: str) -> bytes:
    """Return the frame that refuses a peer in the handshake."""
    text = reason.encode("ascii", "replace")[:255]
    return command(b"ERROR", bytes([len(text)]) + text)


def message(envelope: Sequence[Buffer], body: Sequence[Buffer]) -> list[Buffer]:
    """Return the buffers of a message: the frames of the envelope, and one frame of the body's buffers.

    Those of few bytes are one buffer, which takes the sender fewer calls.
    """
    if len(body) == 1 and type(body[0]) is bytes and len(body[0]) <= _JOINED and envelope == _OF_REQ:
        return [_ENVELOPE_OF_REQ + _header(len(body[0]), 0) + body[0]]
    buffers: list[Buffer] = []
    for frame in envelope:
        buffers += [_header(len(frame), _MORE), frame]
    views = [memoryview(buffer).cast("B") for buffer in body if len(buffer)]
    buffers += [_header(sum(map(len, views)), 0), *views]
    return [b"".join(buffers)] if sum(map(len, buffers)) <= _JOINED else buffers


def parse_ready(data: bytes) -> dict[str, bytes]:
    """Return the properties of a READY command, their names in lower case.

    Raises:
        RemoteProtocolError: It is cut short.
    """
    properties = {}
    while data:
        name, rest = data[1 : 1 + data[0]], data[1 + data[0] :]
        length = int.from_bytes(rest[:4], "big")
        value, data = rest[4 : 4 + length], rest[4 + length :]
        if len(rest) < 4 or len(value) < length:
            raise RemoteProtocolError("the properties of READY are cut short")
        properties[name.decode("latin-1").lower()] = value
    return properties


def _header(length: int, flags: int) -> bytes:
    if length > 255:
        return bytes([flags | _LONG]) + _LENGTH.pack(length)
    return bytes([flags, length])


class ZmtpDecoder:
    """Cut one peer's byte stream into its greeting, commands and messages.

    The decoder lends the buffer and the transport fills it, as :class:`robowire.wire.framing.FrameDecoder`
    does. It asks for bytes beyond the current frame only where a message is expected to begin as the one
    before it. What came then and does not fit is :attr:`ahead`, to be read before anything is received.

    Args:
        max_payload: Largest message to accept, in bytes, all its frames together. Checked before memory is
            set aside; may be changed between messages.

    Attributes:
        memory: Where the bodies of a REQ client's requests get theirs.
        ahead: Bytes that were received, and that :meth:`read_ahead` has to process before others are.
    """

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self.memory = PayloadMemory()
        self._greeting: bytearray | None = bytearray()  # None once it is complete
        self._frames: list[bytearray] = []
        self._size = 0  # bytes of the message's frames so far
        self._flags = 0
        self._length = -1  # of the current frame; -1 while its header is incomplete
        self._body = bytearray()
        self._longest = 0  # frame of a message so far
        self._beginning = b""  # of the message before, where it was a REQ client's with a long body
        self._guesses = False  # the buffer is that of the beginning of a message
        self._expected: bytearray | None = None  # memory for the body of that message
        self._expected_length = 0  # of that message
        self.ahead = b""
        self._buffer = memoryview(bytearray(len(SIGNATURE)))
        self._filled = 0

    @property
    def in_body(self) -> bool:
        """Whether all of :meth:`get_buffer` is needed: it is a part of the current frame."""
        return self._length > 0

    @property
    def message_begun(self) -> bool:
        """Whether the next bytes belong to a message, not to a command."""
        return (
            bool(self._frames)
            or (self._length >= 0 and not self._flags & _COMMAND)
            or (self._guesses and self._filled > 0)
        )

    @property
    def mid_message(self) -> bool:
        """Whether a frame or a message has begun and is not complete."""
        return bool(self._frames) or self._length >= 0 or self._filled > 0 or bool(self.ahead)

    @property
    def envelope(self) -> list[bytearray]:
        """The envelope of the message that is incomplete; empty where its end did not come."""
        return Message(self._frames).split()[0]

    def get_buffer(self) -> memoryview:
        """Return the bytes still missing of what is being read. Never empty."""
        return self._buffer[self._filled :]

    def get_buffers(self) -> Sequence[memoryview]:
        """Return buffers to fill in their order, for :meth:`buffers_updated`.

        Where a message is expected to begin as the one before it they are its beginning and a body as long:
        then both take one system call.
        """
        if not self._guesses or self._filled or self.ahead:
            return (self.get_buffer(),)
        if self._expected is None:
            size = _LENGTH.unpack_from(self._beginning, len(_BEGINNING))[0]
            if size > self.max_payload:  # it was lowered
                return (self._buffer,)
            self._expected, self._expected_length = self._take(size), _BEGINNING_LENGTH + size
        return self._buffer, memoryview(self._expected)

    def buffers_updated(self, nbytes: int) -> Signature | Greeting | Command | Message | None:
        """Process the first ``nbytes`` of :meth:`get_buffers`, as :meth:`buffer_updated` does."""
        body = self._expected
        if body is None or nbytes <= _BEGINNING_LENGTH:
            return self.buffer_updated(nbytes)
        if (
            nbytes == self._expected_length
            and self._buffer == self._beginning
            and len(body) <= self.max_payload
        ):  # the usual case, in few calls
            self._expected = None
            self.memory.keep(body)
            return Message([bytearray(), body])
        nbytes -= _BEGINNING_LENGTH
        if self._buffer != self._beginning:
            self.ahead = bytes(memoryview(body)[:nbytes])
            return self.buffer_updated(_BEGINNING_LENGTH)
        self.buffer_updated(_BEGINNING_LENGTH)
        return self.buffer_updated(nbytes)

    def buffer_updated(self, nbytes: int) -> Signature | Greeting | Command | Message | None:
        """Process the first ``nbytes`` of :meth:`get_buffer`, which were filled.

        Returns:
            What is complete now, else ``None``.

        Raises:
            FrameTooLarge: A message of more than ``max_payload`` bytes is announced.
            RemoteProtocolError: It is not ZMTP 3.
        """
        self._filled += nbytes
        if self._guesses:
            self._beginning_updated()
            return None
        if self._greeting is not None:
            return self._greeting_updated()
        if self._filled < len(self._buffer):
            return None
        if self._length < 0:
            if not self._header_updated():
                return None
        elif self._filled < self._length:
            grown = bytearray(min(self._length, self._filled * GROWTH))
            grown[: self._filled] = self._body
            self._body, self._buffer = grown, memoryview(grown)
            return None
        return self._frame_complete()

    def read_ahead(self) -> Command | Message | None:
        """Process the next of the bytes that are :attr:`ahead`, and return as :meth:`buffer_updated` does.

        Raises:
            RemoteProtocolError: As it does.
        """
        buffer = self.get_buffer()
        taken = self.ahead[: len(buffer)]
        self.ahead = self.ahead[len(taken) :]
        buffer[: len(taken)] = taken
        event = self.buffer_updated(len(taken))
        assert not isinstance(event, (Signature, Greeting))
        return event

    def receive_eof(self) -> None:
        """Process the end of the stream.

        Raises:
            TruncatedFrame: It ended inside a message.
        """
        if self.mid_message and self._greeting is None:
            raise TruncatedFrame(f"stream ended inside a message, after {self._size + self._filled} bytes")

    def _greeting_updated(self) -> Signature | Greeting | None:
        assert self._greeting is not None
        seen = bytes(self._greeting) + bytes(self._buffer[: self._filled])
        if seen[:1] != b"\xff" or (len(seen) >= 10 and not seen[9] & 1):
            raise RemoteProtocolError(f"not ZeroMQ's protocol: it begins with {quoted(seen[:10])}")
        if self._filled < len(self._buffer):
            return None
        if not self._greeting:
            self._greeting += seen
            self._expect(_GREETING - len(seen))
            return Signature()
        self._greeting = None
        self._expect(2)
        mechanism = seen[_MECHANISM].rstrip(b"\0").decode("latin-1")
        return Greeting((seen[10], seen[11]), mechanism)

    def _header_updated(self) -> bool:
        """Begin a frame, and return whether it is complete already: it is empty."""
        header = bytes(self._buffer)
        if len(header) == 2:
            self._flags = header[0]
            if self._flags & ~(_MORE | _LONG | _COMMAND) or (self._flags & _COMMAND and self._flags & _MORE):
                raise RemoteProtocolError(f"a frame has the flags {self._flags:#04x}, which ZMTP 3 has not")
            if self._flags & _LONG:
                self._expect(9, header)
                return False
        length = header[1] if len(header) == 2 else _LENGTH.unpack(header[1:])[0]
        if self._flags & _COMMAND:
            if length > _MAX_COMMAND:
                raise FrameTooLarge(length, _MAX_COMMAND)
        elif self._size + length > self.max_payload:
            raise FrameTooLarge(self._size + length, self.max_payload)
        elif len(self._frames) >= _MAX_FRAMES:
            raise RemoteProtocolError(f"a message has more than {_MAX_FRAMES} frames")
        self._begin_body(length)
        return length == 0

    def _begin_body(self, length: int) -> None:
        self._length = length
        self._body = self._take(length) if length else bytearray()
        self._buffer, self._filled = memoryview(self._body), 0

    def _take(self, length: int) -> bytearray:
        """Return memory for the beginning of a body."""
        expected, self._expected = self._expected, None
        # A peer that has sent a message of this size gets a buffer for another one at once.
        return self.memory.take(length, expected, first_step=max(FIRST_STEP, self._longest))

    def _beginning_updated(self) -> None:
        """Begin the body of a message that is expected, or process what came instead as any bytes."""
        came = bytes(self._buffer[: self._filled])
        length = len(self._beginning)
        if not self._beginning.startswith(came):
            self._guesses = False
            self.ahead = came + self.ahead
            self._expect(2)
        elif self._filled == length:
            self._guesses = False
            size = _LENGTH.unpack(came[-8:])[0]
            self._frames, self._flags = [bytearray()], _LONG
            if size > self.max_payload:
                raise FrameTooLarge(size, self.max_payload)
            self._begin_body(size)

    def _frame_complete(self) -> Command | Message | None:
        body, flags = self._body, self._flags
        self._body, self._length = bytearray(), -1
        self._expect(2)
        if flags & _COMMAND:
            if not body or len(body) < 1 + body[0]:
                raise RemoteProtocolError("a command without a name")
            return Command(bytes(body[1 : 1 + body[0]]), bytes(body[1 + body[0] :]))
        self._frames.append(body)
        self._size += len(body)
        self._longest = max(self._longest, len(body))
        if flags & _MORE:
            return None
        frames, self._frames, self._size = self._frames, [], 0
        if len(frames) == 2 and not frames[0] and flags & _LONG and body:
            self.memory.keep(body)
            self._beginning = _BEGINNING + _LENGTH.pack(len(body))
            self._guesses = True
            self._expect(_BEGINNING_LENGTH)
        return Message(frames)

    def _expect(self, length: int, begun: bytes = b"") -> None:
        self._buffer, self._filled = memoryview(bytearray(begun.ljust(length, b"\0"))), len(begun)
