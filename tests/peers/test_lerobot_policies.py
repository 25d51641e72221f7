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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_process import run_peer
from saved_arrays import load_arrays

from policies.registry import POLICIES
from robowire import PolicyClient
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.errors import BackendError, ConfigurationError, SpecMismatch
from robowire.meta import MetaObs
from robowire.serving.policy.process_policy import ProcessPolicy

pytestmark = pytest.mark.lerobot04


def folder(kind: str, tmp_path: Path) -> tuple[Path, Any, np.ndarray]:
    """Return a folder of random weights, observations of an episode, and the actions that LeRobot selects."""
    files = [tmp_path / kind, tmp_path / "in.npz", tmp_path / "out.npy"]
    run_peer("lerobot", "lerobot_policies.py", kind, *files, timeout_s=240)
    return files[0], load_arrays(files[1]), np.load(files[2])


def flags(model: Path, **options: object) -> PolicyFlags:
    return PolicyFlags(
        **{"host": "127.0.0.1", "port": 0, "policy": "lerobot"},  # type: ignore[arg-type]
        model_name_or_path=str(model),
        device="cpu",
        policy_options=options,
    )


@pytest.mark.parametrize("kind", ["act", "act_ensemble", "diffusion", "vqbet", "tdmpc", "xvla"])
def test_each_step_is_what_lerobot_selects(kind: str, tmp_path: Path) -> None:
    model, given, wanted = folder(kind, tmp_path)
    with make_policy_server(flags(model), POLICIES) as server, PolicyClient(*server.address[:2]) as client:
        assert client.spec.policy == f"lerobot {kind.partition('_')[0]}"
        rows = enumerate(zip(given["state"], given["images"]))
        actions = [
            client.infer(MetaObs(state=state, image=image, raw_lang="do it", timestep=step))[0]
            for step, (state, image) in rows
        ]
    np.testing.assert_allclose(np.stack(actions), wanted, rtol=0, atol=1e-6)
    assert np.ptp(wanted, axis=0).max() > 1e-2  # it sees the observations


def test_smolvla_answers_as_lerobot_selects_and_its_real_time_chunking_as_lerobots(tmp_path: Path) -> None:
    model, given, wanted = folder("smolvla", tmp_path)
    (tmp_path / "smolvla_vlm").rename(tmp_path / "moved")  # another folder than the one it was trained with
    settings = {"vlm_model_name": str(tmp_path / "moved"), "rtc_execution_horizon": 5}
    server = make_policy_server(flags(model, **settings), POLICIES)
    with server, PolicyClient(*server.address[:2]) as client:
        info = client.get_info()
        assert (info["rtc"], info["rtc_max_delay_steps"]) == ("guided", 5)
        assert client.spec.camera_names == ("front_left", "wrist")  # without lerobot's empty camera

        def observe(step: int) -> MetaObs:
            return MetaObs(
                state=given["state"][step], image=given["images"][step], raw_lang="do it", timestep=step
            )

        actions = [client.infer(observe(step))[0] for step in range(len(wanted))]
        np.testing.assert_allclose(np.stack(actions), wanted, rtol=0, atol=1e-5)
        plain = client.infer(observe(2))
        cases = zip(*(given[name] for name in ("rtc_delays", "rtc_left", "rtc_left_raw", "rtc_chunks")))
        for delay, left, raw, chunk in cases:
            for prefix in ({"prefix": left[:5]}, {"prefix_raw": raw}, {"prefix": -left, "prefix_raw": raw}):
                found = client.infer(replace(observe(2), delay=int(delay), **prefix))
                np.testing.assert_allclose(found, chunk, rtol=0, atol=1e-5)
            assert np.abs(chunk - plain).max() > 1e-2
        with pytest.raises(SpecMismatch, match="delay is 6, expected 0 to 5"):
            client.infer(replace(observe(2), delay=6, prefix=given["rtc_left"][0]))
        assert np.array_equal(client.infer(observe(2)), plain)


def test_options_that_a_policy_does_not_have_are_refused(tmp_path: Path) -> None:
    model, _, _ = folder("act", tmp_path)
    with pytest.raises(ConfigurationError, match="rtc_execution_horizon is given, but act of lerobot has no"):
        make_policy_server(flags(model, rtc_execution_horizon=4), POLICIES)
    with pytest.raises(ConfigurationError, match=r"vlm_model_name is given, but act in .* has no such model"):
        make_policy_server(flags(model, vlm_model_name="/nowhere"), POLICIES)


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
