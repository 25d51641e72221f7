"""The GRPO example, started as its documentation says, with a group of three and few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from policies.registry import POLICIES
from robowire.cli.policy import PolicyFlags, make_policy_server
from server import simulator_server_of_environment

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, Path]]:
    """Return what it printed and wrote with one simulator and with two, on servers that are there already."""
    results = {}
    policy_server = make_policy_server(PolicyFlags(host="127.0.0.1", port=0, device="cpu"), POLICIES)
    simulator_server = simulator_server_of_environment(host="127.0.0.1", port=0)
    with policy_server as policies, simulator_server as simulators:
        for num_envs in (1, 2):
            folder = tmp_path_factory.mktemp("grpo")
            command = [sys.executable, "-m", "examples.grpo_lift", "--n", "3", "--horizon", "12"]
            command += ["--num_envs", str(num_envs), "--output_dir", str(folder)]
            for flag, (host, port) in (
                ("--address", policies.address),
                ("--simulator_address", simulators.address),
            ):
                command += [flag, f"{host}:{port}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            results[num_envs] = done.stdout, folder
    return results


def test_a_group_is_the_same_with_one_simulator_and_with_two(groups: dict[int, tuple[str, Path]]) -> None:
    one, two = (np.load(groups[num_envs][1] / "group.npz") for num_envs in (1, 2))
    with one, two:
        assert sorted(one) == ["actions", "advantage", "means", "rewards", "rollout", "states"]
        assert [np.array_equal(one[name], two[name]) for name in one] == [True] * 6


def test_rollouts_differ_by_their_noise_alone(groups: dict[int, tuple[str, Path]]) -> None:
    with np.load(groups[2][1] / "group.npz") as group:
        first = [int(np.flatnonzero(group["rollout"] == number)[0]) for number in range(3)]
        assert all(np.array_equal(group["means"][row], group["means"][first[0]]) for row in first)
        assert len({group["actions"][row].tobytes() for row in first}) == 3
        assert np.array_equal(group["actions"][:, -1], group["means"][:, -1])  # the gripper has none


def test_the_best_is_marked_recorded_and_kept(groups: dict[int, tuple[str, Path]]) -> None:
    said, folder = groups[2]
    (marked,) = (line for line in said.splitlines() if line.endswith("best"))
    with np.load(folder / "best.npz") as best, np.load(folder / "group.npz") as group:
        assert int(marked.split()[0]) == best["number"]
        assert np.argmax(group["advantage"]) == np.flatnonzero(group["rollout"] == best["number"])[0]
        assert np.array_equal(best["actions"], group["actions"][group["rollout"] == best["number"]])
    assert "the best one, executed again, gave the same rewards bit for bit" in said
    assert (folder / "best.mp4").stat().st_size > 1000


def test_a_server_that_is_not_there_is_told() -> None:
    command = [sys.executable, "-m", "examples.grpo_lift", "--address", "127.0.0.1:1", "--simulator_address"]
    done = subprocess.run([*command, "127.0.0.1:1"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "\ngrpo_lift.py: nothing listens on 127.0.0.1:1: is the server running there?\n" in done.stderr
