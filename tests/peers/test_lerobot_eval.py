"""LeRobot 0.4.4's own ``lerobot-eval`` with the plug-ins of ``integrations/``.

Its environment has torch, so these tests run where they are asked for:

    ./setup_peers.sh lerobot
    .venv/bin/python -m pytest -m lerobot04 tests/peers
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peer_process
import pytest

from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server, running_simulator_server

pytestmark = pytest.mark.lerobot04

ROOT = peer_process.ROOT


def test_lerobot_eval_runs_a_policy_of_ours_in_a_simulator_of_ours(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    folders = [
        str(ROOT / "integrations" / name) for name in ("lerobot_policy_robowire", "lerobot_env_robowire")
    ]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(plugins), *folders], check=True)
    spec = PolicySpec(
        policy="constant",
        chunk_size=4,
        n_action_steps=2,
        state_dim=2,
        action_dim=3,
        ctrl_space="ee",
        ctrl_type="delta",
    )
    with running_server(ConstantPolicy(spec)) as policy, running_simulator_server() as simulator:
        (overall,) = peer_process.run_peer(
            "lerobot",
            "lerobot_eval.py",
            f"{plugins}:{ROOT}",
            tmp_path / "output",
            "--policy.type=robowire",
            f"--policy.address=127.0.0.1:{policy.address[1]}",
            # LeRobot 0.4 imports plug-ins of policies by itself, but none of environments.
            "--env.discover_packages_path=lerobot_env_robowire",
            "--env.type=robowire",
            f"--env.address=127.0.0.1:{simulator.address[1]}",
            "--env.simulator=fake",
            "--env.task=reach",
            "--env.episode_length=8",
            "--eval.n_episodes=2",
            "--eval.batch_size=2",
            timeout_s=300,
        )[-1:]
        assert overall["n_episodes"] == 2
        assert policy.metrics.snapshot()["operations"]["infer"]["count"] >= 4
        assert simulator.metrics.snapshot()["errors"] == {}
    assert len(overall["video_paths"]) == 2
