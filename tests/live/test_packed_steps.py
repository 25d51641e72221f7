"""Packed steps of simulator sessions: the same values as by pickle, also where sessions change hands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_client import wait_until
from same_values import require_same

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConnectionLost
from robowire.frontends.http.execution import execute
from robowire.meta import MetaAction
from robowire.recording.format import STEP, open_recordings
from robowire.recording.recorder import FileRecorder
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import running_simulator_server
from robowire.transport.connection import Connection
from robowire.wire.framing import frame_header
from robowire.wire.messages import hello
from robowire.wire.packed_simulator import STEP_REPLY, StepReplies, step_request_frame
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 3))
CAMERAS = ["front", "side", "wrist"]


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=3)) as server:
        yield server


class Pickles:
    """A client written from the first version of the protocol: it never heard of packed payloads."""

    def __init__(self, server: SimulatorServer, **said: Any) -> None:
        self.connection = Connection.connect(*server.address[:2], timeout_s=10)
        self.agreed = self.ask(**hello(resumable=True, **said))

    def __enter__(self) -> Pickles:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, **params: Any) -> Any:
        return loads(self.connection.exchange(encode_frame({"method": method, **params}), timeout_s=30))

    def step(self, known: int, **params: Any) -> bytearray:
        """Return the payload that answers a packed step."""
        return self.connection.exchange(step_request_frame("step", params, known), timeout_s=30)


def begin(client: Any, **options: Any) -> None:
    if isinstance(client, Pickles):
        client.ask("select_simulator", simulator="fake")
        client.ask("load_task", task_name="reach", **options)
        client.ask("reset", seed=1)
    else:
        client.select_simulator("fake")
        client.load_task("reach", **options)
        client.reset(seed=1)


@pytest.mark.parametrize("observation_format", ["raw", "meta"])
@pytest.mark.parametrize("pixels", [32, 256], ids=["through the socket", "through shared memory"])
def test_steps_and_chunks_are_those_of_the_pickle_path(
    server: SimulatorServer, observation_format: str, pixels: int
) -> None:
    options: dict[str, Any] = {
        "camera_names": CAMERAS,
        "image_height": pixels,
        "image_width": pixels,
        "observation_format": observation_format,
    }
    with SimulatorClient(*server.address) as client, Pickles(server) as old:
        assert "packed" not in old.agreed
        for one in (client, old):
            begin(one, **options)
        for number, action in enumerate(ACTIONS[:4]):
            sent: Any = action if number % 2 else MetaAction("ee", "delta", action.astype(np.float32))
            expected = old.ask("step", action=sent)
            del expected["status"]
            require_same(vars(client.step(sent)), expected)
        expected = old.ask("step_chunk", actions=ACTIONS[4:])
        del expected["status"]
        require_same(vars(client.step_chunk(ACTIONS[4:])), expected)
        assert client._session._replies.known, "no reply was packed"


def test_a_kept_reply_survives_what_comes_after_it_and_a_new_owner(server: SimulatorServer) -> None:
    replies = StepReplies()
    with Pickles(server, packed=1) as client:
        assert client.agreed["packed"] == 1
        begin(client, camera_names=CAMERAS, image_height=256, image_width=256)
        expected = replies.read(client.step(0, action=ACTIONS[0], number=5))
        for _ in range(3):
            client.ask("render", camera_name=None)  # writes to the same memory
        repeated = client.step(replies.known, action=ACTIONS[0], number=5)
        require_same(replies.read(repeated), expected)
        (session,) = server.service._running
        assert session.token is not None
        with Pickles(server) as other:
            resumed = other.ask("resume", token=session.token)
            require_same(resumed["last"], expected)
            require_same(other.ask("step", action=ACTIONS[0], number=5), expected)
            assert other.ask("step", action=ACTIONS[1], number=6)["status"] == "ok"


def test_a_client_that_never_agreed_is_refused_as_before(server: SimulatorServer) -> None:
    with Pickles(server) as client:
        begin(client)
        assert loads(client.step(0, action=ACTIONS[0]))["status"] == "error"
        with pytest.raises(ConnectionLost):
            client.ask("ping")


def test_a_layout_of_another_session_is_defined_again(server: SimulatorServer) -> None:
    with Pickles(server, packed=1) as client, Pickles(server, packed=1) as other:
        for one in (client, other):
            begin(one)
        first = client.step(0, action=ACTIONS[0])
        replies = StepReplies()
        replies.read(first)
        assert len(client.step(replies.known, action=ACTIONS[1])) < len(first)
        assert len(other.step(replies.known, action=ACTIONS[0])) == len(first)
        assert len(other.step(1234, action=ACTIONS[1])) == len(first)


def test_a_lying_packed_step_is_a_typed_error_and_the_episode_goes_on(server: SimulatorServer) -> None:
    with Pickles(server, packed=1) as client:
        begin(client)
        lies = (b"\x03", b"\x03" * 31, b"\x03" * 32, b"\x03\x00" + b"\xff" * 30)
        for lie in lies:
            payload = client.connection.exchange([frame_header(len(lie)), lie], timeout_s=10)
            assert loads(payload)["error_type"] == "invalid_params"
        assert loads(client.step(0, action=np.zeros(2)))["error_type"] == "spec_mismatch"
        assert loads(client.step(0, action=np.full(3, np.nan)))["error_type"] == "invalid_params"
        assert client.step(0, action=ACTIONS[0])[0] == STEP_REPLY


def test_a_recording_of_packed_steps_holds_their_values(server: SimulatorServer, tmp_path: Path) -> None:
    recorder = FileRecorder(str(tmp_path), max_bytes=10**8)
    server.service.recorder = recorder
    with SimulatorClient(*server.address) as client:
        begin(client)
        results = [client.step(action) for action in ACTIONS[:3]]
    wait_until(lambda: not recorder._queue)
    recorder.close()
    server.service.recorder = None
    (recording,) = open_recordings(tmp_path, "simulator")
    steps = [recording[index] for index, kind in enumerate(recording.kinds()) if kind == STEP]
    for action, result, step in zip(ACTIONS, results, steps, strict=False):
        require_same(step["request"]["action"], action)
        require_same(step["reply"]["observation"], result.observation)


def test_values_of_another_wire_are_not_written_to_by_later_steps(server: SimulatorServer) -> None:
    with Pickles(server) as client:
        begin(client, camera_names=CAMERAS, image_height=256, image_width=256)
        (session,) = server.service._running
        with session.lock:
            values = [execute(server.service, session, "step", {"action": ACTIONS[0]})]
            before = {name: array.copy() for name, array in values[0]["observation"].items()}
            for action in ACTIONS[1:4]:
                values.append(execute(server.service, session, "step", {"action": action}))
        require_same(values[0]["observation"], before)
        assert not np.array_equal(values[3]["observation"]["position"], before["position"])


def test_memory_in_use_by_two_clients_is_not_written_to(server: SimulatorServer) -> None:
    """A reply that is still being sent to a client that lost its session is never torn."""
    with ExitStack() as stack:
        client = stack.enter_context(Pickles(server, packed=1))
        begin(client, camera_names=CAMERAS, image_height=256, image_width=256)
        (session,) = server.service._running
        with session.lock:
            held = [session.execute("step", {"action": ACTIONS[0]}, 1, known=0)]
            before = bytes(held[0])
            for number, action in enumerate(ACTIONS[1:6], 2):
                held.append(session.execute("step", {"action": action}, number, known=0))
        assert bytes(held[0]) == before
        assert len({bytes(payload) for payload in held}) == len(held)
