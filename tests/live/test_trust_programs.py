"""Short forms of ``perf/fuzz.py``, ``perf/chaos.py`` and ``perf/soak.py``, in every run of the tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from perf.fuzz import TARGETS
from robowire.frontends.policy_frontends import POLICY_FRONTENDS
from robowire.frontends.simulator_frontends import SIMULATOR_FRONTENDS

ROOT = Path(__file__).resolve().parents[2]


def run(program: str, folder: Path, *words: str) -> str:
    """Return the line of figures of a program that must find nothing."""
    command = [sys.executable, "-m", f"perf.{program}", "--seed", "1", "--output_dir", str(folder), *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_mutated_requests_get_typed_errors_and_keep_nobody_waiting(tmp_path: Path) -> None:
    # The libraries of all wires are loaded in these seconds.
    figures = run("fuzz", tmp_path, "--seconds", "12", "--max_growth_mb", "200")
    assert list(tmp_path.iterdir()) == []
    counts = dict(re.findall(r"(\w+) (\d+) inputs 0 failures", figures))
    native = {"codec", "replies", "tcp_policy", "tcp_simulator", "tcp_fleet", "unix_policy", "unix_simulator"}
    assert {*native, *SIMULATOR_FRONTENDS, *POLICY_FRONTENDS} <= {*counts}
    # A call of gRPC, or a connection that libzmq keeps, takes some 50 ms.
    assert all(int(count) >= 1 for count in counts.values()), figures


def test_every_frontend_is_fuzzed() -> None:
    assert {*POLICY_FRONTENDS, *SIMULATOR_FRONTENDS} <= {*TARGETS}


def test_an_evaluation_that_is_disturbed_has_the_episodes_of_one_that_is_not(tmp_path: Path) -> None:
    figures = run("chaos", tmp_path, "--seconds", "1", "--episodes", "6", "--pause_s", "0.3")
    match = re.match(r"chaos: seed 1, \d+ s: 6 episodes in 1 rounds and \d+ runs; (.+?); ", figures)
    assert match, figures
    assert sum(map(int, re.findall(r"\d+", match[1]))) >= 2, figures  # disturbances


def test_mixed_clients_make_nothing_grow(tmp_path: Path) -> None:
    figures = run("soak", tmp_path, "--seconds", "9", "--look_s", "3", "--threads", "4")
    assert re.match(r"soak: seed 1, \d+ s, [2-9] looks: ", figures), figures
    assert "infer p50 " in figures
