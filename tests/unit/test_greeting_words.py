"""Greetings of other wires: what is said of them names flags that exist, and is written in their words."""

from __future__ import annotations

import re

from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.simulator_frontends import SimulatorFrontendOptions
from robowire.serving.policy.dispatcher import DispatchOptions
from robowire.serving.policy.service import PolicyService
from robowire.serving.tcp.foreign_greetings import (
    GreetingLog,
    foreign_answer,
    foreign_line,
    foreign_sentence,
)
from robowire.testing import EchoPolicy

WIRES = ("zmtp", "http2", "websocket", "http")


def test_every_flag_that_is_named_exists() -> None:
    for kind, options in (
        ("policy", PolicyFrontendOptions),
        ("simulator", SimulatorFrontendOptions),
        ("fleet", SimulatorFrontendOptions),
    ):
        for wire in WIRES:
            flags = re.findall(r"--(\w+)", foreign_sentence(wire, kind, 5000))
            assert [flag for flag in flags if flag not in options.__dataclass_fields__] == []
            assert flags or kind != "policy"


def test_first_lines_are_told_apart() -> None:
    assert foreign_line("PRI * HTTP/2.0") == "http2"
    assert foreign_line("POST /inference HTTP/1.1") == "http"
    assert foreign_line("GET / HTTP/1.1", ["Host: x", "Upgrade: WebSocket"]) == "websocket"
    assert foreign_line("PING") is None


def test_http_2_is_answered_by_settings_and_goaway() -> None:
    answer = foreign_answer("http2", "no")
    assert answer[:9] == b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    assert answer[9:] == b"\x00\x00\x0a\x07\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x00\x00\x00\x00\x0dno"


def test_the_memory_of_named_hosts_is_bounded() -> None:
    log = GreetingLog()
    assert [log.first("a", "http"), log.first("a", "http"), log.first("a", "zmtp")] == [True, False, True]
    for number in range(1000):
        log.first(str(number), "http")
    assert len(log._named) <= 256


def test_a_chunk_that_is_shorter_than_asked_for_is_said() -> None:
    service = PolicyService(EchoPolicy(chunk_size=4), DispatchOptions(chunk_size=16))
    try:
        assert "chunk_size 4 (the policy's whole chunk, shorter than --chunk_size 16)" in service.describe()
    finally:
        service.close()
