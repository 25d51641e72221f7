"""What servers that have worked report to Prometheus, read by Prometheus' own tool."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
from raw_client import RawClient, wait_until

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import BackendError
from robowire.meta import MetaObs
from robowire.serving.simulator.server import SimulatorServerOptions
from robowire.testing import EchoPolicy, running_server, running_simulator_server

PROMTOOL = shutil.which("promtool")

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left_behind"),
    pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: sudo apt-get install -y prometheus"),
]


def scrape(address: tuple[str, int]) -> dict[str, float]:
    """Ask for the metrics, let promtool check them, and return the samples."""
    with RawClient(address) as client:
        _, _, text = client.say("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").partition("\r\n\r\n")
    assert PROMTOOL is not None
    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in samples)}


def test_promtool_accepts_what_a_policy_server_reports_of_every_phase() -> None:
    observation = MetaObs(state=np.array([1, 2, 3], np.float32))
    with running_server(EchoPolicy(state_dim=3, chunk_size=4)) as server, RawClient(server.address) as robot:
        for _ in range(3):
            robot.ask(observation)
        robot.ask({"method": "ping"})
        robot.ask({"method": "x" * 3000})
        robot.ask(MetaObs(state=np.zeros(7, np.float32)))
        wait_until(lambda: server.metrics.snapshot()["requests"] == 6)
        samples = scrape(server.address)
    infer = 'frontend="tcp",method="infer"'
    assert samples[f'robowire_request_seconds_count{{{infer},outcome="ok"}}'] == 3
    assert samples[f'robowire_request_seconds_count{{{infer},outcome="spec_mismatch"}}'] == 1
    unknown = 'frontend="tcp",method="unknown",outcome="unknown_method"'
    assert samples[f"robowire_request_seconds_count{{{unknown}}}"] == 1
    for phase, count in dict(receive=4, decode=3, wait=3, infer=3, encode=3, send=4).items():
        assert samples[f'robowire_request_phase_seconds_count{{{infer},phase="{phase}"}}'] == count
    whole = samples[f'robowire_request_seconds_sum{{{infer},outcome="ok"}}']
    parts = (
        samples[f'robowire_request_phase_seconds_sum{{{infer},phase="{phase}"}}']
        for phase in ("decode", "wait", "infer", "encode")
    )
    assert sum(parts) == pytest.approx(whole, rel=1e-6)
    assert samples["robowire_inference_seconds_count"] == samples["robowire_queue_wait_seconds_count"] == 3
    assert samples['robowire_sessions_open{frontend="tcp"}'] == 1
    assert samples["robowire_queue_depth"] == samples["robowire_requests_in_progress"] == 0


def test_promtool_accepts_what_a_simulator_server_reports_of_processes_and_snapshots() -> None:
    options = SimulatorServerOptions(drain_s=2)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        client.select_simulator("fake")
        client.load_task("reach")
        client.reset(seed=1)
        client.snapshot()
        before = scrape(server.address)
        os.kill(client.get_info()["process"]["pid"], signal.SIGKILL)
        with pytest.raises(BackendError, match="was killed by SIGKILL"):
            client.step(np.zeros(3))
        client.load_task("reach")
        after = scrape(server.address)
    assert before["robowire_simulators_started_total"] == 1
    assert before["robowire_simulator_sessions"] == before["robowire_snapshots"] == 1
    assert before["robowire_snapshot_bytes"] > 100
    assert before["robowire_simulator_memory_bytes"] > 5e6
    assert after["robowire_simulators_started_total"] == 2
    assert after['robowire_simulators_ended_total{reason="died"}'] == 1
    step = 'frontend="tcp",method="step",outcome="backend_error"'
    assert after[f"robowire_request_seconds_count{{{step}}}"] == 1
    reset = 'frontend="tcp",method="reset",phase="execute"'
    assert after[f"robowire_request_phase_seconds_count{{{reset}}}"] == 1
