"""One frame with a call of a method in, one frame with its reply out: counted, timed, its errors typed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from robowire.errors import RequestError
from robowire.serving.metrics import Metrics
from robowire.serving.sessions import Session
from robowire.wire.framing import frame_header
from robowire.wire.messages import Call, error_reply, parse_call
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode_frame

__all__ = ["answer_call"]

logger = logging.getLogger(__name__)


def answer_call(
    payload: bytearray, session: Session, metrics: Metrics, answer: Callable[[Call], dict[str, Any] | Buffer]
) -> Sequence[Buffer]:
    """Return the frame that answers one request.

    Args:
        payload: Of the request's frame.
        session: Who asks, for the log.
        metrics: Where it is counted.
        answer: Returns the reply to a call, as a dict or already as its pickle; or raises a ``RequestError``.

    Raises:
        UnsafePayload: The payload cannot be read.
    """
    value = loads(payload)
    started = time.monotonic()
    try:
        call = parse_call(value)
        reply = answer(call)
    except RequestError as exc:
        metrics.error(exc.error_type)
        logger.debug("%s: %s: %s", session, exc.error_type, exc)
        return encode_frame(error_reply(exc))
    metrics.observe(call.method, time.monotonic() - started)
    if isinstance(reply, dict):
        return encode_frame(reply)
    return [frame_header(len(reply)), reply]
