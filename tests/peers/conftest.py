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


# Their environments have torch, of several gigabytes.
ON_DEMAND = ("lerobot04", "lerobot06")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs an environment of several gigabytes, unless it is asked for with ``-m``."""
    asked = config.getoption("-m")
    skipped = [name for name in ON_DEMAND if name not in asked]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in skipped)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
