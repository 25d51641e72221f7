"""``vla-eval://``: vla-eval's own server in its own environment, and this project's frontend."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from peer_process import HERE, peer_python

from policies.remote.policy import RemotePolicy, make_policy
from robowire import PolicyClient
from robowire.errors import BackendError
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.specs import PolicySpec
from robowire.testing import EchoPolicy, running_server


class PeerServer:
    """vla-eval's server; ``said`` is what it printed since it was asked last."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [peer_python("vla_eval"), str(HERE / "serve_vla_eval.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={"PATH": "/usr/bin:/bin"},
        )
        self.port = self.line()["port"]

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        value: dict[str, Any] = json.loads(self.process.stdout.readline())
        return value


@pytest.fixture
def peer() -> Iterator[PeerServer]:
    server = PeerServer()
    yield server
    server.process.kill()
    server.process.communicate()


def remote(url: str, **options: Any) -> RemotePolicy:
    return make_policy(PolicyOptions(extra={"url": url, "timeout_s": 10.0, **options}))


def obs(level: int, instruction: str = "lift", step: int = 0) -> MetaObs:
    image = np.full((1, 3, 16, 16), level, np.uint8)
    return MetaObs(state=np.zeros(3, np.float32), image=image, raw_lang=instruction, timestep=step)


def test_vla_evals_own_server_keeps_the_chunk_of_each_session(peer: PeerServer) -> None:
    policy = remote(f"vla-eval://127.0.0.1:{peer.port}")
    spec = policy.spec
    assert (spec.camera_names, spec.chunk_size, spec.action_dim) == (("agentview",), 1, 7)
    assert spec.action_layout == "dpos(3) daxisangle(3) gripper(1)"
    assert (spec.ctrl_space, spec.ctrl_type, policy.stateful) == ("ee", "delta", True)
    first, second = policy.open_session(), policy.open_session()
    for step in range(5):
        action = first.infer([obs(7, step=step)])[0, 0]
        # The peer's 1 is a closed gripper; of a chunk of four, the fifth observation makes another.
        np.testing.assert_array_equal(action, [(step % 4) + (step // 4) * 4, 7, 7, 7, 7, 7, 0])
    np.testing.assert_array_equal(second.infer([obs(9)])[0, 0], [0, 9, 9, 9, 9, 9, 0])
    first.reset()
    np.testing.assert_array_equal(first.infer([obs(8, "push")])[0, 0], [0, 8, 8, 8, 8, 8, 0])
    names = ["images", "task_description"]
    assert [peer.line() for _ in range(7)] == [
        {"episode": "lift"},
        {"inference": 0, "image": 7, "names": names},
        {"inference": 4, "image": 7, "names": names},
        {"episode": "lift"},
        {"inference": 0, "image": 9, "names": names},
        {"episode": "push"},
        {"inference": 0, "image": 8, "names": names},
    ]
    for session in (first, second):
        session.close()


def test_its_errors_and_its_end_are_typed_and_nothing_is_sent_twice(peer: PeerServer) -> None:
    policy = remote(f"vla-eval://127.0.0.1:{peer.port}")
    with running_server(policy) as server, PolicyClient(*server.address[:2], retries=3) as client:
        with pytest.raises(BackendError, match=r"observation_failed: ValueError: the instruction says"):
            client.infer(obs(1, "fail"))
        client.infer(obs(1))
        peer.process.kill()
        peer.process.wait()
        with pytest.raises(BackendError, match=r"What that server knew of the episode is lost"):
            client.infer(obs(1, step=1))
        with pytest.raises(BackendError, match=r"was lost in the middle of an episode"):
            client.infer(obs(1, step=2))


def test_actions_through_this_projects_frontend_are_the_policys_own() -> None:
    spec = EchoPolicy(state_dim=3, chunk_size=4).spec
    assert isinstance(spec, PolicySpec)
    with running_frontends(EchoPolicy(), vla_eval_port=0, token="secret") as upstream:
        policy = remote(f"vla-eval://127.0.0.1:{port_of(upstream, 'vla_eval')}", token="secret")
        session = policy.open_session()
        given = MetaObs(state=np.array([0.1, 2, 3], np.float32), raw_lang="lift", timestep=0)
        answers = [session.infer([given])[0, 0] for _ in range(5)]
        wanted = EchoPolicy().infer([given])[0]
        np.testing.assert_array_equal(answers, [*wanted, wanted[0]])
        session.reset()
        np.testing.assert_array_equal(session.infer([given])[0, 0], wanted[0])
        session.close()
