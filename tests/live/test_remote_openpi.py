"""``openpi://``: a server as openpi's own in a process of its own, and this project's frontend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from client_process import finish, start_client
from frontend_server import port_of, running_frontends
from server_process import ROOT
from test_policy_outage import free_port, rows
from test_remote_policy import remote

from policies.act.policy import make_policy as make_act
from robowire import PolicyClient
from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    RemoteProtocolError,
    RequestTimeout,
    SpecMismatch,
    Unauthenticated,
)
from robowire.interfaces import Policy, PolicyOptions
from robowire.meta import MetaObs
from robowire.testing import running_server

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def act() -> Policy:
    return make_act(PolicyOptions(device="cpu"))


@contextmanager
def peer_server(
    script: str, *arguments: object, port: int = 0
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run a stand-in of a peer's server; yield its port, and its process."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), str(port), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def openpi() -> Iterator[str]:
    with peer_server("openpi_server.py") as (port, _):
        yield f"openpi://127.0.0.1:{port}"


def obs(instruction: str = "lift", *, seed: int = 0, size: int = 96) -> MetaObs:
    rng = np.random.default_rng(seed)
    return MetaObs(
        state=np.abs(rng.standard_normal(8)).astype(np.float32),  # the last one is an opening of a gripper
        image=rng.integers(0, 256, (2, 3, size, size), dtype=np.uint8),
        raw_lang=instruction,
        timestep=seed,
    )


def test_a_server_that_says_nothing_of_itself_is_a_libero_policy(
    openpi: str,
) -> None:
    policy = remote(openpi, chunk_size=4)
    spec, given = policy.spec, obs(seed=3)
    assert spec.camera_names == ("agentview", "robot0_eye_in_hand")
    assert (spec.chunk_size, spec.action_dim, spec.ctrl_space, spec.ctrl_type) == (4, 7, "ee", "delta")
    assert spec.action_layout == "dpos(3) daxisangle(3) gripper(1)"
    assert (spec.state_dim, spec.state_layout) == (None, None)
    with running_server(policy) as server, PolicyClient(*server.address[:2]) as client:
        chunk = client.infer(given)
    assert given.state is not None
    assert given.image is not None
    np.testing.assert_array_equal(chunk[:, :3], given.state[:3] + np.arange(4, dtype=np.float32)[:, None])
    difference = given.image[0, :, 0, 0].astype(float) - given.image[1, :, 0, 1]
    np.testing.assert_array_equal(chunk[:, 3:6], [difference] * 4)
    np.testing.assert_array_equal(chunk[:, 6], 0.0)  # the peer's 1 is closed


def test_a_server_that_says_nothing_of_itself_needs_the_length_of_its_chunks(openpi: str) -> None:
    with pytest.raises(ConfigurationError) as failure:
        remote(openpi)
    assert str(failure.value) == (
        f"{openpi} does not say how many actions it answers: --policy_options.chunk_size N"
    )


@pytest.mark.parametrize(
    ("instruction", "error", "message"),
    [
        ("nan", RemoteProtocolError, "answered with numbers that are not finite"),
        ("short", RemoteProtocolError, r"answered float64 actions of shape \(3, 7\), expected \(4, 7\)"),
        ("slow", RequestTimeout, r"sent no actions within 0\.2 s\. The request was not repeated"),
    ],
)
def test_a_wrong_or_late_answer_is_the_error_of_our_own_clients(
    openpi: str, instruction: str, error: type[Exception], message: str
) -> None:
    policy = remote(openpi, chunk_size=4, timeout_s=0.2 if instruction == "slow" else 10.0)
    session = policy.open_session()
    with pytest.raises(error, match=message):
        session.infer([obs(instruction)])
    assert session.infer([obs()]).shape == (1, 4, 7)  # over a new connection
    session.close()
    with running_server(policy) as server, PolicyClient(*server.address[:2], retries=0) as client:
        with pytest.raises(BackendError, match=f"^{error.__name__}: .*{message}"):
            client.infer(obs(instruction))
        assert client.infer(obs()).shape == (4, 7)


def test_the_text_with_which_a_server_fails_is_an_error_and_the_next_request_is_answered(openpi: str) -> None:
    session = remote(openpi, chunk_size=4, camera_names="agentview").open_session()
    one = obs()
    one.image = one.image[:1] if one.image is not None else None
    for _ in range(2):
        with pytest.raises(BackendError, match=r"failed: Traceback .*KeyError\('observation/wrist_image'\)$"):
            session.infer([one])
    session.close()


def test_a_pure_server_is_asked_again_over_a_new_connection_where_the_old_one_was_lost() -> None:
    port = free_port()
    with peer_server("openpi_server.py", 1, port=port) as (_, first):
        session = remote(f"openpi://127.0.0.1:{port}", chunk_size=4).open_session()
        session.infer([obs()])
        # It is killed by this request, and the repetition finds nothing there.
        with pytest.raises((ConnectionLost, ConnectFailed)):
            session.infer([obs()])
        first.wait()
    with peer_server("openpi_server.py", port=port):
        assert session.infer([obs()]).shape == (1, 4, 7)
        session.close()


def test_actions_through_this_projects_frontend_are_the_policys_own_to_the_last_bit(act: Policy) -> None:
    given = [obs(seed=seed) for seed in range(3)]
    wanted = act.infer(given)
    with running_frontends(act, openpi_port=0, token="secret") as upstream:
        url = f"openpi://127.0.0.1:{port_of(upstream, 'openpi')}"
        with pytest.raises(Unauthenticated):
            remote(url)
        policy = remote(url, token="secret")
        # Everything but what openpi's wire has no word for.
        unsaid = {"dataset_id", "checkpoint", "policy"}
        unsaid |= {f"{kind}_{what}" for kind in ("state", "action") for what in ("names", "units", "signs")}
        assert {name: value for name, value in vars(policy.spec).items() if name not in unsaid} == {
            name: value for name, value in vars(act.spec).items() if name not in unsaid
        }
        with running_frontends(policy, openpi_port=0) as server, PolicyClient(*server.address[:2]) as client:
            for index, observation in enumerate(given):
                np.testing.assert_array_equal(client.infer(observation), wanted[index])
            client.reset()
            np.testing.assert_array_equal(client.infer(given[0]), wanted[0])
            # The same policy once more, through two frontends of openpi's.
            twice = remote(f"openpi://127.0.0.1:{port_of(server, 'openpi')}")
            np.testing.assert_array_equal(twice.infer(given), wanted)
            twice.close()
            with pytest.raises(SpecMismatch, match=r"^image is a uint8 array"):
                client.infer(obs(size=64))


def test_a_key_map_is_read_from_both_ends(act: Policy, tmp_path: Path) -> None:
    key_map = tmp_path / "keys.yaml"
    key_map.write_text(
        "images/front: image.agentview\nwrist: image.robot0_eye_in_hand\n"
        "state[0:7]: joints\nstate[7:8]: grip\naction_gripper: -1 open, 1 closed\n"
    )
    given = obs(seed=5)
    with running_frontends(act, openpi_port=0, key_map=str(key_map)) as upstream:
        url = f"openpi://127.0.0.1:{port_of(upstream, 'openpi')}"
        with pytest.raises(
            ConfigurationError, match=r"takes the state in the parts joints, grip and does not"
        ):
            remote(url)
        session = remote(url, key_map=str(key_map)).open_session()
        np.testing.assert_allclose(session.infer([given]), act.infer([given]), atol=1e-6)
        session.close()


def start_evaluation(folder: Path, address: str) -> subprocess.Popen[str]:
    command = ["evaluate", "--address", address, "--num_episodes", "1", "--n_action_steps", "8"]
    command += ["--record_video", "off", "--num_envs", "1", "--max_episode_steps", "24"]
    return start_client(*command, "--output_dir", str(folder))


def test_lift_episodes_are_those_of_the_native_wire(act: Policy, tmp_path: Path) -> None:
    with running_frontends(act, openpi_port=0) as server:
        started = [
            start_evaluation(tmp_path / "native", f"127.0.0.1:{server.address[1]}"),
            start_evaluation(tmp_path / "openpi", f"openpi://127.0.0.1:{port_of(server, 'openpi')}"),
        ]
        for process in started:
            finish(process, timeout_s=160)
    assert rows(tmp_path / "openpi") == rows(tmp_path / "native")
    summary = json.loads((tmp_path / "openpi" / "summary.json").read_text())
    assert summary["policy"]["device"].startswith("openpi at 127.0.0.1:")
