"""Whole binary messages of a WebSocket client, cut from its bytes in the buffer that they were received in.

A client in a closed loop sends one masked, unfragmented binary frame for each observation. Such a frame is
received, unmasked and read in one buffer, which the next one uses again. All other bytes (text, fragments,
pings, the closing handshake, what breaks the protocol) are returned as they came, for a complete
implementation of RFC 6455. No socket, thread or clock.
"""

from __future__ import annotations

import sys

import numpy as np

from robowire.wire.payload_memory import COUNTS_REFERENCES

__all__ = ["MessageBuffer", "WholeMessages", "message_frame", "unmask"]

# Longer messages take so long to read that the copies of a complete implementation do not matter, and no
# connection keeps memory for one. Three 640x480 cameras are 2.6 MiB.
_KEPT_MAX = 4 << 20

# A frame of 64 KiB or more has 14 bytes before its data, which are aligned when it begins here: numpy takes
# ten times as long for words that are not.
_BEGIN = 2
_LONGEST_HEADER = 14
# Behind the longest message, so that it can be read in whole words.
_WORD = 4

_BINARY, _TEXT, _MASKED, _FINAL = 0x02, 0x01, 0x80, 0x80


class MessageBuffer:
    """Memory for a frame.

    Args:
        size: Bytes of the longest frame that it holds.

    Attributes:
        memory: Frames begin at :data:`_BEGIN`.
        view: Where bytes are received.
    """

    def __init__(self, size: int) -> None:
        self.memory = bytearray(_BEGIN + size + _WORD)
        self._all = memoryview(self.memory)
        self.view = self._all[_BEGIN : _BEGIN + size]
        self._masked = 0, 0  # data and end of the two that follow
        self._mask = self._words = np.empty(0, np.uint32)
        # Of this object, and of its view, which the arrays refer to: a message is another view.
        self._alone = sys.getrefcount(self.memory) if COUNTS_REFERENCES else 0

    def is_free(self) -> bool:
        """Return whether nobody refers to a message in it."""
        return sys.getrefcount(self.memory) == self._alone

    def unmask(self, data: int, end: int) -> None:
        """Take the mask from the data of a frame behind which there is nothing."""
        if self._masked != (data, end):
            self._masked = data, end
            self._mask = np.frombuffer(self._all, np.uint32, 1, data - 4)
            self._words = np.frombuffer(self._all, np.uint32, (end - data + _WORD - 1) // _WORD, data)
        np.bitwise_xor(self._words, self._mask, self._words)


class WholeMessages:
    """Cut one client's byte stream into whole binary messages, and everything else.

    The buffer is lent and the transport fills it, as :class:`robowire.wire.framing.FrameDecoder` does. It has
    the size of the longest message that a client has sent before, so that announcing a long one takes no
    memory.

    Args:
        shared: A buffer, or none, that is free between two messages: the clients of one thread share it, and
            it stays in the processor's cache. A client keeps it for a message that comes in pieces.

    Attributes:
        ready: Whether the length of a message is known, so that there is a buffer for one.
        begun: Whether a frame has begun and is not complete.
    """

    def __init__(self, shared: list[MessageBuffer] | None = None) -> None:
        self.ready = False
        self.begun = False
        self._longest = 0
        self._shared: list[MessageBuffer] = [] if shared is None else shared
        self._memory = MessageBuffer(0)
        self._view = self._memory.view  # as much of it as one frame may take
        self._filled = 0  # bytes of the frame, and what came behind it
        self._data = 0  # where the data of the frame begin and end; 0 while the header is incomplete
        self._end = 0
        # What comes before the mask in a message that was whole, and where its data begin and end: nearly
        # all messages of a client have the same length.
        self._known = b"", 0, 0

    def expect(self, length: int) -> None:
        """Note that the client has sent a message of ``length`` bytes."""
        if self._longest < length <= _KEPT_MAX:
            self._longest = length
            self.ready = True

    def get_buffer(self) -> memoryview:
        """Return the memory for the next bytes. Never empty where :attr:`ready`."""
        if self._filled:
            return self._view[self._filled :]
        size, shared = _LONGEST_HEADER + self._longest, self._shared
        if not shared or len(shared[0].view) < size or not COUNTS_REFERENCES or not shared[0].is_free():
            shared[:] = [MessageBuffer(size)]
        if self._memory is not shared[0] or len(self._view) != size:
            self._memory = shared[0]
            self._view = self._memory.view[:size]
        return self._view

    def buffer_updated(self, nbytes: int) -> tuple[memoryview | None, bytes]:
        """Process the first ``nbytes`` of :meth:`get_buffer`, which were filled.

        Returns:
            The data of a message that is complete now, else ``None``, and the bytes that belong to none: of a
            frame that is not whole from its beginning on, and those behind a message. A message views the
            buffer, which is used again when nobody refers to it.
        """
        buffer = self._memory.memory
        self._filled += nbytes
        data, end, filled = self._data, self._end, _BEGIN + self._filled
        if not data:
            header, data, end = self._known
            if filled < end or not end or not buffer.startswith(header, _BEGIN):
                if not self._header_read(buffer):
                    return None, self.take()
                data, end = self._data, self._end
        if not data or filled < end:
            if not self.begun:
                self.begun = True
                self._shared.clear()  # others take another one
            return None, b""
        self._filled = self._data = self._end = 0
        if self.begun:
            self._end_frame()
        if filled == end and data % _WORD == 0:
            self._memory.unmask(data, end)
            return memoryview(buffer)[data:end], b""
        unmask(buffer, data, end, bytes(buffer[data - 4 : data]))
        return memoryview(buffer)[data:end], bytes(buffer[end:filled])

    def take(self, nbytes: int = 0) -> bytes:
        """Return the bytes of the frame that has begun, as they came, and forget them.

        Args:
            nbytes: How many were filled that :meth:`buffer_updated` was not told of.
        """
        self._filled += nbytes
        begun = bytes(self._memory.view[: self._filled])
        self._filled = self._data = self._end = 0
        if self.begun:
            self._end_frame()
        return begun

    def _end_frame(self) -> None:
        """Let others have the buffer of a frame that came in pieces."""
        self.begun = False
        self._shared[:] = [self._memory]

    def _header_read(self, buffer: bytearray) -> bool:
        """Return whether the frame can be a whole message that the buffer holds; its end may be unknown."""
        filled = self._filled
        if buffer[_BEGIN] != _FINAL | _BINARY:
            return False
        if filled < 2:
            return True
        second = buffer[_BEGIN + 1]
        if not second & _MASKED:
            return False
        length, extended = second & 0x7F, 0
        if length >= 126:
            extended = 2 if length == 126 else 8
            if filled < 2 + extended:
                return True
            length = int.from_bytes(buffer[_BEGIN + 2 : _BEGIN + 2 + extended], "big")
            if length < (126 if extended == 2 else 1 << 16):  # not the shortest way to write it
                return False
        if not 0 < length <= self._longest:
            return False
        data = _BEGIN + 2 + extended + 4
        if _BEGIN + filled >= data:
            self._data, self._end = data, data + length
            self._known = bytes(buffer[_BEGIN : data - 4]), data, data + length
        return True


def unmask(buffer: bytearray, begin: int, end: int, mask: bytes) -> None:
    """Take the mask of a frame (4 bytes) from its data, in place."""
    words_at = min(begin + -begin % 8, end)
    count = (end - words_at) // 8
    for first, last in ((begin, words_at), (words_at + 8 * count, end)):
        for i in range(first, last):
            buffer[i] ^= mask[(i - begin) % 4]
    if count:
        turn = (words_at - begin) % 4
        key = np.frombuffer((mask * 3)[turn : turn + 8], np.uint64)
        words = np.frombuffer(buffer, np.uint64, count, words_at)
        np.bitwise_xor(words, key, words)


def message_frame(part: bytes | str) -> bytes:
    """Return the frame of a message that a server sends."""
    if isinstance(part, str):
        data, opcode = part.encode(), _FINAL | _TEXT
    else:
        data, opcode = part, _FINAL | _BINARY
    length = len(data)
    if length < 126:
        header = bytes((opcode, length))
    elif length < 1 << 16:
        header = bytes((opcode, 126)) + length.to_bytes(2, "big")
    else:
        header = bytes((opcode, 127)) + length.to_bytes(8, "big")
    return header + data
