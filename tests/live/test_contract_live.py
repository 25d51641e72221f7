"""Policies that fit a body by adapters only, over real sockets: refused, bridged, and the same episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_process import finish, start_client

from robowire.client.async_controller import AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.bridged_policy_client import BridgedPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConfigurationError, SpecMismatch
from robowire.meta import MetaObs
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate as run_episodes
from robowire.serving.policy.server import PolicyServerOptions
from robowire.specs import Embodiment, PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, running_server, running_simulator_server

# The shipped fake, with what a robot declares of itself.
NAMED = """
from dataclasses import replace
from robowire.testing.fake_simulator import FakeSimulator

class NamedSimulator(FakeSimulator):
    def load_task(self, task_name, options):
        self._spec = replace(
            super().load_task(task_name, options),
            state_names=("x", "y"),
            state_units=("m", "m"),
            action_names=("dx", "dy", "gripper"),
            action_units=("m", "m", "closed0_open1"),
            action_signs=(1, 1, 1),
        )
        return self._spec
"""
CLOCKS = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")
BODY = Embodiment(
    state_names=("a", "b"),
    state_units=("rad", "rad"),
    action_names=("a", "b"),
    action_units=("rad", "rad"),
    ctrl_type="absolute",
    control_hz=20,
)


class TurnedPolicy(ConstantPolicy):
    """Commands millimetres against the axes of the body, the gripper first."""

    def infer(self, observations: Any) -> np.ndarray:
        actions = super().infer(observations)
        actions[..., 0], actions[..., 1:] = 0.0, -500.0
        return actions


class Reversed(EchoPolicy):
    """Takes and answers (b, a) in degrees, at half of the body's rate."""

    def __init__(self) -> None:
        super().__init__(state_dim=2)
        names, units = ("b", "a"), ("deg", "deg")
        self.spec = PolicySpec(
            policy="reversed",
            chunk_size=4,
            state_names=names,
            action_names=names,
            state_units=units,
            action_units=units,
            action_hold=("last", "last"),
            ctrl_type="absolute",
            ctrl_space="joint",
            control_hz=10,
        )


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return [{name: row[name] for name in row if name not in CLOCKS} for row in map(json.loads, lines)]


def test_evaluate_refuses_by_name_and_bridges_what_is_named(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "named_body.py").write_text(NAMED)

    def evaluate(policy: Any, folder: str, *flags: str, code: int = 0) -> str:
        with running_server(policy) as server:
            command = ["evaluate", "--address", f"localhost:{server.address[1]}", "--num_episodes", "3"]
            command += ["--simulator", "named_body:NamedSimulator", "--task", "reach", "--num_envs", "1"]
            command += ["--record_video", "off", "--report", "false", "--output_dir", str(tmp_path / folder)]
            return finish(start_client(*command, *flags, modules=modules), code=code)[1]

    plain = PolicySpec(policy="constant", chunk_size=4, action_dim=3, ctrl_space="ee", ctrl_type="delta")
    turned = PolicySpec(
        policy="turned",
        chunk_size=4,
        action_names=("gripper", "dx", "dy"),
        action_units=("open0_closed1", "mm", "mm"),
        action_signs=(1, -1, -1),
        ctrl_space="ee",
        ctrl_type="delta",
    )
    turned = PolicySpec.from_wire({**turned.to_wire(), "action_dim": 3})
    refused = evaluate(TurnedPolicy(turned), "refused", "--adapter", "units,reorder", code=2)
    assert (
        "policy 'turned' does not fit task 'reach' of 'fake': action_units: gripper: the policy has "
        "open0_closed1, the simulator closed0_open1 (the adapter 'signs' bridges it); action_signs: dx, dy: "
        "the policy has -1, the simulator 1 (the adapter 'signs' bridges it)"
    ) in refused
    assert not (tmp_path / "refused").exists() or not list((tmp_path / "refused").iterdir())

    evaluate(TurnedPolicy(turned), "turned", "--adapter", "units,reorder,signs")
    with running_server(ConstantPolicy(plain)) as server, running_simulator_server() as simulators:
        run_episodes(
            EvaluateOptions(
                tmp_path / "plain",
                simulator="fake",
                task="reach",
                num_episodes=3,
                num_envs=1,
                record_video="off",
            ),
            open_policy=lambda: PolicyClient("127.0.0.1", server.address[1], retries=0),
            open_simulator=lambda: SimulatorClient(*simulators.address[:2]),
        )
    assert rows(tmp_path / "turned") == rows(tmp_path / "plain")


def test_a_client_of_a_body_sees_its_own_numbers() -> None:
    with running_server(Reversed()) as server:
        plain = PolicyClient("127.0.0.1", server.address[1])
        with pytest.raises(SpecMismatch) as raised:
            BridgedPolicyClient(plain, BODY, adapters=["reorder"]).connect()
        assert "state_units: b, a: the policy has deg, the body rad (the adapter 'units'" in str(raised.value)
        assert "control_hz: the policy has 10.0, the body 20" in str(raised.value).replace("10,", "10.0,")

        client = BridgedPolicyClient(plain, BODY, adapters=["reorder", "units", "rate"])
        client.connect()
        info = client.get_info()
        assert (info["chunk_size"], info["adapters"]) == (8, ["reorder", "units", "rate"])
        state = np.radians(np.array([30, 60], np.float32))
        chunk = client.infer_chunk(MetaObs(state=state))
        # One degree more at each step of the policy, which is two of the body.
        more = np.array([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])[:, np.newaxis]
        np.testing.assert_allclose(np.degrees(chunk.actions) - more, np.tile([30, 60], (8, 1)), rtol=1e-5)
        client.disconnect()


def test_a_robot_of_another_body_does_not_start() -> None:
    with running_server(Reversed()) as server:
        port, options = server.address[1], AsyncOptions(chunk_size_threshold=0.5)
        with pytest.raises(SpecMismatch, match="the adapter 'reorder' bridges it"):
            AsyncPolicyClient("127.0.0.1", port, options, body=BODY).start()
        adapters = ("reorder", "units", "rate")
        with AsyncPolicyClient("127.0.0.1", port, options, body=BODY, adapters=adapters) as client:
            action = client.step(MetaObs(state=np.radians(np.array([30, 60], np.float32))))
        assert action.action is not None
        np.testing.assert_allclose(np.degrees(action.action), [30, 60], rtol=1e-5)


def test_averages_of_the_server_are_given_no_other_rate() -> None:
    with running_server(Reversed(), PolicyServerOptions(temporal_agg=True)) as server:
        client = BridgedPolicyClient(PolicyClient("127.0.0.1", server.address[1]), BODY, adapters=["rate"])
        with pytest.raises(SpecMismatch):  # the names first
            client.connect()
        adapters = ["rate", "units", "reorder"]
        client = BridgedPolicyClient(PolicyClient("127.0.0.1", server.address[1]), BODY, adapters=adapters)
        with pytest.raises(ConfigurationError, match="which the adapter 'rate' cannot time"):
            client.connect()
