"""Whole messages of a WebSocket client are cut from any stream; everything else is returned as it came."""

from __future__ import annotations

import os

import pytest

from robowire.frontends.whole_messages import MessageBuffer, WholeMessages, message_frame, unmask

MASK = b"\x01\x80\xfe\x7f"


def frame(data: bytes, *, first: int = 0x82, mask: bytes | None = MASK, extended: int | None = None) -> bytes:
    length = len(data)
    extended = (0 if length < 126 else 2 if length < 1 << 16 else 8) if extended is None else extended
    code = {0: length, 2: 126, 8: 127}[extended]
    header = bytes((first, code | (0 if mask is None else 0x80)))
    if extended:
        header += length.to_bytes(extended, "big")
    if mask is None:
        return header + data
    return header + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


def cut(messages: WholeMessages, stream: bytes, step: int) -> list[bytes]:
    """Feed a stream that is cut into steps, and return the messages; everything must be one."""
    found = []
    while stream:
        buffer = messages.get_buffer()
        size = min(step, len(buffer), len(stream))
        buffer[:size] = stream[:size]
        message, rest = messages.buffer_updated(size)
        assert not rest or message is not None
        stream = rest + stream[size:]
        if message is not None:
            found.append(bytes(message))
    return found


def knowing(length: int) -> WholeMessages:
    messages = WholeMessages()
    assert not messages.ready
    messages.expect(length)
    assert messages.ready
    return messages


@pytest.mark.parametrize("step", [1, 2, 3, 13, 1000, 1 << 20])
def test_messages_of_any_length_are_read_under_every_cutting(step: int) -> None:
    sizes = (1, 7, 125, 126, 127, 1000) if step < 1000 else (1, 65535, 65536, 65539, 200_001)
    sent = [os.urandom(size) for size in sizes]
    assert cut(knowing(max(sizes)), b"".join(map(frame, sent)), step) == sent


@pytest.mark.parametrize(
    "other",
    [
        frame(b"text", first=0x81),
        frame(b"a fragment", first=0x02),
        frame(b"the rest of it", first=0x80),
        frame(b"a ping", first=0x89),
        frame(b"\x03\xe8", first=0x88),
        frame(b"compressed", first=0xC2),
        frame(b"not masked", mask=None),
        frame(b""),
        frame(b"a long way to write it", extended=2),
        frame(b"a longer way to write it", extended=8),
        frame(bytes(201)),
        b"\x82\xff" + (1 << 62).to_bytes(8, "big") + MASK,
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_everything_else_is_returned_as_it_came(other: bytes, step: int) -> None:
    messages, found, stream = knowing(200), b"", other
    while stream:
        buffer = messages.get_buffer()
        size = min(step, len(buffer), len(stream))
        buffer[:size] = stream[:size]
        message, rest = messages.buffer_updated(size)
        assert message is None
        found, stream = found + rest, stream[size:]
        if rest:  # from here on the complete implementation reads
            found, stream = found + stream, b""
    assert found + messages.take() == other


def test_what_comes_behind_a_message_is_returned_with_it() -> None:
    messages, stream = knowing(100), frame(b"first") + frame(b"ping", first=0x89)
    messages.get_buffer()[: len(stream)] = stream
    message, rest = messages.buffer_updated(len(stream))
    assert (bytes(message or b""), rest) == (b"first", frame(b"ping", first=0x89))


def test_a_buffer_is_used_again_when_nobody_refers_to_the_message() -> None:
    messages, stream = knowing(100), frame(b"first")
    kept = []
    for _ in range(2):
        messages.get_buffer()[: len(stream)] = stream
        message, _ = messages.buffer_updated(len(stream))
        assert message is not None
        kept.append(message)
    assert kept[0].obj is not kept[1].obj
    obj = kept.pop().obj
    del message
    kept.clear()
    where = id(obj)
    del obj
    assert id(messages.get_buffer().obj) == where


def where(messages: WholeMessages) -> int:
    """Return which buffer is lent, without a reference to it."""
    return id(messages.get_buffer().obj)


def test_clients_share_a_buffer_but_for_messages_that_come_in_pieces() -> None:
    shared: list[MessageBuffer] = []
    one, other = WholeMessages(shared), WholeMessages(shared)
    first, second = frame(b"from the first"), frame(b"from the second")
    for messages in (one, other):
        messages.expect(100)
    assert where(one) == where(other)
    one.get_buffer()[:9] = first[:9]
    assert one.buffer_updated(9) == (None, b"")
    for number in range(3):
        assert where(other) != where(one)
        other.get_buffer()[: len(second)] = second
        message, _ = other.buffer_updated(len(second))
        assert bytes(message or b"") == b"from the second", number
        del message
    one.get_buffer()[: len(first) - 9] = first[9:]
    message, _ = one.buffer_updated(len(first) - 9)
    assert bytes(message or b"") == b"from the first"
    del message
    assert where(one) == where(other)
    assert len(shared) == 1


def test_a_longer_message_than_any_before_takes_no_memory_here() -> None:
    messages = knowing(100)
    messages.expect(1 << 30)
    assert len(messages.get_buffer()) < 200


@pytest.mark.parametrize("begin", range(9))
@pytest.mark.parametrize("length", [0, 1, 3, 8, 17, 64])
def test_a_mask_is_taken_wherever_the_data_begin(begin: int, length: int) -> None:
    data = os.urandom(length)
    buffer = bytearray(b"x" * begin + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(data)) + b"yy")
    unmask(buffer, begin, begin + length, MASK)
    assert buffer == b"x" * begin + data + b"yy"


@pytest.mark.parametrize(("part", "opcode"), [(b"\x00\xff", 0x82), ("é", 0x81)])
@pytest.mark.parametrize("times", [1, 100, 40_000])
def test_a_reply_is_one_unmasked_frame(part: bytes | str, opcode: int, times: int) -> None:
    data = (part * times).encode() if isinstance(part, str) else part * times
    assert message_frame(part * times) == frame(data, first=opcode, mask=None)
