"""LIBERO through the programs that people start."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from client_process import finish, start_client
from server_process import ROOT, run_server

from benchmark.registry import SIMULATORS
from policies.registry import POLICIES
from robowire.cli.simulator import SimulatorFlags, make_simulator_server
from robowire.interfaces import PolicyOptions
from robowire.registry import load
from robowire.testing import running_server


def test_a_policy_is_evaluated_on_a_task_named_by_suite_and_number(
    libero_assets: Path, tmp_path: Path
) -> None:
    policy = load("policy", "random", POLICIES)(PolicyOptions())
    command = "evaluate --simulator libero --task libero_spatial/0 --num_episodes 1 --max_episode_steps 4"
    with running_server(policy) as server:
        process = start_client(
            *command.split(), "--output_dir", str(tmp_path), "--port", str(server.address[1])
        )
        finish(process, timeout_s=240)  # takes seconds on a quiet machine
    told = json.loads((tmp_path / "summary.json").read_text())
    assert (told["episodes"], told["errors"]) == (1, 0)
    assert told["simulator"]["task"].startswith("pick_up_the_black_bowl_between")
    assert told["simulator"]["process"]["versions"].keys() >= {"mujoco", "robosuite", "numpy"}
    (episode,) = map(json.loads, (tmp_path / "episodes.jsonl").read_text().splitlines())
    assert (episode["steps"], episode["init_state"]) == (4, 0)


def test_the_folder_of_the_assets_reaches_the_simulators_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOWIRE_LIBERO_ASSETS", "of the environment")
    (tmp_path / "scenes").mkdir()
    flags = SimulatorFlags(host="127.0.0.1", port=0, libero_assets=str(tmp_path))
    with make_simulator_server(flags, SIMULATORS):
        assert os.environ["ROBOWIRE_LIBERO_ASSETS"] == str(tmp_path)


def test_a_folder_without_scenes_is_refused_when_the_server_starts(tmp_path: Path) -> None:
    run = run_server("simulator", "--port", "0", "--libero_assets", str(tmp_path))
    assert (run.returncode, run.stderr) == (
        2,
        f"server.py simulator: libero_assets is {str(tmp_path)!r}, expected the folder with LIBERO's scenes "
        "and textures: libero/libero/assets in its repository\n",
    )


def test_an_unknown_family_is_refused_in_one_line() -> None:
    run = subprocess.run(
        ["./setup_simulator.sh", "libreo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (
        2,
        "usage: ./setup_simulator.sh aloha|libero|gymnasium|driving|ray|all [ENVIRONMENT]\n",
    )
