"""Greetings of other wires on a native port: what they are, which flag serves them, how they are answered.

No socket: the handler asks, sends, and closes.
"""

from __future__ import annotations

import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence

from robowire.serving.text import HTTP_PATHS

__all__ = ["ZMTP_START", "GreetingLog", "foreign_answer", "foreign_line", "foreign_sentence"]

# ZeroMQ's greeting is ff 00 00 00 00 00 00 00 01 7f, sent at once; no frame of ours is 4 GB long.
ZMTP_START = b"\xff\x00"

_REQUEST_LINE = re.compile(r"[A-Z]{3,10} \S+ HTTP/1\.[01]")
_PREFACE = "PRI * HTTP/2.0"  # RFC 9113, section 3.4

_NAMES = {"zmtp": "ZeroMQ", "http2": "HTTP/2 (gRPC)", "websocket": "WebSocket", "http": "HTTP"}
_SERVED_BY = {
    ("policy", "zmtp"): "--gr00t_port serves GR00T's clients, --act_zmq_port the ACT server's",
    ("policy", "http2"): "--lerobot_port serves LeRobot's async inference",
    ("policy", "websocket"): "--openpi_port serves openpi's clients, --vla_eval_port vla-eval's",
    ("policy", "http"): "--vlastudio_port serves VLAStudio's",
    ("simulator", "zmtp"): "--center_port serves the simulator center's clients",
    ("simulator", "http"): "--http_port serves HTTP",
    ("fleet", "zmtp"): "a simulator server with --center_port serves the simulator center's clients",
    ("fleet", "http"): "a simulator server with --http_port serves HTTP",
}

# RFC 9113: an empty SETTINGS frame, which the server must send first; then GOAWAY (type 7) on stream 0 with
# the last stream 0, an error code, and a text for the log of the client.
_SETTINGS = bytes(3) + b"\x04\x00" + bytes(4)
_HTTP_1_1_REQUIRED = 0xD

# Hosts and wires that are remembered as named: enough for a laboratory, bounded for an attacker.
_MAX_NAMED = 256


def foreign_line(line: str, headers: Sequence[str] = ()) -> str | None:
    """Return which wire a first line of text begins: ``"http2"``, ``"websocket"`` or ``"http"``.

    Args:
        line: The line.
        headers: Those that followed it.

    Returns:
        ``None`` where it is none of them.
    """
    if line == _PREFACE:
        return "http2"
    if not _REQUEST_LINE.fullmatch(line):
        return None
    upgrades = any(re.fullmatch(r"upgrade:\s*websocket\s*", header, re.IGNORECASE) for header in headers)
    return "websocket" if upgrades else "http"


def foreign_sentence(wire: str, kind: str, port: int | str) -> str:
    """Return what this port is, and which flag serves the other wire.

    Args:
        wire: ``"zmtp"``, ``"http2"``, ``"websocket"`` or ``"http"``.
        kind: ``"policy"``, ``"simulator"`` or ``"fleet"``.
        port: The native port, or the address ``unix:PATH``.
    """
    served = _SERVED_BY.get((kind, wire), "no flag of this server serves it")
    where = f"port {port}" if isinstance(port, int) else port
    return f"{where} is robowire's native {kind} wire and does not speak {_NAMES[wire]}: {served}"


def foreign_answer(wire: str, sentence: str, line: str = "") -> bytes:
    """Return the refusal in the words of the other wire; nothing where it has none for a server.

    Args:
        wire: ``"zmtp"``, ``"http2"``, ``"websocket"`` or ``"http"``.
        sentence: For the log of the client.
        line: Its first line, where it sent text.
    """
    if wire == "http2":
        debug = sentence.encode()
        goaway = struct.pack("!II", 0, _HTTP_1_1_REQUIRED) + debug
        return _SETTINGS + struct.pack("!I", len(goaway))[1:] + b"\x07\x00" + bytes(4) + goaway
    if wire in ("http", "websocket"):
        body = f"{sentence}; GET {' and GET '.join(HTTP_PATHS)} are answered here\n".encode()
        # 421: directed at a server that can't answer it. A WebSocket client shows the status and gives up.
        get = wire == "http" and line.startswith("GET ")
        status = "404 Not Found" if get else "421 Misdirected Request"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body
    return b""


class GreetingLog:
    """Whether a greeting was named before: libzmq alone connects seven times a second. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: OrderedDict[tuple[str, str], None] = OrderedDict()

    def first(self, host: str, wire: str) -> bool:
        """Return whether this is the first greeting of a wire from a host, and remember it."""
        with self._lock:
            known = (host, wire) in self._named
            self._named[host, wire] = None
            self._named.move_to_end((host, wire))
            if len(self._named) > _MAX_NAMED:
                self._named.popitem(last=False)
            return not known
