"""Simulators forked from a prepared process: what they share, how they end, and what they leave behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from raw_client import wait_until

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import BackendError
from robowire.registry import Entry
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS, running_simulator_server

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left_behind"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks need Linux"),
]

HERE = Path(__file__).parent
SIMULATORS = {"preparing": Entry("preparing_simulator:make_simulator"), "plain": FAKE_SIMULATORS["fake"]}
CAMERAS = ["front", "side"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    options = SimulatorServerOptions(fork_sessions=True, call_timeout_s=2, drain_s=1)
    with running_simulator_server(options, simulators=SIMULATORS) as running:
        yield running


def begin(
    server: SimulatorServer, name: str = "preparing", task: str = "reach", **more: Any
) -> SimulatorClient:
    client = SimulatorClient(*server.address[:2], reconnect_s=0)
    try:
        client.select_simulator(name)
        client.load_task(task, camera_names=CAMERAS, **more)
    except BaseException:
        client.disconnect()
        raise
    return client


def template_pid(server: SimulatorServer, name: str = "preparing") -> int:
    templates = server.service.pool._templates
    wait_until(lambda: templates.get(name) is not None, timeout_s=30)
    template = templates[name]
    assert template is not None
    return template.pid


@pytest.fixture
def template(server: SimulatorServer) -> int:
    """Return the number of the process that later sessions are forked from."""
    with begin(server) as first:
        assert first.reset()["prepared"][0] == 0
        return template_pid(server)


def test_sessions_are_forked_from_one_that_is_prepared(server: SimulatorServer, template: int) -> None:
    with begin(server) as one, begin(server) as other:
        first, second = one.reset(), other.reset()
        for seen in (first, second):
            prepared, process = seen["prepared"].tolist()
            assert prepared == template
            assert psutil.Process(process).ppid() == template
            assert os.getsid(process) == process
        # Without a seed they do not begin the same episode.
        assert not np.array_equal(first["drawn"], second["drawn"])
        np.testing.assert_array_equal(one.reset(seed=3)["position"], other.reset(seed=3)["position"])
        assert not one.step(np.zeros(3)).truncated
        one.reset()
        (token,) = one.fork(one.snapshot(), 1)
        with SimulatorClient(*server.address[:2]) as third:
            third.resume(token)
            assert psutil.Process(int(third.reset()["prepared"][1])).ppid() == template
    wait_until(lambda: psutil.Process(template).children() == [])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("segfault_in_step", "was killed by SIGSEGV during 'step'.*; its last output: .*Segmentation fault"),
        ("exit_in_step", "exited with code 3 during 'step'"),
    ],
)
def test_one_that_dies_costs_one_session(
    server: SimulatorServer, template: int, fault: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with begin(server) as other, begin(server, task=fault) as dying:
        other.reset(), dying.reset()
        with pytest.raises(BackendError, match=told):
            dying.step(np.zeros(3))
        other.step(np.zeros(3))
        assert "preparing: reset in " in caplog.text
    assert psutil.Process(template).status() != psutil.STATUS_ZOMBIE


def test_one_that_hangs_is_killed(server: SimulatorServer, template: int) -> None:
    with begin(server, task="hang_in_step") as client:
        client.reset()
        began = time.monotonic()
        with pytest.raises(BackendError, match="did not answer 'step' within 2 s and was killed"):
            client.step(np.zeros(3))
        assert time.monotonic() - began < 10


def test_without_the_process_they_are_forked_from_others_are_started(
    server: SimulatorServer, template: int
) -> None:
    with begin(server) as client:
        fork = psutil.Process(int(client.reset()["prepared"][1]))
        os.kill(template, signal.SIGKILL)
        fork.wait(10)  # it ends with the one that it was forked from
        with pytest.raises(BackendError, match="SIGKILL"):
            client.step(np.zeros(3))
    with begin(server) as client:
        assert client.reset()["prepared"][0] == 0
        assert template_pid(server) != template  # the next ones are forked again


@pytest.mark.parametrize(
    ("name", "horizon", "told"),
    [
        ("plain", None, "simulator 'plain' cannot be prepared for forks"),
        ("preparing", 4, "simulator 'preparing' cannot start: ValueError: not today"),
    ],
)
def test_what_cannot_be_prepared_is_started_as_ever(
    server: SimulatorServer, name: str, horizon: int | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with begin(server, name, horizon=horizon) as client:
            client.reset()
            wait_until(lambda: told in caplog.text, timeout_s=30)
    assert caplog.text.count("are not forked: ") == 1


def test_a_server_that_closes_ends_what_it_prepares(server: SimulatorServer) -> None:
    with begin(server, horizon=3) as client:  # whose preparation takes ten minutes
        client.reset()
        wait_until(lambda: bool(server.service.pool._preparing), timeout_s=30)
    began = time.monotonic()
    server.service.pool.close()
    assert time.monotonic() - began < 10


def test_a_killed_server_leaves_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    code = (
        "import time; from robowire.client.simulator_client import SimulatorClient; "
        "from robowire.registry import Entry; from robowire.testing import running_simulator_server; "
        "from robowire.serving.simulator.server import SimulatorServerOptions\n"
        "def begin():\n"
        "    client = SimulatorClient(*server.address[:2]); client.select_simulator('preparing')\n"
        "    client.load_task('reach', camera_names=['front', 'side']); return client\n"
        "simulators = {'preparing': Entry('preparing_simulator:make_simulator')}\n"
        "options = SimulatorServerOptions(fork_sessions=True)\n"
        "with running_simulator_server(options, simulators=simulators) as server:\n"
        "    first, templates = begin(), server.service.pool._templates\n"
        "    while not templates.get('preparing'): time.sleep(0.05)\n"
        "    client = begin()\n"
        "    print(*map(int, client.reset()['prepared']), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
