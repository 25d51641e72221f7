"""LeRobot 0.6.1's own RobotClient, unmodified, on a policy server of this project.

Its environment has torch with CUDA, 5 GB, and Python 3.12 or newer. It is made by hand, and these tests run
where they are asked for:

    python3.12 -m venv .venvs/lerobot06 && .venvs/lerobot06/bin/pip install "lerobot[async]==0.6.1"
    .venv/bin/python -m pytest -m lerobot06 tests/peers
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peer_process
import pytest

from policies.registry import POLICIES
from robowire.client.policy_client import PolicyClient
from robowire.frontends.lerobot.codec import TimedObservation, decode_actions, decode_observation
from robowire.frontends.policy_frontends import PolicyFrontendOptions, make_policy_frontends
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import load_policy
from robowire.serving.policy.server import PolicyServer

pytestmark = pytest.mark.lerobot06

CAMERAS = ("agentview", "robot0_eye_in_hand")
# Reading the packages from a cold disk takes longer than anything else.
TIMEOUT_S = 180.0


@contextmanager
def lift_server(**options: Any) -> Iterator[tuple[PolicyServer, str]]:
    policy = load_policy("act", PolicyOptions(device="cpu"), POLICIES)
    chosen = PolicyFrontendOptions(host="127.0.0.1", port=0, lerobot_port=0, drain_s=2.0, **options)
    with PolicyServer(policy, chosen, frontends=make_policy_frontends(chosen)) as server:
        yield server, f"localhost:{server.frontends[1].address[1]}"


def run_client(address: str, folder: Path, *flags: str) -> dict[str, Any]:
    if not (peer_process.ROOT / ".venvs" / "lerobot06" / "bin" / "python").exists():
        pytest.fail(
            "the environment of LeRobot 0.6 is missing: python3.12 -m venv .venvs/lerobot06 && "
            '.venvs/lerobot06/bin/pip install "lerobot[async]==0.6.1"',
            pytrace=False,
        )
    robot = ("--joints", "8", "--action_dim", "7", "--cameras", *(f"{camera}:96x96" for camera in CAMERAS))
    script = ("lerobot06", "lerobot_robot_client.py", address, folder)
    (result,) = peer_process.run_peer(*script, *robot, *flags, timeout_s=TIMEOUT_S)
    return result


def as_meta_obs(sent: TimedObservation) -> MetaObs:
    values = sent.observation
    return MetaObs(
        state=np.array([values[f"joint_{number}.pos"] for number in range(8)], np.float32),
        image=np.ascontiguousarray(np.stack([values[camera].transpose(2, 0, 1) for camera in CAMERAS])),
        raw_lang=values["task"],
        timestep=sent.timestep,
    )


def test_lerobots_client_executes_the_actions_of_policy_client_to_the_last_bit(tmp_path: Path) -> None:
    with lift_server() as (server, address):
        result = run_client(address, tmp_path, "--actions", "24", "--actions_per_chunk", "8")
        assert result["started"]
        assert len(result["executed"]) >= 24
        observations = [
            decode_observation(bytearray(path.read_bytes()))
            for path in sorted(tmp_path.glob("observation_*"))
        ]
        chunks = [decode_actions(path.read_bytes()) for path in sorted(tmp_path.glob("actions_*"))]
        assert len(chunks) >= 3
        by_time = {observation.timestamp: observation for observation in observations}
        executed = [np.array(action, np.float32).tobytes() for action in result["executed"]]
        with PolicyClient(*server.address) as client:
            for chunk in chunks:
                wanted = client.infer(as_meta_obs(by_time[chunk[0].timestamp]))[:8]
                assert len(chunk) == 8
                for index, action in enumerate(chunk):
                    assert action.timestep == chunk[0].timestep + index
                    assert action.action.tobytes() == wanted[index].tobytes()
        # The first chunk is executed whole; the later ones without the step that was executed already.
        in_order = [chunk[0 if number == 0 else 1 :] for number, chunk in enumerate(chunks)]
        given = [action.action.tobytes() for chunk in in_order for action in chunk]
        assert executed == given[: len(executed)]


def test_lerobots_client_does_not_start_on_another_policy(tmp_path: Path) -> None:
    with lift_server() as (_, address):
        assert run_client(address, tmp_path, "--policy_type", "pi0") == {"started": False, "executed": []}


def test_lerobots_client_starts_with_the_token_as_the_page_says(tmp_path: Path) -> None:
    with lift_server(token="secret") as (_, address):
        assert run_client(address, tmp_path) == {"started": False, "executed": []}
        result = run_client(address, tmp_path, "--token", "secret", "--actions", "4")
        assert len(result["executed"]) >= 4
