"""``debug``: send any bytes, whole or in pieces, and decode the reply. Runs on Python 3.8."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from robowire.cli.command import Program
from robowire.cli.connection_flags import ConnectionFlags, at_least
from robowire.errors import ConfigurationError, RequestTimeout, TransportError, UnsafePayload
from robowire.transport.stream import Stream
from robowire.wire.framing import frame_header
from robowire.wire.inspection import describe, hex_dump
from robowire.wire.pickle.reader import loads

__all__ = ["DebugFlags", "run"]

# The length of a reply to text or raw bytes is unknown: seconds without further bytes end it.
_QUIET_S = 0.2

# Characters shown of a text reply: more than INFO has, less than a screen.
_MAX_TEXT = 2000


@dataclass(frozen=True)
class DebugFlags(ConnectionFlags):
    """Flags of ``debug``.

    Attributes:
        file: File whose bytes are sent; standard input by default.
        hex: Bytes to send, such as "00 00 00 04 80 05 4e 2e".
        text: Line of text to send: INFO, PING, STATS, HELP.
        raw: Send the bytes as they are, without a length before them.
        cut: Send in pieces, cut after these bytes: 1,3,5.
        pause_s: Seconds between two pieces.
        count: Times to send it, one after the other.
    """

    file: str | None = None
    hex: str | None = None
    text: str | None = None
    raw: bool = False
    cut: str | None = None
    pause_s: float = 0.5
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, count=self.count)
        at_least(0, pause_s=self.pause_s)


def run(flags: DebugFlags, program: Program) -> int:
    """Print what is sent, what comes back, and how the connection ended."""
    pieces = _pieces(_debug_bytes(flags), flags.cut)
    begun = time.perf_counter()
    context = flags.tls_context()
    stream = Stream.connect(
        flags.host,
        flags.port,
        timeout_s=flags.timeout_s,
        tls=None if isinstance(context, bool) else context,
    )
    with closing(stream):
        _print(f"connected to {flags.host}:{flags.port} in {(time.perf_counter() - begun) * 1e3:.2f} ms")
        for number in range(flags.count):
            _print(f"#{number + 1}: {sum(map(len, pieces))} bytes in {len(pieces)} piece(s)")
            _print(hex_dump(b"".join(pieces), limit=64))
            exchange = _exchange(stream, pieces, flags)
            _print_reply(exchange)
            if exchange.ending:
                break
    _print(f"connection: {exchange.ending or 'still open; closed by us'}")
    return 0


def _debug_bytes(flags: DebugFlags) -> bytes:
    """Return what goes over the wire."""
    named = [name for name in ("file", "hex", "text") if getattr(flags, name) is not None]
    if len(named) > 1:
        raise ConfigurationError(f"--{named[0]} and --{named[1]} are both given: one of them")
    if flags.text is not None:
        return flags.text.encode() + b"\n"
    if flags.hex is not None:
        try:
            data = bytes.fromhex(flags.hex)
        except ValueError as exc:
            raise ConfigurationError(
                f"hex is {flags.hex[:40]!r}, expected pairs of 0-9 and a-f: {exc}"
            ) from exc
    elif flags.file is not None:
        try:
            data = Path(flags.file).read_bytes()
        except OSError as exc:
            raise ConfigurationError(f"cannot read {flags.file}: {exc.strerror}") from exc
    else:
        data = sys.stdin.buffer.read()
    return data if flags.raw else frame_header(len(data)) + data


def _pieces(data: bytes, cut: str | None) -> list[bytes]:
    if cut is None:
        return [data]
    if not re.fullmatch(r"\d+(,\d+)*", cut):
        raise ConfigurationError(f"cut is {cut!r}, expected numbers of bytes: 1,3,5")
    places = [0, *sorted(int(place) for place in cut.split(",")), len(data)]
    return [data[start:end] for start, end in zip(places, places[1:]) if start < end]


@dataclass
class _Exchange:
    """Reply, with times in seconds after the last piece was sent; ``ending`` is empty while it is open."""

    data: bytearray
    first_s: float = 0.0
    last_s: float = 0.0
    ending: str = ""


def _exchange(stream: Stream, pieces: Sequence[bytes], flags: DebugFlags) -> _Exchange:
    """Send the pieces and read one frame; after raw bytes and text, read until nothing more comes."""
    exchange, several = _Exchange(bytearray()), flags.raw or flags.text is not None
    buffer = memoryview(bytearray(1 << 16))
    try:
        for index, piece in enumerate(pieces):
            if index:
                time.sleep(flags.pause_s)
            stream.send([piece], flags.timeout_s)
        sent = time.perf_counter()
        while not (whole := _is_whole(exchange.data)) or several:
            left_s = _QUIET_S if whole else max(sent + flags.timeout_s - time.perf_counter(), 1e-3)
            received = stream.recv_into((buffer,), left_s)
            if not received:
                exchange.ending = "closed by the server"
                break
            exchange.last_s = time.perf_counter() - sent
            exchange.first_s = exchange.first_s or exchange.last_s
            exchange.data += buffer[:received]
    except RequestTimeout:
        if not _is_whole(exchange.data):
            exchange.ending = f"closed by us: no complete reply within {flags.timeout_s:g} s"
    except TransportError as exc:
        exchange.ending = f"lost: {exc}"
    return exchange


def _is_text(data: bytearray) -> bool:
    return bool(data) and data[0] >= 0x20  # as a length it would announce half a gigabyte


def _is_whole(data: bytearray) -> bool:
    """Whether the bytes end where a frame or a line ends."""
    return data.endswith(b"\n") if _is_text(data) else bool(data) and _frame_ends(data)[-1] == len(data)


def _frame_ends(data: bytearray) -> list[int]:
    """Return where the whole frames at the start of the bytes end, after a 0."""
    ends = [0]
    while len(data) >= ends[-1] + 4:
        end = ends[-1] + 4 + int.from_bytes(data[ends[-1] : ends[-1] + 4], "big")
        if end > len(data):
            break
        ends.append(end)
    return ends


def _print_reply(exchange: _Exchange) -> None:
    data = exchange.data
    if not data:
        _print("no reply")
        return
    times = f"first after {exchange.first_s * 1e3:.2f} ms, last after {exchange.last_s * 1e3:.2f} ms"
    _print(f"reply: {len(data)} bytes, {times}")
    _print(hex_dump(data))
    if _is_text(data):
        _print(f"text: {data[:_MAX_TEXT].decode('ascii', 'replace').rstrip()}")
        return
    ends = _frame_ends(data)
    for start, end in zip(ends, ends[1:]):
        payload = data[start + 4 : end]
        _print(f"payload of {len(payload)} bytes:")
        try:
            _print(describe(loads(payload)))
        except UnsafePayload as exc:
            _print(f"not plain data: {exc}")
    if ends[-1] < len(data):
        _print(f"{len(data) - ends[-1]} bytes of a frame that is not complete")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
