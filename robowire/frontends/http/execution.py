"""Execution of one request in a borrowed session, with its duration counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from robowire.serving.simulator.service import SimulatorService
from robowire.serving.simulator.session import SimulatorSession
from robowire.wire.pickle.reader import loads

__all__ = ["execute"]


def execute(
    service: SimulatorService,
    session: SimulatorSession,
    method: str,
    params: Mapping[str, Any],
    number: int | None = None,
) -> dict[str, Any]:
    """Return a session's reply; its lock is held. The parameters are checked."""
    started = time.monotonic()
    # A copy: what it came from may be shared memory, which later requests write to.
    reply: dict[str, Any] = loads(bytearray(session.execute(method, params, number)))
    executed = time.monotonic()
    service.metrics.observe(method, executed - started)
    # The body was read, and the reply is written, by the application: both take part in no phase.
    service.metrics.answered("http", method, "ok", (0.0, executed - started, 0.0))
    return reply
