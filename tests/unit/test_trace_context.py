"""The frame that says of which trace a request is."""

from __future__ import annotations

from pathlib import Path

import pytest

from robowire.wire.trace_context import is_trace_context, read_trace_context, trace_context_frame

GOLDEN = Path(__file__).parent.parent / "golden" / "packed" / "trace_context.bin"
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def test_the_frame_has_the_bytes_of_the_documentation() -> None:
    assert trace_context_frame(HEADERS)[4:] == GOLDEN.read_bytes()


@pytest.mark.parametrize("state", [{}, {"tracestate": "vendor=1,other=a"}])
def test_the_headers_arrive(state: dict[str, str]) -> None:
    payload = trace_context_frame({**HEADERS, **state})[4:]
    assert is_trace_context(payload)
    assert read_trace_context(payload) == {**HEADERS, **state}


@pytest.mark.parametrize("payload", [b"\x07\xff\xfe", b"\x07" + b"a" * 1025])
def test_what_is_no_text_or_too_long_is_ignored(payload: bytes) -> None:
    assert read_trace_context(payload) == {}


def test_a_pickle_is_no_trace_context() -> None:
    assert not is_trace_context(b"\x80\x05N.")
    assert not is_trace_context(b"")
