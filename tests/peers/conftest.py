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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs an environment of several gigabytes, unless it is asked for with ``-m``."""
    if "lerobot06" not in config.getoption("-m"):
        left_out = [item for item in items if item.get_closest_marker("lerobot06")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
