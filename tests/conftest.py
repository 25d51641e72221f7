"""Fixtures that tests of several folders use."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
from libero_stand_ins import write_stand_ins

# How long an example takes says nothing of the code: other tests run at the same time.
hypothesis.settings.register_profile(
    "robowire", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("robowire")

# A folder next to the checkout, for LIBERO's own files, which may not enter the repository.
REAL_ASSETS = Path(__file__).resolve().parents[2] / "shared" / "libero" / "assets"


@pytest.fixture(scope="session")
def libero_stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with plain boxes in place of LIBERO's meshes; nothing uses it yet."""
    return write_stand_ins(tmp_path_factory.mktemp("libero") / "assets")


@pytest.fixture(scope="session")
def libero_assets(request: pytest.FixtureRequest) -> Iterator[Path]:
    """LIBERO's meshes, textures and scenes, in use: its own where they are found, else the stand-ins."""
    from benchmark.libero.assets import ASSETS_VARIABLE, find_assets
    from benchmark.registry import SIMULATORS
    from robowire.errors import BackendError

    with pytest.MonkeyPatch.context() as environment:
        if REAL_ASSETS.is_dir() and ASSETS_VARIABLE not in os.environ:
            environment.setenv(ASSETS_VARIABLE, str(REAL_ASSETS))
        try:
            assets = find_assets()
        except BackendError:
            if ASSETS_VARIABLE in os.environ:
                raise
            assets = request.getfixturevalue("libero_stand_ins")
        environment.setenv(ASSETS_VARIABLE, str(assets))
        for name, value in SIMULATORS["libero"].environ.items():
            if name not in os.environ:  # as the registry does; robosuite's import would choose another GL
                environment.setenv(name, value)
        # Tests are about physics and conventions; the faithful images cost three times as much.
        environment.setenv("ROBOWIRE_LIBERO_RENDERING", "fast")
        yield assets


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process, a thread or an open file; for ``pytest.mark.usefixtures``."""
    gc.collect()  # what earlier tests left in cycles is closed now, not in the middle of this one
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    yield
    assert psutil.Process().children(recursive=True) == []
    assert set(threading.enumerate()) == threads
    assert set(os.listdir("/proc/self/fd")) == files
