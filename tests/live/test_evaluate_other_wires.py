"""``client.py evaluate --address SCHEME://HOST:PORT``: the same episodes over each wire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from test_policy_outage import rows

import client as client_program
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.serving.simulator.server import SimulatorServer
from robowire.specs import PolicySpec
from robowire.testing import running_simulator_server

FAKE = "fake"

STATE, ACTION = "position(2)", "dposition(2) gripper(1)"

# What a server does not say of itself, where its wire has no word for it.
TOLD = {
    "vla-eval": {"action_layout": ACTION},
    "gr00t": {"state_layout": STATE, "action_layout": ACTION},
    "lerobot": {
        **{"state_layout": STATE, "state_dim": 2, "image_height": 64, "image_width": 64, "chunk_size": 4},
        **{"action_dim": 3, "camera_names": "front", "ctrl_space": "ee", "ctrl_type": "delta"},
    },
}
WIRES = {scheme: scheme for scheme in ("openpi", "gr00t", "lerobot")}
WIRES = {"robowire": "tcp", **WIRES, "vla-eval": "vla_eval"}


class Watched:
    """Answers what depends on every bit of an observation, and remembers what it was asked."""

    spec = PolicySpec(
        **{"policy": "act", "camera_names": ("front",), "image_height": 64, "image_width": 64},
        **{"state_dim": 2, "state_layout": STATE, "action_dim": 3, "action_layout": ACTION},
        **{"ctrl_space": "ee", "ctrl_type": "delta", "chunk_size": 4, "n_action_steps": 3},
    )

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        chunks = np.zeros((len(observations), 4, 3), np.float32)
        for chunk, observation in zip(chunks, observations, strict=True):
            assert observation.image is not None
            assert observation.state is not None
            self.seen.append(observation.state.tobytes() + observation.image.tobytes())
            chunk[:, :2] = 0.3 - np.float32(0.1) * observation.state + np.linspace(0, 0.1, 8).reshape(4, 2)
            chunk[:, 2] = observation.image.mean() > 100
        return chunks


@pytest.fixture(scope="module")
def policy() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def server(policy: Watched) -> Iterator[PolicyServer]:
    with running_frontends(policy, openpi_port=0, gr00t_port=0, vla_eval_port=0, lerobot_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def simulators() -> Iterator[SimulatorServer]:
    with running_simulator_server() as server:
        yield server


def evaluate(scheme: str, server: PolicyServer, simulators: SimulatorServer, folder: Path) -> None:
    name = WIRES[scheme]
    port = server.address[1] if name == "tcp" else port_of(server, name)
    flags = ["--address", f"{scheme}://127.0.0.1:{port}", "--output_dir", str(folder)]
    for option, value in TOLD.get(scheme, {}).items():
        flags += [f"--policy_options.{option}", str(value)]
    flags += ["--simulator_address", "{}:{}".format(*simulators.address)]
    flags += ["--simulator", FAKE, "--task", "reach"]
    # vla-eval's wire has one action for each observation; its server executes as many of a chunk as we do.
    flags += ["--n_action_steps", "1" if scheme == "vla-eval" else "3"]
    flags += ["--num_episodes", "2", "--num_envs", "1", "--record_video", "off", "--report", "false"]
    assert client_program.main(["evaluate", *flags]) == 0


def test_episodes_are_the_same_over_every_wire(
    policy: Watched, server: PolicyServer, simulators: SimulatorServer, tmp_path: Path
) -> None:
    """What the policy sees depends on every action before it, to the last bit."""
    seen = {}
    for scheme in WIRES:
        policy.seen = []
        evaluate(scheme, server, simulators, tmp_path / scheme)
        seen[scheme] = policy.seen
    assert len(set(seen["robowire"])) > 4
    for scheme in WIRES:
        assert len(seen[scheme]) == len(seen["robowire"]), scheme
        assert seen[scheme] == seen["robowire"], scheme
        told = [{**row, "inferences": None} for row in rows(tmp_path / scheme)]
        assert told == [{**row, "inferences": None} for row in rows(tmp_path / "robowire")], scheme
        summary = json.loads((tmp_path / scheme / "summary.json").read_text())
        if scheme != "robowire":  # which is asked by our own client
            assert summary["policy"]["device"].startswith(f"{scheme} at 127.0.0.1:")
