"""What tests of several folders share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# Beside the checkout, where continuous integration keeps what may not enter the repository.
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "libero" / "assets"


@pytest.fixture(scope="session")
def libero_assets() -> Iterator[Path]:
    """LIBERO's meshes, textures and scenes, in use for the tests that ask for them.

    Where there are none a test is skipped and says what it lacks; but not in continuous integration.
    """
    from benchmark.libero.assets import ASSETS_VARIABLE, find_assets
    from benchmark.registry import SIMULATORS
    from robowire.errors import BackendError

    with pytest.MonkeyPatch.context() as environment:
        if BESIDE.is_dir() and ASSETS_VARIABLE not in os.environ:
            environment.setenv(ASSETS_VARIABLE, str(BESIDE))
        try:
            assets = find_assets()
        except BackendError as exc:
            if os.environ.get("CI"):
                pytest.fail(str(exc))
            pytest.skip(str(exc))
        environment.setenv(ASSETS_VARIABLE, str(assets))
        for name, value in SIMULATORS["libero"].environ.items():
            if name not in os.environ:  # as the registry does; robosuite's import would choose another GL
                environment.setenv(name, value)
        # Tests are about physics and conventions; the faithful pictures cost three times as much.
        environment.setenv("ROBOWIRE_LIBERO_RENDERING", "fast")
        yield assets


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process, a thread or an open file; for ``pytest.mark.usefixtures``."""
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    yield
    assert psutil.Process().children(recursive=True) == []
    assert set(threading.enumerate()) == threads
    assert set(os.listdir("/proc/self/fd")) == files
