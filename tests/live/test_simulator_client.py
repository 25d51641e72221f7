"""The simulator client against a real server, and against peers that are not simulator servers."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire.client.simulator_client import ChunkResult, SimulatorClient
from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    InvalidParams,
    NotReset,
    Overloaded,
    RemoteProtocolError,
    RequestTimeout,
    TaskNotFound,
    Unauthenticated,
)
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.specs import SimulatorSpec
from robowire.testing import ConstantPolicy, running_server, running_simulator_server
from robowire.testing.fake_simulator import FakeSimulator
from robowire.wire.methods import LoadTask
from robowire.wire.pickle.writer import encode_frame

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=1)) as server:
        yield server


@pytest.fixture
def client(server: SimulatorServer) -> Iterator[SimulatorClient]:
    with SimulatorClient(*server.address) as client:
        client.select_simulator("fake")
        yield client


def says(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@contextmanager
def peer_that(act: Callable[[socket.socket], None]) -> Iterator[int]:
    """Say hello as a simulator server does, read one request, and act."""
    hello = b"".join(
        bytes(buffer) for buffer in encode_frame({"status": "ok", "server": "simulator", "session": 1})
    )

    def serve() -> None:
        with listener.accept()[0] as sock:
            sock.recv(4096)
            sock.sendall(hello)
            sock.recv(4096)
            act(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_its_results_have_types(client: SimulatorClient) -> None:
    assert client.list_simulators() == ["fake"]
    assert client.list_tasks("sound") == ["reach"]
    spec = client.load_task("reach", camera_names=("front",), image_height=32, image_width=32, horizon=9)
    assert isinstance(spec, SimulatorSpec)
    assert (spec.task, spec.camera_names, spec.image_height, spec.max_episode_steps) == (
        "reach",
        ("front",),
        32,
        9,
    )
    assert sorted(client.reset(seed=1)) == ["front_image", "goal", "position"]
    assert isinstance(client.step([0, 0, 0]), StepResult)
    assert isinstance(client.step_chunk(np.zeros((2, 3))), ChunkResult)
    assert client.render("side").shape == (32, 32, 3)
    assert client.get_info()["task"] == "reach"
    assert 0 < client.ping() < 1


def test_it_observes_only_what_it_asked_for(client: SimulatorClient) -> None:
    client.load_task("reach", observation_keys=("position",))
    assert list(client.reset(seed=1)) == ["position"]
    assert list(client.step([0, 0, 0]).observation) == ["position"]
    with pytest.raises(InvalidParams, match=r"^observation_keys names 'postion', "):
        client.load_task("reach", observation_keys=["postion"])


def test_a_task_can_be_loaded_by_a_value_of_all_its_options(client: SimulatorClient) -> None:
    task = LoadTask(task_name="reach", observation_keys=("position",), horizon=7)
    spec = client.load_task(task)
    assert (spec.task, spec.max_episode_steps) == ("reach", 7)
    assert list(client.reset(seed=1)) == ["position"]
    assert client.load_task(task, horizon=8).max_episode_steps == 8


def test_images_that_were_encoded_on_the_way_are_arrays_here(client: SimulatorClient) -> None:
    client.load_task("reach", camera_names=["front", "side"])
    raw = client.reset(seed=1)
    client.load_task("reach", camera_names=["front", "side"], image_encoding="png")
    for observation in (client.reset(seed=1), client.restore(client.snapshot())):
        assert np.array_equal(observation["side_image"], raw["side_image"])
    for observation in (client.step([0, 0, 0]).observation, client.step_chunk([[0, 0, 0]]).observation):
        assert observation["front_image"].shape == (64, 64, 3)


def test_encoded_images_are_decoded_for_who_takes_a_session_over(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as first, SimulatorClient(*server.address) as second:
        first.select_simulator("fake")
        first.load_task("reach", image_encoding="png")
        seen = first.reset(seed=1)
        resumed = second.resume(first.session_token or "").observation
        assert np.array_equal(resumed["front_image"], seen["front_image"])


def test_encoded_images_stay_so_for_who_does_not_decode_them(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address, decode_images=False) as client:
        client.select_simulator("fake")
        client.load_task("reach", image_encoding="jpeg", jpeg_quality=50)
        image = client.reset(seed=1)["front_image"]
        assert (image["encoding"], image["shape"]) == ("jpeg", (64, 64, 3))
        assert image["data"].startswith(b"\xff\xd8")


def test_a_client_without_pillow_is_told_before_anything_is_loaded(server: SimulatorServer) -> None:
    host, port = server.address
    program = f"""
