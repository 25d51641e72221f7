"""The seed of an episode in requests: every form carries it, and a random policy draws from it alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from raw_client import RawClient
from seeing_policy import SPEC, SeeingPolicy
from websockets.sync.client import connect

from policies.random.policy import RandomOptions, RandomPolicy
from policies.registry import POLICIES
from robowire.client.policy_client import PolicyClient
from robowire.errors import InvalidParams
from robowire.frontends.openpi.codec import decode, encode
from robowire.frontends.vlastudio.codec import read_call
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import load_policy
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.testing import running_server
from robowire.wire.codecs import PolicyCodec

FRAME = np.zeros((48, 64, 3), np.uint8)
RANDOM = RandomOptions(chunk_size=4, action_dim=2)


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with running_server(RandomPolicy(RANDOM), PolicyServerOptions(port=0)) as running:
        yield running


def drawn(episode_seed: int | None, timestep: int) -> np.ndarray:
    return RandomPolicy(RANDOM).infer([MetaObs(timestep=timestep, episode_seed=episode_seed)])[0]


@pytest.mark.parametrize("seed", [7, np.int64(7)])
def test_a_chunk_depends_on_the_seed_and_the_timestep_alone(server: PolicyServer, seed: Any) -> None:
    with PolicyClient(*server.address) as client:
        chunk = client.infer(MetaObs(state=np.zeros(3), timestep=2, episode_seed=seed))
        batch = MetaObs(state=np.zeros((3, 3)), timestep=np.full((3, 1), 2), episode_seed=np.array([7, 8, 7]))
        rows = client.infer(batch).swapaxes(0, 1)
        unsaid = client.infer(MetaObs(state=np.zeros(3), timestep=2))
    np.testing.assert_array_equal(chunk, drawn(7, 2))
    np.testing.assert_array_equal(rows, [drawn(7, 2), drawn(8, 2), drawn(7, 2)])
    np.testing.assert_array_equal(unsaid, drawn(None, 2))
    assert len({chunk.tobytes(), rows[1].tobytes(), unsaid.tobytes(), drawn(7, 3).tobytes()}) == 4


@pytest.mark.parametrize(
    "request_value",
    [
        {
            "qpos": np.zeros(7),
            "images": {n: np.zeros((48, 64, 3), np.uint8) for n in SPEC.camera_names or ()},
        },
        MetaObs(state=np.zeros(7), image=np.zeros((2, 3, 48, 64), np.uint8)),
    ],
    ids=["act", "pickle"],
)
def test_old_forms_of_requests_carry_it_too(request_value: Any) -> None:
    policy = SeeingPolicy()
    seeded: Any = request_value
    if isinstance(request_value, dict):
        seeded = {**request_value, "episode_seed": 3}
    else:
        seeded.episode_seed = 3
    with running_server(policy, PolicyServerOptions(port=0)) as server, RawClient(server.address) as client:
        client.ask(seeded)
    assert policy.seen[0].episode_seed == 3


@pytest.mark.parametrize("seed", [-1, 1 << 63, 0.5, "7", True, np.array([1, 2])])
def test_what_is_no_seed_is_refused(server: PolicyServer, seed: Any) -> None:
    with PolicyClient(*server.address) as client:
        with pytest.raises(InvalidParams, match="episode_seed"):
            client.infer(MetaObs(state=np.zeros(3), timestep=0, episode_seed=seed))
        assert client.infer(MetaObs(state=np.zeros(3), timestep=0)).shape == (4, 2)


def test_an_observation_without_one_is_pickled_as_ever() -> None:
    assert b"episode_seed" not in pickle.dumps(MetaObs(raw_lang="lift"))
    assert MetaObs().episode_seed is None


def test_openpis_wire_carries_it_too() -> None:
    with running_frontends(RandomPolicy(RANDOM), openpi_port=0) as server:
        with connect(f"ws://127.0.0.1:{port_of(server, 'openpi')}", compression=None) as socket:
            socket.recv(5)

            def ask(**content: Any) -> Any:
                socket.send(encode({"state": np.zeros(3), "errors": "typed", **content}))
                return decode(socket.recv(5))  # type: ignore[arg-type]

            for _ in range(3):  # the later ones are read by comparison
                for seed in (7, 8):
                    actions = ask(timestep=2, episode_seed=seed)["actions"]
                    np.testing.assert_array_equal(actions, drawn(seed, 2))
            np.testing.assert_array_equal(ask(timestep=2)["actions"], drawn(None, 2))
            refused = ask(timestep=2, episode_seed=-1)
        assert "episode_seed is" in str(refused)
        # Our own client of that wire sends it.
        url = f"openpi://127.0.0.1:{port_of(server, 'openpi')}"
        policy = load_policy(
            "remote", PolicyOptions(extra={"url": url, "camera_names": ["a", "b"]}), POLICIES
        )
        try:
            image = np.zeros((2, 3, 48, 64), np.uint8)
            seen = MetaObs(state=np.zeros(3), image=image, timestep=2, episode_seed=7)
            answered = policy.infer([seen])[0]
        finally:
            policy.close()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(answered, drawn(7, 2))


def test_vlastudios_wire_carries_it_too() -> None:
    body = json.dumps({"meta_obs": {"raw_lang": "", "state_joint": None, "timestep": 2, "episode_seed": 7}})
    request = read_call(body.encode()).request(PolicyCodec(None), max_bytes=1 << 20)
    assert [observation.episode_seed for observation in request.observations] == [7]
    with pytest.raises(InvalidParams, match="episode_seed is"):
        read_call(body.replace("7", "-7").encode()).request(PolicyCodec(None), max_bytes=1 << 20)
