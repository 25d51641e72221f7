"""``lerobot://``: this project's frontend as the server, which LeRobot's own client is tested with."""

from __future__ import annotations

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from test_policy_outage import free_port
from test_remote_openpi import act, obs
from test_remote_policy import remote

from robowire.errors import ConfigurationError, ConnectFailed, SpecMismatch, Unauthenticated
from robowire.interfaces import Policy

__all__ = ["act"]  # a fixture

TOLD = {"camera_names": "agentview,robot0_eye_in_hand", "image_height": 96, "image_width": 96}
TOLD = {**TOLD, "state_dim": 8, "state_layout": "joint_pos(7) gripper_open(1)", "chunk_size": 16}


def test_actions_through_this_projects_frontend_are_the_policys_own_to_the_last_bit(act: Policy) -> None:
    given = [obs(seed=seed) for seed in range(3)]
    with running_frontends(act, lerobot_port=0, token="secret") as upstream:
        url = f"lerobot://127.0.0.1:{port_of(upstream, 'lerobot')}"
        with pytest.raises(Unauthenticated):
            remote(url, **TOLD)
        with pytest.raises(SpecMismatch, match=r"policy_type is 'smolvla', but this server holds 'act'"):
            remote(url, token="secret", policy_type="smolvla", **TOLD)
        session = remote(url, token="secret", **TOLD).open_session()
        for _ in range(2):
            for observation in given:
                np.testing.assert_array_equal(session.infer([observation]), act.infer([observation]))
            session.reset()
        np.testing.assert_array_equal(session.infer(given), act.infer(given))  # a connection for each row
        session.close()


def test_it_says_what_it_has_to_be_told() -> None:
    url = f"lerobot://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigurationError) as failure:
        remote(url, state_dim=8, camera_names="a")
    assert str(failure.value) == (
        f"{url} says nothing of its policy: --policy_options.image_height ... "
        "--policy_options.image_width ... --policy_options.chunk_size ..."
    )
    with pytest.raises(ConnectFailed, match=r"within 0\.2 s$"):
        remote(url, connect_timeout_s=0.2, **TOLD)
