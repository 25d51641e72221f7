"""Execution of one request in a borrowed session, with its duration counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from robowire.frontends.http_phases import current_phases
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
    phases = current_phases()
    with nullcontext() if phases is None else phases.executing(method):
        # A copy: what it came from may be shared memory, which later requests write to.
        reply: dict[str, Any] = loads(bytearray(session.execute(method, params, number)))
    service.metrics.observe(method, time.monotonic() - started)
    return reply
