"""What the scan lets through, what it refuses, and that it says where and why."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.errors import UnsafePayload
from robowire.wire.pickle.scanner import Scan, scan

NAMES = {("numpy", "dtype")}
FRAME = b"\x95" + bytes(8)


def look(payload: bytes) -> Scan:
    return scan(bytearray(payload), NAMES)


def body(payload: bytes) -> bytes:
    """Return what is inside the one frame of the scanned stream."""
    stream = look(payload).stream
    assert stream[:3] == b"\x80\x05\x95"
    assert int.from_bytes(stream[3:11], "little") == len(stream) - 11
    return stream[11:]


data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.binary(),
    lambda children: (
        st.lists(children) | st.tuples(children, children) | st.dictionaries(st.text(), children)
    ),
    max_leaves=20,
)


@given(data, st.integers(3, 5))  # protocol 2 spells bytes by calling a function
def test_every_pickle_of_plain_data_passes(value: Any, protocol: int) -> None:
    look(pickle.dumps(value, protocol=protocol))


def test_the_stream_is_the_pickle_in_one_frame() -> None:
    assert body(b"\x80\x04K\x01.") == b"K\x01."


def test_frames_are_taken_out() -> None:
    assert body(b"\x80\x04" + FRAME + b"K\x01" + FRAME + b"\x85.") == b"K\x01\x85."


def test_a_dict_becomes_a_request_for_a_buffer() -> None:
    result = look(b"\x80\x04" + FRAME + b"}K}}\x87.")
    assert result.stream[11:] == b"\x97K}\x97\x87."  # the argument of K is no opcode
    assert result.buffers == [None, None]


@pytest.mark.parametrize(
    ("opcode", "kind"), [(b"B%b", bytes), (b"\x8e%b\0\0\0\0", bytes), (b"\x96%b\0\0\0\0", bytearray)]
)
def test_a_large_blob_is_left_where_it_was_received(opcode: bytes, kind: type) -> None:
    payload = bytearray(b"\x80\x05" + opcode % (20_000).to_bytes(4, "little") + bytes(20_000) + b"\x85}\x86.")
    stream, buffers = scan(payload, NAMES)
    assert stream[11:] == b"\x97\x85\x97\x86."
    assert buffers[0] is not None
    assert buffers[0][0] is kind
    assert buffers[0][1].obj is payload
    assert len(buffers[0][1]) == 20_000


def test_scanning_changes_nothing() -> None:
    payload = bytearray(b"\x80\x04}.")
    scan(payload, NAMES)
    assert payload == b"\x80\x04}."


def test_a_run_of_opcodes_may_be_longer_than_one_match() -> None:
    assert body(b"\x80\x04(" + b"N" * 10_000 + b"t.") == b"(" + b"N" * 10_000 + b"t."


def many(opcodes: bytes, megabytes: int = 1) -> bytes:
    return b"\x80\x04(" + opcodes * (megabytes * 1_000_000 // len(opcodes)) + b"t."


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload is not a pickle of protocol 2 to 5"),
        (b"\x80\x01N.", "payload is not a pickle of protocol 2 to 5"),
        (b"\x80\x06N.", "payload is not a pickle of protocol 2 to 5"),
        (b"(lp0\n.", "payload is not a pickle of protocol 2 to 5"),
        (b"\x80\x04N", "pickle ends after 3 bytes without STOP"),
        (b"\x80\x04N.N", "1 bytes follow the pickle"),
        (b"\x80\x04P1\n.", "opcode 0x50 at offset 2 is not one of plain data"),  # PERSID
        (b"\x80\x04(ios\nsystem\n.", "opcode 0x69 at offset 3 is not one of plain data"),  # INST
        (b"\x80\x04(No.", "opcode 0x6f at offset 4 is not one of plain data"),  # OBJ
        (b"\x80\x04\x82\x01.", "opcode 0x82 at offset 2 is not one of plain data"),  # EXT1
        (b"\x80\x04))}\x92.", "opcode 0x92 at offset 5 is not one of plain data"),  # NEWOBJ_EX
        (b"\x80\x05\x97.", "opcode 0x97 at offset 2 is not one of plain data"),  # NEXT_BUFFER
        (b"\x80\x04N2\x86.", "opcode 0x32 at offset 3 is not one of plain data"),  # DUP
        (b"\x80\x04\x8b\x01\0\0\0\1.", "opcode 0x8b at offset 2 is not one of plain data"),  # LONG4
        (b"\x80\x04K", "opcode 0x4b at offset 2 is not one of plain data"),  # cut off
        (b"\x80\x04cos\nsystem\n.", "payload names os.system, which is not data"),
        (b"\x80\x04cnumpy\ndtype.f\n.", "payload names numpy.dtype.f, which is not data"),
        (b"\x80\x04c" + 300 * b"x" + b"\nx\n.", "global at offset 2 is not two short lines"),
        (b"\x80\x04cnumpy\ndtype", "global at offset 2 is not two short lines"),
        (b"\x80\x04X\xff\xff\xff\xff.", "str at offset 2 announces 4294967295 bytes, 1 remain"),
        (b"\x80\x04\x8c\x02a", "str at offset 2 announces 2 bytes, 1 remain"),
        (b"\x80\x04B\x01", "bytes at offset 2 announces 4 bytes, 0 remain"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", f"bytes at offset 2 announces {2**64 - 1} bytes, 1 remain"),
        (
            b"\x80\x05\x96" + b"\xff" * 8 + b".",
            f"bytearray at offset 2 announces {2**64 - 1} bytes, 1 remain",
        ),
        (b"\x80\x04\x8a\x05a", "int at offset 2 announces 5 bytes, 1 remain"),
        (b"\x80\x04\x95\x02" + bytes(7) + b".", "frame at offset 2 is longer than the payload"),
        (b"\x80\x04\x95\x00", "frame at offset 2 is longer than the payload"),
        (
            b"\x80\x02Nr\xff\xff\xff\xff.",
            "opcode 0x72 at offset 3 is not one of plain data",
        ),  # a memo of 64 GB
        (b"\x80\x02Nr\x00\x00\x04\x00.", "opcode 0x72 at offset 3 is not one of plain data"),
        (many(b"}"), "payload of 1000005 bytes would take more than 36194464 bytes to read"),
        (many(b"]"), "payload of 1000005 bytes would take more than 36194464 bytes to read"),
        (many(b"N\x85"), "payload of 1000005 bytes would take more than 36194464 bytes to read"),
        (many(b"\x8c\x00"), "payload of 1000005 bytes would take more than 36194464 bytes to read"),
        (many(FRAME, 10), "payload of 10000004 bytes would take more than 205520896 bytes to read"),
        (many(b"N", 10), "payload of 10000005 bytes would take more than 205520896 bytes to read"),
    ],
)
def test_what_is_no_plain_data_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(UnsafePayload) as raised:
        look(payload)
    assert str(raised.value) == message


def test_the_largest_memo_index_is_accepted() -> None:
    assert body(b"\x80\x02Nr\xff\xff\x03\x00.") == b"Nr\xff\xff\x03\x00."


@pytest.mark.parametrize("rows", [1, 100, 1000, 3000, 100_000])
def test_rows_of_floats_are_accepted_however_many(rows: int) -> None:
    look(pickle.dumps([[float(row)] * 3 for row in range(rows)] + [0.5] * 5000))


def test_large_arrays_cost_nothing_but_themselves() -> None:
    blob = b"B" + (20_000).to_bytes(4, "little") + bytes(20_000)
    assert len(look(many(blob, 8)).buffers) == 399


@pytest.mark.parametrize("length", range(34))
def test_names_of_every_length_are_walked_over_whole(length: int) -> None:
    name = b"\x8c" + bytes([length]) + b"." * length  # a dot read as an opcode would end the pickle
    assert body(b"\x80\x05](" + name + b"\x94" + name + b"e.") == b"](" + name + b"\x94" + name + b"e."


def test_a_name_that_is_cut_off_is_refused() -> None:
    with pytest.raises(UnsafePayload) as raised:
        look(b"\x80\x05](K\x01\x8c\x05name")
    assert str(raised.value) == "str at offset 6 announces 5 bytes, 4 remain"
