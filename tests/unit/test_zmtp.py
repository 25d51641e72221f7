"""ZMTP's bytes, under every cutting of the stream."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from robowire.errors import FrameTooLarge, RemoteProtocolError, TruncatedFrame
from robowire.frontends.zmtp import (
    Command,
    Greeting,
    Message,
    Signature,
    ZmtpDecoder,
    command,
    greeting,
    message,
    parse_ready,
    ready_command,
)

LONG = [bytearray(b"l" * 300)]
STREAM = b"".join(
    [
        greeting(),
        ready_command("REQ"),
        *message([bytearray(b"id"), bytearray()], [b"body", b"", b"x" * 300]),
        command(b"PING", b"\0\0ctx"),
        *message([bytearray()], []),
        # Each long one lets the decoder expect another.
        *(*message([bytearray()], LONG), *message([bytearray()], LONG), *message([bytearray()], LONG)),
        *message([bytearray()], [b"short"]),
        *message([bytearray()], LONG),
        command(b"PING", b"\0\0"),
        *message([bytearray()], LONG),
        *message([bytearray()], []),
        *message([bytearray()], [b"x" * 301]),
        *message([bytearray()], [b"x" * 302]),
        *message([bytearray(b"id"), bytearray()], LONG),
        *message([bytearray()], LONG),
    ]
)
EVENTS = [
    Signature(),
    Greeting((3, 1), "NULL"),
    Command(b"READY", ready_command("REQ")[8:]),
    Message([bytearray(b"id"), bytearray(), bytearray(b"body" + b"x" * 300)]),
    Command(b"PING", b"\0\0ctx"),
    Message([bytearray(), bytearray()]),
    *[Message([bytearray(), *LONG])] * 3,
    Message([bytearray(), bytearray(b"short")]),
    Message([bytearray(), *LONG]),
    Command(b"PING", b"\0\0"),
    Message([bytearray(), *LONG]),
    Message([bytearray(), bytearray()]),
    Message([bytearray(), bytearray(b"x" * 301)]),
    Message([bytearray(), bytearray(b"x" * 302)]),
    Message([bytearray(b"id"), bytearray(), *LONG]),
    Message([bytearray(), *LONG]),
]


def decode(data: bytes, size: int = 1 << 20, max_payload: int = 1000, *, together: bool = True) -> list[Any]:
    """Feed at most ``size`` bytes at a time, and never more than is asked for.

    Args:
        data: The stream.
        size: Most bytes of one system call.
        max_payload: Limit of the decoder.
        together: Whether the beginning of a message that is expected comes with its body.
    """
    decoder, events = ZmtpDecoder(max_payload), []
    while data or decoder.ahead:
        if decoder.ahead:
            event = decoder.read_ahead()
            if event is not None:
                events.append(event)
            continue
        taken = 0
        for buffer in decoder.get_buffers() if together else [decoder.get_buffer()]:
            part = min(size - taken, len(buffer), len(data))
            buffer[:part] = data[:part]
            data = data[part:]
            taken += part
        event = decoder.buffers_updated(taken) if together else decoder.buffer_updated(taken)
        if event is not None:
            events.append(event)
    decoder.receive_eof()
    return events


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 12, 64, 310, 1000])
def test_a_stream_is_read_the_same_however_it_is_cut(size: int, together: bool) -> None:
    assert decode(STREAM, size, together=together) == EVENTS


def test_a_request_like_the_one_before_takes_one_system_call() -> None:
    decoder, request = ZmtpDecoder(1000), b"".join(message([bytearray()], LONG))
    for data in (greeting(), ready_command("REQ"), request):
        while data:
            buffer = decoder.get_buffer()
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            data = data[taken:]
            decoder.buffer_updated(taken)
    beginning, body = decoder.get_buffers()
    beginning[:], body[:] = request[:11], request[11:]
    assert decoder.buffers_updated(len(request)) == Message([bytearray(), *LONG])


def test_a_long_frame_without_bytes_lets_nothing_be_expected() -> None:
    empty = b"\x01\x00" + b"\x02" + bytes(8)
    event = Message([bytearray(), bytearray()])
    assert decode(greeting() + ready_command("REQ") + empty * 2)[3:] == [event, event]


def test_the_envelope_ends_with_the_first_empty_frame() -> None:
    assert EVENTS[3].split() == ([b"id", b""], [b"body" + b"x" * 300])
    assert Message([bytearray(b"a")]).split() == ([], [b"a"])


def test_a_stream_that_ends_inside_a_message_is_an_error() -> None:
    for end in range(1, len(STREAM)):
        try:
            decode(STREAM[:end])
        except TruncatedFrame:
            continue
        # Only between two frames that belong to none, and in the greeting, which says nothing yet.
        assert end <= 64 or decode(STREAM[:end]) != EVENTS


def test_all_frames_of_a_message_share_the_limit() -> None:
    frame = b"\x01\x64" + bytes(100)
    with pytest.raises(FrameTooLarge, match=r"^frame of 300 bytes exceeds the limit of 250 bytes$"):
        decode(greeting() + frame * 3, max_payload=250)


def test_memory_follows_the_bytes_that_came() -> None:
    decoder = ZmtpDecoder(1 << 40)
    for data in (greeting()[:10], greeting()[10:], b"\x02\x00", struct.pack(">Q", 1 << 39)[1:]):
        decoder.get_buffer()[: len(data)] = data
        decoder.buffer_updated(len(data))
    assert len(decoder.get_buffer()) == 1 << 20


def test_properties_are_read_whatever_case_their_names_have() -> None:
    data = b"\x0bSOCKET-type\0\0\0\3REQ\x01x\0\0\0\0"
    assert parse_ready(data) == {"socket-type": b"REQ", "x": b""}
    for end in range(1, len(data)):
        if end != 19:  # behind the first property
            with pytest.raises(RemoteProtocolError):
                parse_ready(data[:end])


def test_a_body_is_received_where_the_one_before_it_was_unless_somebody_holds_it() -> None:
    def receive(decoder: ZmtpDecoder, data: bytes) -> Message:
        while True:
            buffer = decoder.get_buffer()
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            data = data[taken:]
            event = decoder.buffer_updated(taken)
            if isinstance(event, Message):
                return event

    decoder = ZmtpDecoder(1 << 20)
    decode_greeting = b"".join([greeting(), ready_command("REQ")])
    while decode_greeting:
        taken = len(decoder.get_buffer())
        decoder.get_buffer()[:taken] = decode_greeting[:taken]
        decode_greeting = decode_greeting[taken:]
        decoder.buffer_updated(taken)
    data = b"".join(message([bytearray()], [b"x" * 70_000]))
    kept = receive(decoder, data).frames[1]
    event = receive(decoder, data)
    assert event.frames[1] is not kept
    where = id(event.frames[1])
    del event
    assert id(receive(decoder, data).frames[1]) == where


def test_a_request_larger_than_its_client_may_send_is_refused_though_one_like_it_was_taken() -> None:
    decoder = ZmtpDecoder(1000)
    for data in (greeting(), ready_command("REQ"), b"".join(message([bytearray()], LONG))):
        while data:
            taken = min(len(decoder.get_buffer()), len(data))
            decoder.get_buffer()[:taken] = data[:taken]
            data = data[taken:]
            decoder.buffer_updated(taken)
    decoder.max_payload = 100
    decoder.get_buffer()[:11] = b"".join(message([bytearray()], LONG))[:11]
    with pytest.raises(FrameTooLarge, match=r"^frame of 300 bytes exceeds the limit of 100 bytes$"):
        decoder.buffer_updated(11)
    assert decoder.envelope == [b""]


def test_a_limit_that_was_lowered_holds_for_a_request_that_was_expected() -> None:
    decoder, request = ZmtpDecoder(1000), b"".join(message([bytearray()], LONG))
    for data in (greeting(), ready_command("REQ"), request):
        while data:
            taken = min(len(decoder.get_buffer()), len(data))
            decoder.get_buffer()[:taken] = data[:taken]
            data = data[taken:]
            decoder.buffer_updated(taken)
    beginning, body = decoder.get_buffers()
    beginning[:], body[:] = request[:11], request[11:]
    decoder.max_payload = 100
    with pytest.raises(FrameTooLarge, match=r"^frame of 300 bytes exceeds the limit of 100 bytes$"):
        decoder.buffers_updated(len(request))


@pytest.mark.parametrize("length", [0, 1, 255, 256, 32 * 1024, 32 * 1024 + 1])
@pytest.mark.parametrize("envelope", [[b""], [b"id", b""], []])
def test_a_body_of_one_buffer_is_sent_as_one_of_several(length: int, envelope: list[bytes]) -> None:
    body = bytes(index % 251 for index in range(length))
    found = b"".join(message(envelope, [body]))
    assert found == b"".join(message(envelope, [bytearray(body[:1]), memoryview(body)[1:]]))
    assert found.endswith(body)
    assert len(message(envelope, [body])) == 1 or length > 32 * 1024 - 100
