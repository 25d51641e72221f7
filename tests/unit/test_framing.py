"""Framing is pure: no test here opens a socket, starts a thread or sleeps."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from robowire.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError, TruncatedFrame
from robowire.wire.framing import MAX_LINE, MAX_MAX_PAYLOAD, FrameDecoder, TextLine, frame_header

CUTS = st.lists(st.integers(1, 7))


def frame(payload: bytes) -> bytes:
    return frame_header(len(payload)) + payload


def decode(
    stream: bytes, cuts: list[int], *, max_payload: int = 1024, text: bool = False, several: int = 0
) -> list[bytes | TextLine]:
    """Feed ``stream`` in pieces of the given sizes (the rest at once), then end it.

    The bits of ``several`` say where header and payload are asked for together, by turns.
    """
    decoder, events, sizes, turn = FrameDecoder(max_payload, text=text), [], iter(cuts), 0
    while stream or decoder.ahead:
        if decoder.ahead:
            event = decoder.read_ahead()
        else:
            together, turn = several >> turn & 1, (turn + 1) % 8
            buffers = decoder.get_buffers() if together else (decoder.get_buffer(),)
            left = n = min(sum(map(len, buffers)), len(stream), next(sizes, len(stream)))
            for buffer in buffers:
                taken = min(len(buffer), left)
                buffer[:taken], stream, left = stream[:taken], stream[taken:], left - taken
            event = decoder.buffers_updated(n) if together else decoder.buffer_updated(n)
        if event is not None:
            events.append(event if isinstance(event, TextLine) else bytes(event))
    decoder.receive_eof()
    return events


def outcome(stream: bytes, cuts: list[int], *, text: bool, several: int = 0) -> object:
    try:
        return decode(stream, cuts, max_payload=32, text=text, several=several)
    except RemoteProtocolError as exc:
        return type(exc), str(exc)


def test_a_frame_is_a_big_endian_length_and_the_payload() -> None:
    assert frame(b"hi") == b"\x00\x00\x00\x02hi"
    assert frame(b"") == b"\x00\x00\x00\x00"


@given(st.lists(st.binary(max_size=64), max_size=5), CUTS, st.booleans(), st.integers(0, 255))
@example([b""], [1, 1, 1, 1], True, 0)
@example([b"four", b"five", b"", b"a", b"bc", b"longer"], [], True, 255)
def test_any_cut_of_the_stream_gives_the_same_payloads(
    payloads: list[bytes], cuts: list[int], text: bool, several: int
) -> None:
    assert decode(b"".join(map(frame, payloads)), cuts, text=text, several=several) == payloads


@given(st.binary(max_size=64), CUTS, st.booleans(), st.integers(0, 255))
@example(b"A\nBC\n", [2], True, 0)
@example(b"ABC\nD\n", [1, 1, 1], True, 0)
@example(frame(b"a payload") + b"\xff\xff\xff\xff and more", [], False, 255)
def test_garbage_gives_the_same_events_or_error_under_every_cut(
    stream: bytes, cuts: list[int], text: bool, several: int
) -> None:
    assert outcome(stream, cuts, text=text, several=several) == outcome(stream, [], text=text)


def test_a_payload_of_exactly_the_limit_is_accepted() -> None:
    assert decode(frame(32 * b"x"), [], max_payload=32) == [32 * b"x"]
    with pytest.raises(FrameTooLarge):
        decode(frame(33 * b"x"), [], max_payload=32)


def test_a_hostile_length_is_refused_before_memory_is_set_aside() -> None:
    with pytest.raises(FrameTooLarge, match=r"^frame of 4294967295 bytes exceeds the limit of 32 bytes$"):
        decode(b"\xff\xff\xff\xff", [], max_payload=32)


def test_the_limit_may_grow_between_frames() -> None:
    decoder = FrameDecoder(4)
    decoder.max_payload = 1024
    decoder.get_buffer()[:4] = frame_header(1000)
    assert decoder.buffer_updated(4) is None
    assert len(decoder.get_buffer()) == 1000


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"\x00\x00", "stream ended after 2 of 4 header bytes"),
        (b"\x00\x00\x00\x02h", "stream ended after 1 of 2 payload bytes"),
        (b"\x00\x00\x00\x02", "stream ended after 0 of 2 payload bytes"),
    ],
)
def test_an_end_inside_a_frame_says_how_far_it_got(stream: bytes, message: str) -> None:
    with pytest.raises(TruncatedFrame, match=f"^{message}$"):
        decode(stream, [])


@pytest.mark.parametrize(
    ("stream", "begun"),
    [(b"", False), (b"\x00", True), (b"\x00\x00\x00\x01", True), (b"\x00\x00\x00\x01x", False)],
)
def test_a_frame_has_begun_from_its_first_byte_to_its_last(stream: bytes, begun: bool) -> None:
    decoder = FrameDecoder()
    for byte in stream:
        decoder.get_buffer()[0] = byte
        decoder.buffer_updated(1)
    assert decoder.mid_frame is begun


def test_a_payload_belongs_to_the_caller() -> None:
    decoder = FrameDecoder()
    first = decoder.get_buffer()
    first[:4] = frame_header(1)
    decoder.buffer_updated(4)
    decoder.get_buffer()[:1] = b"a"
    payload = decoder.buffer_updated(1)
    decoder.get_buffer()[:4] = frame_header(1)
    decoder.buffer_updated(4)
    decoder.get_buffer()[:1] = b"b"
    decoder.buffer_updated(1)
    assert payload == b"a"


def test_a_payload_too_long_for_the_length_is_our_own_mistake() -> None:
    with pytest.raises(
        LocalProtocolError, match=r"^payload of 4294967296 bytes does not fit a 32-bit length$"
    ):
        frame_header(1 << 32)


@pytest.mark.parametrize("limit", [0, MAX_MAX_PAYLOAD + 1])
def test_a_limit_that_would_admit_text_as_a_length_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"^max_payload is {limit}, expected 1 to 1090519039 bytes$"):
        FrameDecoder(limit)


@given(CUTS)
def test_a_stream_that_begins_with_a_letter_is_lines_of_text(cuts: list[int]) -> None:
    assert decode(b"INFO\r\nping\n\nQUIT\n", cuts, text=True) == ["INFO", "ping", "", "QUIT"]


def test_a_last_line_without_its_ending_is_no_error_and_no_line() -> None:
    assert decode(b"INFO\nPI", [], text=True) == ["INFO"]


def test_only_a_decoder_of_text_takes_letters_for_text() -> None:
    with pytest.raises(FrameTooLarge, match=r"^frame of 1229866575 bytes exceeds the limit of 1024 bytes$"):
        decode(b"INFO\n", [])


@given(CUTS)
def test_a_first_line_shorter_than_a_header_is_refused(cuts: list[int]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^a line of 1 bytes asks nothing$"):
        decode(b"A\nINFO\n", cuts, text=True)


def test_a_line_that_never_ends_is_refused() -> None:
    assert decode(b"A" * (MAX_LINE - 1) + b"\n", [], text=True) == ["A" * (MAX_LINE - 1)]
    with pytest.raises(FrameTooLarge, match=r"^frame of 8193 bytes exceeds the limit of 8192 bytes$"):
        decode(b"A" * (MAX_LINE + 1), [], text=True)


def test_a_line_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^a line of text is not ASCII$"):
        decode("GET /é\n".encode(), [], text=True)


def test_memory_follows_the_bytes_that_came_and_not_those_announced() -> None:
    decoder = FrameDecoder(64 << 20)
    decoder.get_buffer()[:4] = (64 << 20).to_bytes(4, "big")
    decoder.buffer_updated(4)
    sizes = []
    payload = None
    while payload is None:
        buffer = decoder.get_buffer()
        sizes.append(len(buffer))
        buffer[:] = bytes([len(sizes)]) * len(buffer)
        payload = decoder.buffer_updated(len(buffer))
    assert sizes == [1 << 20, 7 << 20, 56 << 20]
    assert payload == b"\x01" * (1 << 20) + b"\x02" * (7 << 20) + b"\x03" * (56 << 20)


def next_payload(decoder: FrameDecoder, payload: bytes, *, together: bool = False) -> bytearray:
    """Return what the decoder makes of a frame."""
    stream = memoryview(frame_header(len(payload)) + payload)
    event = None
    while stream:
        filled = 0
        for buffer in decoder.get_buffers() if together else (decoder.get_buffer(),):
            part = buffer[: len(stream)]
            part[:] = stream[: len(part)]
            stream, filled = stream[len(part) :], filled + len(part)
        event = decoder.buffers_updated(filled) if together else decoder.buffer_updated(filled)
    if event is None:
        event = decoder.read_ahead()
    assert isinstance(event, bytearray)
    return event


HELD: dict[str, Callable[[bytearray], Any]] = {
    "nothing": lambda payload: None,
    "the payload": lambda payload: payload,
    "a memoryview": lambda payload: memoryview(payload)[10:20],
    "an array": lambda payload: np.ndarray((4,), np.uint8, payload, 10),
    "an array from a buffer": lambda payload: np.frombuffer(payload, np.uint8)[10:20].reshape(2, 5),
}


@pytest.mark.parametrize("size", [1000, 40_000, 3_000_000, 9_000_000])
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("together", [False, True])
def test_the_memory_of_a_payload_is_used_again_only_where_nobody_holds_it(
    held: str, size: int, together: bool
) -> None:
    decoder = FrameDecoder()
    first = next_payload(decoder, b"a" * size, together=together)
    address = np.frombuffer(first, np.uint8).ctypes.data
    holder = HELD[held](first)
    del first
    if together:  # nothing has come yet: asked for again, it is the same memory
        decoder.get_buffers()
    second = next_payload(decoder, b"b" * size, together=together)
    assert second == b"b" * size
    if holder is not None:
        assert bytes(memoryview(holder).cast("B")[:1] if held != "an array from a buffer" else b"a") == b"a"
        assert np.frombuffer(second, np.uint8).ctypes.data != address
    elif 32 * 1024 <= size <= 8 << 20:
        assert np.frombuffer(second, np.uint8).ctypes.data == address


def test_a_payload_of_another_length_does_not_use_the_memory_of_the_last() -> None:
    for together in (False, True):
        decoder = FrameDecoder()
        for size in (50_000, 49_999, 50_000, 10, 50_000):
            payload = next_payload(decoder, bytes([size % 251]) * size, together=together)
            assert payload == bytes([size % 251]) * size


def address(payload: bytearray) -> int:
    return int(np.frombuffer(payload, np.uint8).ctypes.data)


def test_decoders_that_share_memory_use_that_of_the_last_payload() -> None:
    memory: list[list[bytearray]] = [[]]
    decoders = [FrameDecoder() for _ in range(3)]
    for decoder in decoders:
        decoder.memory.share(memory)
    used = [address(next_payload(decoder, b"a" * 50_000)) for decoder in decoders]
    assert len(set(used)) == 1
    held = next_payload(decoders[0], b"b" * 50_000)
    other = next_payload(decoders[1], b"c" * 50_000)
    assert held == b"b" * 50_000
    assert address(other) != address(held) == used[0]


def test_a_decoder_that_shares_memory_no_more_leaves_it_to_the_others() -> None:
    memory: list[list[bytearray]] = [[]]
    first, second = FrameDecoder(), FrameDecoder()
    for decoder in (first, second):
        decoder.memory.share(memory)
    shared = address(next_payload(first, b"a" * 50_000))
    first.memory.share(None)
    assert address(next_payload(second, b"b" * 50_000)) == shared
    kept = next_payload(first, b"c" * 50_000)
    assert address(kept) != shared
    del kept
    own = next_payload(first, b"d" * 50_000)
    assert next_payload(second, b"e" * 50_000) == b"e" * 50_000
    assert own == b"d" * 50_000
