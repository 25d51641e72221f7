"""The pieces that a stream sends, and that nothing else calls the operating system to send or receive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robowire.transport.stream import pieces

PACKAGE = Path(__file__).resolve().parents[2] / "robowire"
PIECE = 64 * 1024


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [4, 100, 50], [PIECE], [PIECE + 1], [4, 3 * PIECE, 7], [PIECE - 1, 1, 1]]
)
def test_pieces_are_the_same_bytes_in_order(sizes: list[int]) -> None:
    buffers = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    cut = [bytes(piece) for piece in pieces(buffers)]
    assert b"".join(cut) == b"".join(buffers)
    assert all(0 < len(piece) <= PIECE for piece in cut)


def test_small_buffers_leave_as_one_piece_and_large_ones_are_not_copied() -> None:
    assert [bytes(piece) for piece in pieces([b"\0\0\0\4", b"ab", b"cd"])] == [b"\0\0\0\4abcd"]
    large = bytearray(3 * PIECE)
    assert all(piece.obj is large for piece in pieces([large]))


def test_no_other_module_calls_the_operating_system_to_send_or_receive() -> None:
    calls = re.compile(r"\.sendmsg\(|MSG_PEEK|select\.poll|\.recv\(|\.recv_into\(|\.sendall\(")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any("sock" in line and calls.search(line) for line in path.read_text().splitlines())
    }
    # In framing it is an example of the docstring; the template passes descriptors to its own child.
    assert found == {
        "transport/stream.py",
        "transport/tls.py",
        "wire/framing.py",
        "serving/simulator/template.py",
    }