import sys
sys.modules["PIL"] = None
from robowire.errors import MissingDependency
from robowire.client.simulator_client import SimulatorClient
with SimulatorClient({host!r}, {port}) as client:
    client.select_simulator("fake")
    try:
        client.load_task("reach", image_encoding="jpeg")
    except MissingDependency as exc:
        print(exc)
    print(client.get_info()["task"])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [
        "image_encoding 'jpeg' (without decode_images=False) needs Pillow: pip install 'robowire[images]'",
        "None",
    ]


def test_a_simulator_without_pillow_says_so_when_the_task_is_loaded(tmp_path: Path) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'PIL'\", name='PIL')\n"
    (tmp_path / "PIL.py").write_text(missing)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH="{tmp_path}:$PYTHONPATH"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = SimulatorServerOptions(drain_s=2)
    with running_simulator_server(options, pythons={"fake": str(python)}) as server, SimulatorClient(
        *server.address
    ) as client:
        client.select_simulator("fake")
        with says(
            BackendError,
            "image_encoding 'png' in the process of fake needs Pillow: pip install 'robowire[images]'",
        ):
            client.load_task("reach", image_encoding="png")
        client.load_task("reach")


def test_a_session_is_renewed(client: SimulatorClient) -> None:
    assert client.renew() == 300.0


def test_an_episode_is_the_one_the_simulator_runs_here(client: SimulatorClient) -> None:
    here = FakeSimulator()
    here.load_task("reach", TaskOptions())
    client.load_task("reach")
    rng = np.random.default_rng(0)
    observations = [here.reset(seed=5)], [client.reset(seed=5)]
    for _ in range(5):
        action = rng.uniform(-1, 1, 3)
        observations[0].append(here.step(action).observation)
        observations[1].append(client.step(action).observation)
    assert [{n: v.tolist() for n, v in o.items()} for o in observations[0]] == [
        {n: v.tolist() for n, v in o.items()} for o in observations[1]
    ]


def test_policies_observations_and_actions_cross(client: SimulatorClient) -> None:
    client.load_task("reach", observation_format="meta")
    assert isinstance(client.reset(seed=0), MetaObs)
    result = client.step(MetaAction("ee", "delta", np.zeros(3, np.float32)))
    assert result.observation.timestep == 1
    chunk = client.step_chunk([MetaAction("ee", "delta", np.zeros(3, np.float32))] * 2)
    assert (chunk.steps, chunk.observation.timestep) == (2, 3)


def test_the_servers_errors_come_as_their_classes(client: SimulatorClient) -> None:
    with pytest.raises(TaskNotFound, match=r"^no task is called 'fly'\."):
        client.load_task("fly")
    client.load_task("reach")
    with says(NotReset, "reset comes before step"):
        client.step([0, 0, 0])
    client.reset()
    with says(InvalidParams, "action is nan at index 0, expected finite numbers"):
        client.step([float("nan"), 0, 0])
    assert client.step([0, 0, 0]).reward == 0


def test_a_crash_is_an_error_and_the_next_load_mends_it(client: SimulatorClient) -> None:
    client.load_task("exit_in_step")
    client.reset()
    with pytest.raises(BackendError, match="exited with code 3 during 'step'"):
        client.step([0, 0, 0])
    client.load_task("reach")
    client.reset()
    assert client.step([0, 0, 0]).terminated is False


def test_disconnecting_frees_the_simulator_before_it_returns(server: SimulatorServer) -> None:
    for _ in range(3):  # there is one place
        with SimulatorClient(*server.address) as client:
            client.select_simulator("fake")


