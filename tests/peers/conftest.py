"""Fixtures that tests with peers' own clients use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peer_process
import pytest


@pytest.fixture
def run_peer() -> Callable[..., list[dict[str, Any]]]:
    """Run a script of this folder in a peer's environment: see :func:`peer_process.run_peer`."""
    return peer_process.run_peer
