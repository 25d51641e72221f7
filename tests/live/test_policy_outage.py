"""A policy server that is killed in the middle of an episode, and started again, costs no episode."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mortal_policy import DIES_AT, MortalPolicy
from server_process import ROOT, ServerProcess, environment

from robowire import AsyncPolicyClient, PolicyClient, SimulatorClient
from robowire.client.async_controller import AsyncOptions
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate
from robowire.rollout.real_clock import RealClock
from robowire.rollout.virtual_clock import AsyncClock, Latency, VirtualClock
from robowire.serving.policy.server import PolicyServerOptions
from robowire.serving.simulator.server import SimulatorServer
from robowire.testing import running_server, running_simulator_server

PATIENCE_S = 30.0
HERE = Path(__file__).resolve().parent
CLOCKS = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")

# In the second of three episodes; each has 13 inferences of 4 actions, or 50 of one.
KILLED_AT = 17


@pytest.fixture(scope="module")
def simulators() -> Iterator[SimulatorServer]:
    with running_simulator_server() as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reborn:
    """A server that kills itself, and another that takes its place; ``killed`` once it has."""

    def __init__(self, tmp_path: Path, *flags: str, dies_at: int = KILLED_AT) -> None:
        flags = ("--policy", "mortal_policy:make_policy", "--host", "127.0.0.1", *flags)
        paths = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        self._first = ServerProcess(tmp_path / "first.log", *flags, environ={**paths, DIES_AT: str(dies_at)})
        self.port = self._first.address[1]
        self.killed = threading.Event()
        self._second: ServerProcess | None = None

        def replace() -> None:
            self._first.process.wait()
            self.killed.set()
            self._second = ServerProcess(
                tmp_path / "second.log", *flags, "--port", str(self.port), environ=paths
            )

        self._thread = threading.Thread(target=replace)
        self._thread.start()

    def __enter__(self) -> Reborn:
        return self

    def __exit__(self, *_: object) -> None:
        self._first.process.kill()
        self._thread.join()
        for server in (self._first, self._second):
            if server is not None:
                server.__exit__(None, None, None)


def run(
    folder: Path, simulators: SimulatorServer, port: int, clock: AsyncClock | None = None
) -> dict[str, Any]:
    def open_async(rules: AsyncOptions, added_s: Callable[[int], float]) -> AsyncPolicyClient:
        return AsyncPolicyClient("127.0.0.1", port, rules, patience_s=PATIENCE_S, added_latency_s=added_s)

    return evaluate(
        EvaluateOptions(
            folder,
            simulator="fake",
            task="reach",
            num_episodes=3,
            num_envs=1,
            record_video="off",
            asynchronous=clock,
        ),
        open_policy=lambda: PolicyClient("127.0.0.1", port, retries=0),
        open_simulator=lambda: SimulatorClient(*simulators.address[:2]),
        open_async_policy=open_async,
        policy_wait_s=PATIENCE_S,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return [{name: row[name] for name in row if name not in CLOCKS} for row in map(json.loads, lines)]


@pytest.mark.parametrize("clock", [None, VirtualClock(latency=Latency.parse("120"))], ids=["sync", "virtual"])
@pytest.mark.parametrize("temporal_agg", [False, True], ids=["pure", "temporal_agg"])
def test_the_episodes_are_those_of_a_run_that_nothing_happened_to(
    tmp_path: Path, simulators: SimulatorServer, clock: AsyncClock | None, temporal_agg: bool
) -> None:
    with running_server(MortalPolicy(None), PolicyServerOptions(temporal_agg=temporal_agg)) as whole:
        run(tmp_path / "whole", simulators, whole.address[1], clock)
    with Reborn(tmp_path, *["--temporal_agg"] * temporal_agg) as server:
        run(tmp_path / "killed", simulators, server.port, clock)
        assert server.killed.is_set()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_in_real_time_the_episode_waits_and_ends(
    tmp_path: Path, simulators: SimulatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Reborn(tmp_path) as server, caplog.at_level(logging.WARNING):
        summary = run(
            tmp_path / "killed",
            simulators,
            server.port,
            RealClock(AsyncOptions(on_empty_queue="hold"), fps=100),
        )
        assert server.killed.is_set()
    assert (summary["episodes"], summary["errors"]) == (3, 0)
    # Had the robot held on for the second or two, an episode of 50 steps would have been over.
    assert max(row["starved_steps"] for row in rows(tmp_path / "killed")) < 25
    told = [record.getMessage() for record in caplog.records if record.name.endswith("real_clock")]
    assert [text.split(" the episode")[0].removesuffix(":") for text in told] == [
        "the policy server is away",
        "the policy server is back",
    ]


def test_the_program_says_that_it_waits_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    with Reborn(tmp_path) as server:
        program = [sys.executable, "client.py", "evaluate", "--address", f"127.0.0.1:{server.port}"]
        program += ["--simulator", "robowire.testing.fake_simulator:make_simulator", "--task", "reach"]
        program += ["--num_episodes", "3", "--num_envs", "1", "--record_video", "off"]
        ended = subprocess.run(
            [*program, "--output_dir", str(tmp_path / "killed"), "--policy_wait_s", "30"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=80,
            check=False,
        )
        assert server.killed.is_set()
    assert ended.returncode == 0, ended.stderr
    assert " WARNING waiting up to 30 s for the policy server: " in ended.stderr
    assert " WARNING the policy server is back after " in ended.stderr
    assert "episodes     3 of 3" in ended.stdout
