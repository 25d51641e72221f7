"""The worker in the oldest interpreter of simulators, Python 3.8, with numpy and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import InvalidParams
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import Entry
from robowire.serving.policy.process import PolicySource
from robowire.serving.policy.process_policy import ProcessOptions, start_policy
from robowire.serving.worker_process import worker_environment
from robowire.testing import running_server, running_simulator_server

IMPORTS = """
import sys
import robowire.worker.policy_worker
import robowire.worker.simulator_worker, robowire.worker.simulator_input, robowire.worker.egl_devices
print(*sorted({".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("robowire.")}))
"""


def python_3_8() -> str | None:
    """Return a Python 3.8 that runs, on the path or among those of pyenv; ``None`` if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*map(str, sorted(pyenv.glob("versions/3.8*/bin/python"))), shutil.which("python3.8")]
    for python in filter(None, candidates):
        probe = [python, "-c", "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 8))"]
        # A pyenv shim may lead nowhere: only a run shows it.
        if subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0:
            return python
    return None


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Python 3.8 of a fresh environment with numpy."""
    base = python_3_8()
    if base is None:
        pytest.skip("needs Python 3.8, on the path as python3.8 or in pyenv")
    folder = tmp_path_factory.mktemp("python38")
    subprocess.run([base, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=120)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "numpy==1.22.*"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"numpy cannot be installed for Python 3.8: {done.stderr.splitlines()[-1:]}")
    yield python
    shutil.rmtree(folder)  # about 100 MB, and pytest would keep those of the last three runs


def test_the_worker_imports_nothing_of_the_server_and_the_clients(old_python: str) -> None:
    done = subprocess.run(
        [old_python, "-W", "error", "-c", IMPORTS],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=worker_environment(),
    )
    loaded = set(done.stdout.split())
    assert "robowire.worker" in loaded
    assert loaded.isdisjoint({"robowire.serving", "robowire.client", "robowire.rollout", "robowire.cli"})


def test_a_policy_runs_in_it(old_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent))
    name = "unruly_policy:make_policy"
    size = 50_000  # numbers of a state that crosses in shared memory
    source = PolicySource(name, Entry(name), PolicyOptions(extra={"size": size}), old_python)
    policy = start_policy(source, ProcessOptions(), label="old")
    assert policy.foreign_versions["python"].startswith("3.8.")
    with running_server(policy) as server, PolicyClient(*server.address[:2]) as client:
        state = np.arange(size, dtype=np.float32)
        assert np.array_equal(client.infer(MetaObs(state=state))[0], state)


def test_a_session_runs_in_it(old_python: str) -> None:
    with running_simulator_server(pythons={"fake": old_python}) as server, SimulatorClient(
        *server.address
    ) as client:
        client.select_simulator("fake")
        assert "reach" in client.list_tasks()
        spec = client.load_task("reach", image_height=256, image_width=256)
        first = client.reset(seed=1)
        assert first["front_image"].shape == (256, 256, 3)  # through shared memory
        with pytest.raises(InvalidParams):
            client.step("x" * 10_000)  # type: ignore[arg-type]
        action = [0.1] * (spec.action_dim or 0)
        client.step(action)
        snapshot = client.snapshot()
        after = client.step(action).observation
        client.restore(snapshot)
        assert np.array_equal(client.step(action).observation["position"], after["position"])
        assert client.verify(snapshot, steps=5) is None
        assert client.step_chunk([action, action]).steps == 2
        assert client.render().dtype == np.uint8
        assert client.get_info()["process"]["python"].startswith("3.8.")
        client.load_task("reach", observation_format="meta")
        assert client.reset(seed=1).image is not None
        client.step(MetaAction(action=np.array(action), ctrl_space=spec.ctrl_space, ctrl_type=spec.ctrl_type))
