"""The queries of the dashboard for Grafana, asked of a Prometheus that scrapes servers at work."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from server_process import ROOT

from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import SpecMismatch
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.options import FleetOptions
from robowire.meta import MetaObs
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.tcp import TcpOptions
from robowire.testing import EchoPolicy, running_server, running_simulator_server

PROMETHEUS = shutil.which("prometheus")
DASHBOARD = json.loads((ROOT / "docs" / "operations" / "grafana.json").read_text())
QUERIES = [
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
]
PATIENCE_S = 30.0

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left_behind"),
    pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus: sudo apt-get install -y prometheus"),
]


class Prometheus:
    """A Prometheus on a free port."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        """Return what its HTTP API answers; ``None`` where it does not listen yet."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        with suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=10) as reply:
            return json.loads(reply.read() or b"null") if "api" in path else reply.status

    def numbers(self, expression: str) -> list[float]:
        """Return the values of an instant query that are numbers."""
        asked = expression.replace("$__rate_interval", "10s").replace("$instance", ".*")
        answer = self.ask("/api/v1/query", query=asked)
        assert answer["status"] == "success", answer
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if not math.isnan(value)]


@contextmanager
def running_prometheus(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    """Run one that scrapes the targets as the job that the documentation names, five times a second."""
    jobs = [{"job_name": "robowire", "static_configs": [{"targets": targets}]}]
    settings = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert PROMETHEUS is not None
    command = [
        *(PROMETHEUS, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"),
        *("--storage.tsdb.path=data", "--log.level=warn"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(port)
        wait_until(lambda: prometheus.ask("/-/ready") == 200)
        yield prometheus
    finally:
        process.terminate()
        process.wait(10)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def running_fleet() -> Iterator[FleetServer]:
    serve = ["simulator", "--simulators", "robowire.testing.fake_simulator:make_simulator"]
    command = [sys.executable, str(ROOT / "server.py"), *serve, "--host", "127.0.0.1", "--log_level", "error"]
    with FleetServer(
        FleetOptions(num_services=1), TcpOptions(host="127.0.0.1", port=0, drain_s=2.0), command
    ) as fleet:
        yield fleet


def test_no_panel_is_empty_where_servers_are_at_work(tmp_path: Path) -> None:
    simulator_server = running_simulator_server(SimulatorServerOptions(drain_s=2, warm=1))
    policy_server = running_server(EchoPolicy(state_dim=3))
    with policy_server as policy, running_fleet() as fleet, simulator_server as simulators:
        servers = [policy.address, simulators.address, fleet.address]
        targets = [f"127.0.0.1:{address[1]}" for address in servers]
        with PolicyClient(*policy.address) as robot, SimulatorClient(*simulators.address) as client:
            client.select_simulator("fake")
            with running_prometheus(tmp_path, targets) as prometheus:
                # The last one is what the dashboard's list of servers is made of.
                empty = [*QUERIES, ("instance", "robowire_build_info")]
                deadline = time.monotonic() + PATIENCE_S
                while empty:
                    work(robot, client)
                    empty = [(title, query) for title, query in empty if not prometheus.numbers(query)]
                    assert time.monotonic() < deadline, empty


def work(robot: PolicyClient, client: SimulatorClient) -> None:
    """Do what each panel shows: inferences, an error, an episode."""
    for _ in range(5):
        robot.infer(MetaObs(state=np.zeros(3, np.float32)))
    with suppress(SpecMismatch):
        robot.infer(MetaObs(state=np.zeros(7, np.float32)))
    client.load_task("reach")
    client.reset(seed=1)
    client.step(np.zeros(3))
    client.snapshot()
