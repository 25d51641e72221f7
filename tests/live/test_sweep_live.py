"""``client.py sweep`` as a person runs it: killed in the middle, and started again."""

from __future__ import annotations

import csv
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_process import finish, kill_with_workers, start_client

from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server

ROOT = Path(__file__).resolve().parents[2]
SPEC = PolicySpec(policy="constant", chunk_size=4, action_dim=3, ctrl_space="ee", ctrl_type="delta")

# Tells when it was started and loaded, and takes its time.
SLOW = """
import os, time
from robowire.testing.fake_simulator import FakeSimulator

def tell(what):
    with open(os.environ["SWEEP_TEST_LOG"], "a") as log:
        log.write(what + "\\n")

class SlowSimulator(FakeSimulator):
    def load_task(self, *arguments, **options):
        tell("load")
        return super().load_task(*arguments, **options)

    def step(self, action):
        time.sleep(0.005)
        return super().step(action)
"""


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with running_server(ConstantPolicy(SPEC)) as server:
        yield str(server.address[1])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "slow_simulator.py").write_text(SLOW)
    return tmp_path / "log"


def start(port: str, folder: Path, log: Path, *flags: str) -> subprocess.Popen[str]:
    command = ["sweep", "--address", f"localhost:{port}"]
    command += ["--simulator", "slow_simulator:SlowSimulator", "--task", "reach", "--num_episodes", "5"]
    command += ["--latencies_ms", "0,200", "--aggregate_fn_names", "latest_only", "--fps", "20"]
    command += ["--max_episode_steps", "20", "--output_dir", str(folder), *flags]
    return start_client(*command, modules=log.parent, environ={"SWEEP_TEST_LOG": str(log)})


def run(*arguments: Any, code: int = 0) -> tuple[str, str]:
    return finish(start(*arguments), code=code)


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    clocks = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")
    found = {}
    for path in sorted(folder.glob("points/*/episodes.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        told = [{name: row[name] for name in row if name not in clocks} for row in lines]
        found[path.parent.name] = sorted(told, key=lambda row: row["episode"])
    return found


def test_a_killed_sweep_goes_on_to_the_rows_of_one_that_was_not(port: str, log: Path, tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    run(port, whole, log, "--num_envs", "1")
    assert log.read_text().split() == ["load"]  # once for three points

    process = start(port, parts, log)
    while sum(map(len, rows(parts).values())) < 7:
        assert process.poll() is None
        time.sleep(0.02)
    kill_with_workers(process)
    assert sum(map(len, rows(parts).values())) < 15

    stdout, stderr = run(port, parts, log)
    assert rows(parts) == rows(whole)
    assert "latest_only, 0.5         200" in stdout
    assert "15 of 15 episodes after " in stderr

    told = json.loads((parts / "sweep.json").read_text())
    with (parts / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    names = ["sync", "latest_only_threshold_0.5_latency_0", "latest_only_threshold_0.5_latency_200"]
    assert told["complete"] is True
    assert [point["point"] for point in told["points"]] == [line["point"] for line in table] == names
    assert [int(line["successes"]) for line in table] == [
        sum(row["success"] for row in rows(parts)[name]) for name in names
    ]
    assert (parts / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_points_of_another_sweep_are_not_mixed_in(port: str, log: Path, tmp_path: Path) -> None:
    short = ("--num_episodes", "1", "--latencies_ms", "0")
    run(port, tmp_path / "results", log, *short)
    _, stderr = run(port, tmp_path / "results", log, *short, "--seed", "1", code=2)
    assert stderr.splitlines()[-1] == (
        f"client.py sweep: {tmp_path}/results/points/sync holds episodes of another evaluation: "
        "seed was 0, is 1. Choose another --output_dir, or --overwrite them"
    )


def test_a_missing_matplotlib_is_told_before_anything_runs(port: str, log: Path, tmp_path: Path) -> None:
    package = tmp_path / "matplotlib"
    package.mkdir()
    (package / "__init__.py").write_text("raise ModuleNotFoundError('gone', name='matplotlib')")
    _, stderr = run(port, tmp_path / "results", log, code=2)
    assert stderr == (
        "client.py: command 'sweep' needs 'matplotlib', which is not installed: "
        "pip install 'robowire[plots]'\n"
    )


def test_numbers_are_numbers(port: str, log: Path, tmp_path: Path) -> None:
    _, stderr = run(port, tmp_path / "results", log, "--actions_per_chunk", "all,half", code=2)
    assert stderr == "client.py sweep: actions_per_chunk is 'all,half', expected numbers, or all\n"
