"""Folders of several policies that LeRobot 0.4.4 wrote, served by ``--policy lerobot`` from its environment.

Its environment has torch, so these tests run where they are asked for:

    ./setup_policy.sh lerobot
    .venv/bin/python -m pytest -m lerobot04 tests/peers/test_lerobot_policies.py
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_process import run_peer

from policies.registry import POLICIES
from robowire import PolicyClient
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.errors import BackendError, ConfigurationError
from robowire.meta import MetaObs
from robowire.serving.policy.process_policy import ProcessPolicy

pytestmark = pytest.mark.lerobot04


def folder(kind: str, tmp_path: Path) -> tuple[Path, Any, np.ndarray]:
    """Return a folder of random weights, observations of an episode, and the actions that LeRobot selects."""
    files = [tmp_path / kind, tmp_path / "in.npz", tmp_path / "out.npy"]
    run_peer("lerobot", "lerobot_policies.py", kind, *files, timeout_s=240)
    return files[0], np.load(files[1]), np.load(files[2])


def flags(model: Path) -> PolicyFlags:
    return PolicyFlags(
        host="127.0.0.1", port=0, policy="lerobot", model_name_or_path=str(model), device="cpu"
    )


@pytest.mark.parametrize("kind", ["act", "diffusion", "vqbet", "tdmpc"])
def test_each_step_is_what_lerobot_selects(kind: str, tmp_path: Path) -> None:
    model, given, wanted = folder(kind, tmp_path)
    with make_policy_server(flags(model), POLICIES) as server, PolicyClient(*server.address[:2]) as client:
        assert client.spec.policy == f"lerobot {kind}"
        rows = enumerate(zip(given["state"], given["images"]))
        actions = [
            client.infer(MetaObs(state=state, image=image, raw_lang="do it", timestep=step))[0]
            for step, (state, image) in rows
        ]
    np.testing.assert_allclose(np.stack(actions), wanted, rtol=0, atol=1e-6)
    assert np.ptp(wanted, axis=0).max() > 1e-2  # it sees the observations


def test_a_kill_costs_one_request(tmp_path: Path) -> None:
    model, given, _ = folder("act", tmp_path)
    observation = MetaObs(state=given["state"][0], image=given["images"][0], timestep=0)
    with make_policy_server(flags(model), POLICIES) as server, PolicyClient(*server.address[:2]) as client:
        assert isinstance(server.service.policy, ProcessPolicy)
        first = client.infer(observation)
        pid = server.service.policy.pid
        with ThreadPoolExecutor() as pool:
            os.kill(pid, signal.SIGSTOP)  # so that the request is in hand
            lost = pool.submit(client.infer, observation)
            while not server.service.requests_in_hand:
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(BackendError, match="was killed by SIGKILL during an inference"):
                lost.result()
        assert np.array_equal(client.infer(observation), first)  # waits for the new process


def test_a_folder_with_foreign_code_is_refused(tmp_path: Path) -> None:
    model, _, _ = folder("act", tmp_path)
    file = model / "policy_preprocessor.json"
    file.write_text(
        file.read_text().replace('"registry_name": "device_processor"', '"class": "antigravity.X"')
    )
    with pytest.raises(
        ConfigurationError, match=r"has a step that is not lerobot's own, which is not run: 'antig"
    ):
        make_policy_server(flags(model), POLICIES)
