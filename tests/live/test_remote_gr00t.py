"""``gr00t://``: stand-ins of N1.5's and N1.6's servers in processes of their own, and our own frontend."""

from __future__ import annotations

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from test_policy_outage import free_port
from test_remote_openpi import act, obs, peer_server
from test_remote_policy import remote

from robowire.errors import BackendError, ConfigurationError, ConnectFailed, ConnectionLost
from robowire.interfaces import Policy
from robowire.meta import MetaObs

__all__ = ["act"]  # a fixture

LAYOUTS = {"state_layout": "arm(2) grip(1)", "action_layout": "arm(2) grip(1)", "action_dim": 3}


def small(*state: float, instruction: str = "lift") -> MetaObs:
    image = np.zeros((1, 3, 8, 8), np.uint8)
    return MetaObs(state=np.array(state, np.float32), image=image, raw_lang=instruction)


@pytest.mark.parametrize("version", ["n1.5", "n1.6"])
def test_a_server_is_asked_by_the_names_and_the_order_that_it_says(version: str) -> None:
    with peer_server("gr00t_server.py", version) as (port, process):
        url = f"gr00t://127.0.0.1:{port}"
        with pytest.raises(ConfigurationError, match=r"takes the state in the parts arm, grip"):
            remote(url)
        policy = remote(url, **LAYOUTS)
        spec = policy.spec
        assert (spec.camera_names, spec.chunk_size, spec.action_dim) == (("front",), 3, 3)
        session = policy.open_session()
        resets = 0 if version == "n1.5" else 1
        wanted = [[[a + step, b + step, resets] for step in range(3)] for a, b in ((1, 2), (5, 6))]
        np.testing.assert_array_equal(session.infer([small(1, 2, 9), small(5, 6, 9)]), wanted)
        session.reset()
        assert session.infer([small(1, 2, 9)])[0, 0, 2] == 2 * resets
        with pytest.raises(BackendError, match=r"the instruction says fail$"):
            session.infer([small(1, 2, 9, instruction="fail")])
        assert session.infer([small(1, 2, 9)]).shape == (1, 3, 3)
        # Lost in the middle: asked once more, as it keeps nothing, and then nothing is there.
        with pytest.raises((ConnectFailed, ConnectionLost)):
            session.infer([small(1, 2, 9, instruction="die")])
        assert process.wait(10) == 1
        session.close()
        policy.close()


def test_an_address_where_nothing_answers_is_an_error_in_time() -> None:
    with pytest.raises(ConnectFailed, match=r"^no connection to gr00t://127\.0\.0\.1:\d+ within 0\.2 s$"):
        remote(f"gr00t://127.0.0.1:{free_port()}", connect_timeout_s=0.2)


def test_actions_through_this_projects_frontend_are_the_policys_own_to_the_last_bit(act: Policy) -> None:
    given = [obs(seed=seed) for seed in range(3)]
    with running_frontends(act, gr00t_port=0) as upstream:
        spec = act.spec
        told = {"state_layout": spec.state_layout, "action_layout": spec.action_layout, "action_dim": 7}
        policy = remote(f"gr00t://127.0.0.1:{port_of(upstream, 'gr00t')}", **told)
        np.testing.assert_array_equal(policy.infer(given), act.infer(given))
        policy.close()
