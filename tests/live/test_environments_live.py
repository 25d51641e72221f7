"""The Gymnasium and driving families through the programs that people start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from client_process import finish, start_client

from policies.registry import POLICIES
from robowire.interfaces import PolicyOptions
from robowire.registry import load
from robowire.testing import running_server


@pytest.mark.parametrize(
    ("simulator", "action_dim", "found"),
    [
        (["gymnasium:FetchReach-v4"], 4, ("gymnasium", "FetchReach-v4", "gymnasium-robotics")),
        (["highway", "--task", "merge-v1"], 3, ("highway", "merge-v1", "highway-env")),
    ],
    ids=["gymnasium", "highway"],
)
def test_a_random_policy_is_evaluated(
    tmp_path: Path, simulator: list[str], action_dim: int, found: tuple[str, str, str]
) -> None:
    policy = load("policy", "random", POLICIES)(PolicyOptions(extra={"action_dim": action_dim}))
    command = ["evaluate", "--simulator", *simulator, "--num_episodes", "1"]
    command += ["--max_episode_steps", "6", "--output_dir", str(tmp_path)]
    with running_server(policy) as server:
        finish(start_client(*command, "--port", str(server.address[1])), timeout_s=240)  # takes seconds
    told = json.loads((tmp_path / "summary.json").read_text())
    family, task, package = found
    assert (told["simulator"]["simulator"], told["simulator"]["task"]) == (family, task)
    assert (told["episodes"], told["errors"]) == (1, 0)
    assert package in told["simulator"]["process"]["versions"]
    (episode,) = map(json.loads, (tmp_path / "episodes.jsonl").read_text().splitlines())
    assert 1 <= episode["steps"] <= 6