def test_a_full_server_says_so(server: SimulatorServer, client: SimulatorClient) -> None:
    full = says(Overloaded, "all 1 simulator sessions are taken; try again later")
    with SimulatorClient(*server.address) as second, full:
        second.select_simulator("fake")


def test_a_step_whose_connection_is_lost_is_not_repeated() -> None:
    with peer_that(lambda sock: None) as port:
        client = SimulatorClient("127.0.0.1", port)
        with says(
            ConnectionLost,
            f"127.0.0.1:{port} closed the connection before it answered; see its log. 'step' may have "
            "been executed, so it was not repeated",
        ):
            client.step([0, 0, 0])
        with says(
            ConnectionLost,
            f"the session with 127.0.0.1:{port} is over, and its simulator gone, because the connection was "
            "lost: connect() begins a new one, with select_simulator and load_task",
        ):
            client.step([0, 0, 0])


def test_half_a_reply_is_a_lost_connection() -> None:
    with peer_that(lambda sock: sock.sendall(b"\0\0\0\x20half")) as port:
        client = SimulatorClient("127.0.0.1", port)
        with pytest.raises(ConnectionLost, match="was lost in the middle of its reply"):
            client.step([0, 0, 0])


def test_a_reply_that_does_not_come_ends_the_session() -> None:
    done = threading.Event()
    with peer_that(lambda sock: done.wait() and None) as port:
        client = SimulatorClient("127.0.0.1", port, timeout_s=0.2)
        with pytest.raises(RequestTimeout, match=r"'step' was not repeated: raise timeout_s, now 0\.2"):
            client.step([0, 0, 0])
        with pytest.raises(ConnectionLost, match="because a reply did not come in time"):
            client.reset()
        done.set()


def test_a_reply_without_its_parts_is_the_peers_fault() -> None:
    reply = b"".join(bytes(buffer) for buffer in encode_frame({"status": "ok", "reward": 1.0}))
    with peer_that(lambda sock: sock.sendall(reply)) as port:
        client = SimulatorClient("127.0.0.1", port)
        with says(RemoteProtocolError, "the reply has no 'observation', only 'status', 'reward'"):
            client.step([0, 0, 0])


def test_a_session_can_be_begun_again(server: SimulatorServer) -> None:
    client = SimulatorClient(*server.address)
    client.select_simulator("fake")
    client.disconnect()
    client.disconnect()
    with pytest.raises(ConnectionLost, match="because it was disconnected"):
        client.list_simulators()
    client.connect()
    assert client.list_simulators() == ["fake"]
    client.disconnect()


def test_an_address_without_a_server_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with says(ConnectFailed, f"nothing listens on 127.0.0.1:{port}: is the server running there?"):
        SimulatorClient("127.0.0.1", port).connect()


def test_a_policy_server_is_told_apart() -> None:
    with running_server(ConstantPolicy()) as server:
        host, port = server.address
        with says(
            ConfigurationError,
            f"{host}:{port} is a policy server, not a simulator server: use its simulator port, "
            "or PolicyClient",
        ):
            SimulatorClient(host, port).connect()


def test_a_token_opens_the_door() -> None:
    with running_simulator_server(SimulatorServerOptions(token="secret", drain_s=2)) as server:
        with pytest.raises(Unauthenticated):
            SimulatorClient(*server.address).connect()
        with SimulatorClient(*server.address, token="secret") as client:
            assert client.list_simulators() == ["fake"]


def test_a_client_that_will_not_come_back_takes_its_simulator_with_it(server: SimulatorServer) -> None:
    host, port = server.address
    program = (
        "from robowire.client.simulator_client import SimulatorClient\n"
        f"client = SimulatorClient({host!r}, {port}, reconnect_s=0)\n"
        "client.select_simulator('fake')\n"
        "client.load_task('reach')\n"
        "print(client.get_info()['process']['pid'], flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        handle = os.pidfd_open(int(other.stdout.readline()))
        other.send_signal(signal.SIGKILL)
    assert select.select([handle], [], [], 10)[0] == [handle]
    os.close(handle)


def test_timeouts_are_positive() -> None:
    with says(ValueError, "timeout_s is 0, expected a positive number of seconds"):
        SimulatorClient(timeout_s=0)
