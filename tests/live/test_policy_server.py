"""A policy server on a real socket: every row of the wire's table, and the life of a connection."""

from __future__ import annotations

import json
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from raw_client import RawClient, wait_until

from robowire.chunking import TemporalEnsembler
from robowire.errors import ConfigurationError
from robowire.meta import MetaAction, MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, FailingPolicy, SlowPolicy, running_server
from robowire.version import __version__


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with running_server(FailingPolicy(EchoPolicy(state_dim=3, chunk_size=4))) as running:
        yield running


@pytest.fixture
def client(server: PolicyServer) -> Iterator[RawClient]:
    with RawClient(server.address) as connected:
        yield connected


def obs(*state: float, lang: str = "", timestep: int = -1) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32), raw_lang=lang, timestep=timestep)


def values(actions: list[MetaAction]) -> np.ndarray:
    return np.stack([action.action for action in actions])


# the table


def test_an_observation_is_answered_by_one_action_for_each_step(client: RawClient) -> None:
    actions = client.ask(obs(1, 2, 3))
    assert [type(action) for action in actions] == [MetaAction] * 4
    assert {(action.ctrl_space, action.ctrl_type) for action in actions} == {("joint", "abs")}
    np.testing.assert_array_equal(values(actions), [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]])
    assert actions[0].action.dtype == np.float32


def test_a_batch_is_answered_by_object_arrays_of_dicts(client: RawClient) -> None:
    states = np.array([[1, 2, 3], [7, 8, 9]], np.float32)
    steps = client.ask(MetaObs(state=states, timestep=np.zeros((2, 1), np.int64)))
    assert [(step.shape, step.dtype) for step in steps] == [((2,), np.dtype(object))] * 4
    assert set(steps[0][0]) == {"ctrl_space", "ctrl_type", "action", "gripper_continuous"}
    np.testing.assert_array_equal([row["action"] for row in steps[3]], states + 3)


def test_the_act_dialect_is_answered_by_a_list_of_actions(client: RawClient) -> None:
    actions = client.ask_pickled({"qpos": np.array([1.0, 2.0, 3.0]), "images": {}})
    np.testing.assert_array_equal(actions[0].action, [1, 2, 3])


def test_the_act_dialects_images_reach_the_policy_in_its_order() -> None:
    spec = PolicySpec(
        policy="seeing", camera_names=("front", "wrist"), image_height=2, image_width=5, action_dim=1
    )

    class Seeing(ConstantPolicy):
        def infer(self, observations: list[MetaObs]) -> np.ndarray:
            (observation,) = observations
            return np.full((1, 1, 1), observation.image[1, 0, 1, 4] * 10 + observation.image[0, 2, 0, 3])

    front, wrist = np.zeros((2, 5, 3), np.uint8), np.zeros((2, 5, 3), np.uint8)
    front[0, 3, 2], wrist[1, 4, 0] = 7, 4
    request = {"qpos": np.zeros(2), "images": {"wrist": wrist, "front": front}}
    with running_server(Seeing(spec)) as server, RawClient(server.address) as client:
        assert client.ask_pickled(request)[0].action == 47


def test_reset_in_capitals_is_answered_in_capitals(client: RawClient) -> None:
    assert client.ask("RESET") == {"status": "OK"}


@pytest.mark.parametrize("method", ["ping", "reset"])
def test_a_method_that_returns_nothing_says_ok(client: RawClient, method: str) -> None:
    assert client.ask({"method": method}) == {"status": "ok"}


def test_hello_introduces_the_server(client: RawClient) -> None:
    assert client.hello(client="mine 1.0") == {
        "status": "ok",
        "protocol_version": 1,
        "version": __version__,
        "server": "policy",
        "session": 1,
    }


def test_the_steps_a_policy_wants_executed_are_no_more_than_the_chunk_that_is_sent() -> None:
    policy = ConstantPolicy(PolicySpec(chunk_size=8, n_action_steps=4, action_dim=1))
    options = PolicyServerOptions(host="127.0.0.1", port=0, chunk_size=2)
    with running_server(policy, options) as server, RawClient(server.address) as client:
        assert client.ask({"method": "get_info"})["n_action_steps"] == 2


def test_get_info_tells_all_that_a_client_must_know(client: RawClient) -> None:
    info = client.ask({"method": "get_info"})
    conventions = info.pop("conventions")
    assert set(conventions) == {"image", "units", "gripper"}
    versions = info.pop("versions")
    known = (platform.python_version(), __version__, np.__version__)
    assert tuple(versions[name] for name in ("python", "robowire", "numpy")) == known
    assert ("torch" in versions) == ("torch" in sys.modules)
    assert info == {
        "status": "ok",
        "policy": "echo",
        "camera_names": [],
        "image_height": None,
        "image_width": None,
        "state_dim": 3,
        "state_layout": None,
        "action_dim": 3,
        "action_layout": None,
        "n_action_steps": None,
        "chunk_size": 4,
        "ctrl_space": "joint",
        "ctrl_type": "absolute",
        "control_hz": None,
        "action_hold": ["last", "last", "last"],
        "dataset_id": None,
        "checkpoint": None,
        "device": "cpu",
        "model_name": None,
        "temporal_agg": False,
        "rtc": "none",
        "rtc_max_delay_steps": 0,
        "max_payload": 64 * 1024 * 1024,
        "image_encodings": ["jpeg", "png"],
        "version": __version__,
        "protocol_version": 1,
    }


def test_stats_count_what_was_asked(client: RawClient) -> None:
    client.ask(obs(1, 2, 3))
    stats = client.ask({"method": "stats"})
    assert (stats["status"], stats["requests"], stats["operations"]["infer"]["count"]) == ("ok", 1, 1)


def test_after_hello_a_chunk_can_be_one_array(client: RawClient) -> None:
    client.hello(reply="chunk")
    reply = client.ask(obs(1, 2, 3, timestep=17))
    np.testing.assert_array_equal(reply.pop("actions"), [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]])
    assert reply.pop("infer_ms") > 0
    assert reply == {"status": "ok", "ctrl_space": "joint", "ctrl_type": "absolute", "timestep": 17}


def test_after_hello_the_chunk_of_a_batch_can_be_one_array(client: RawClient) -> None:
    client.hello(reply="chunk")
    states, timesteps = np.array([[1, 2, 3], [7, 8, 9]], np.float32), np.array([[4], [9]])
    reply = client.ask(MetaObs(state=states, timestep=timesteps))
    np.testing.assert_array_equal(reply["actions"], [states, states + 1, states + 2, states + 3])
    np.testing.assert_array_equal(reply["timestep"], timesteps)


# failure


def test_an_old_client_gets_an_empty_list_for_an_observation_that_fails(client: RawClient) -> None:
    assert client.ask(obs(1, 2)) == []
    assert client.ask(obs(1, 2, 3, lang="raise")) == []
    assert len(client.ask(obs(1, 2, 3))) == 4


def test_an_old_client_of_the_act_dialect_gets_a_status(client: RawClient) -> None:
    assert client.ask_pickled({"qpos": np.zeros(2), "images": {}}) == {
        "status": "ERROR",
        "message": "state is a float32 array of shape (2,), expected (3,) numbers",
    }


@pytest.mark.parametrize(
    ("request_", "error_type", "message"),
    [
        (obs(1, 2), "spec_mismatch", "state is a float32 array of shape (2,), expected (3,) numbers"),
        (obs(1, np.nan, 2), "spec_mismatch", "state[1] is nan, expected finite numbers"),
        (
            obs(1, 2, 3, lang="raise"),
            "backend_error",
            "the policy failed: RuntimeError: the instruction says raise",
        ),
        (
            obs(1, 2, 3, lang="nan"),
            "backend_error",
            "the policy answered with numbers that are not finite",
        ),
        (
            {"qpos": np.zeros((1, 3)), "images": {}},
            "invalid_params",
            "qpos is a float64 array of shape (1, 3), expected (state_dim,) numbers",
        ),
        (
            {"method": "pong"},
            "unknown_method",
            "the policy port has no method 'pong'. Did you mean 'ping'? "
            "Known: hello, ping, get_info, reset, stats, get_status",
        ),
        (
            [1, 2],
            "invalid_params",
            "a list is no request: send a MetaObs, a dict with 'qpos' and 'images', 'RESET', "
            "or a dict with 'method'",
        ),
    ],
)
def test_a_client_that_said_hello_gets_a_typed_error_and_goes_on(
    client: RawClient, request_: object, error_type: str, message: str
) -> None:
    client.hello()
    assert client.ask(request_) == {"status": "error", "error_type": error_type, "message": message}
    assert client.ask({"method": "ping"}) == {"status": "ok"}


def test_a_method_call_that_fails_is_a_typed_error_even_without_hello(client: RawClient) -> None:
    assert client.ask({"method": "pong"})["error_type"] == "unknown_method"


def test_a_camera_that_is_missing_is_named() -> None:
    spec = PolicySpec(policy="seeing", camera_names=("front",), action_dim=1)
    request = {"qpos": np.zeros(2), "images": {"frnt": np.zeros((2, 2, 3), np.uint8)}}
    with running_server(ConstantPolicy(spec)) as server, RawClient(server.address) as client:
        assert client.ask_pickled(request) == {
            "status": "ERROR",
            "message": "no image of camera 'front': the policy needs ['front'], the request has ['frnt']",
        }


# sessions


def ensembled(states: list[float]) -> list[np.ndarray]:
    ensembler = TemporalEnsembler()
    steps = np.arange(4, dtype=np.float32)[:, np.newaxis]
    return [ensembler.update(np.full((1, 3), state, np.float32) + steps) for state in states]


@pytest.mark.parametrize("reset", ["RESET", {"method": "reset"}])
def test_temporal_ensembling_is_each_sessions_own_and_ends_with_a_reset(reset: object) -> None:
    options = PolicyServerOptions(temporal_agg=True)
    with running_server(EchoPolicy(chunk_size=4), options) as server:
        address = server.address
        with RawClient(address) as one, RawClient(address) as other:
            first = [one.ask(obs(v, v, v)) for v in (5.0, 1.0)]
            other.ask(obs(100, 100, 100))
            first.append(one.ask(obs(8, 8, 8)))
            np.testing.assert_array_equal([values(actions)[0] for actions in first], ensembled([5, 1, 8]))
            assert {len(actions) for actions in first} == {1}
            one.ask(reset)
            np.testing.assert_array_equal(values(one.ask(obs(3, 3, 3))), ensembled([3]))
            np.testing.assert_array_equal(values(other.ask(obs(7, 7, 7)))[0], ensembled([100, 7])[1])


def test_with_temporal_ensembling_the_chunk_is_one_action_long() -> None:
    options = PolicyServerOptions(temporal_agg=True)
    with running_server(EchoPolicy(), options) as server, RawClient(server.address) as client:
        info = client.ask({"method": "get_info"})
        assert (info["chunk_size"], info["temporal_agg"]) == (1, True)


def test_beside_an_ensembled_action_comes_the_policys_own_chunk() -> None:
    options = PolicyServerOptions(temporal_agg=True)
    with running_server(EchoPolicy(chunk_size=4), options) as server, RawClient(server.address) as client:
        client.hello(reply="chunk")
        replies = [client.ask(obs(v, v, v)) for v in (5.0, 1.0)]
    np.testing.assert_array_equal(replies[1]["actions"], ensembled([5, 1])[1][np.newaxis])
    np.testing.assert_array_equal(replies[1]["raw_actions"][:, 0], [1, 2, 3, 4])


def test_beside_a_batchs_ensembled_actions_come_the_chunks_of_all_rows() -> None:
    options = PolicyServerOptions(temporal_agg=True)
    batch = MetaObs(state=np.arange(6, dtype=np.float32).reshape(2, 3), timestep=np.zeros((2, 1), np.int64))
    with running_server(EchoPolicy(chunk_size=4), options) as server, RawClient(server.address) as client:
        client.hello(reply="chunk")
        reply = client.ask(batch)
    assert (reply["actions"].shape, reply["raw_actions"].shape) == ((1, 2, 3), (4, 2, 3))
    np.testing.assert_array_equal(reply["raw_actions"][0], batch.state)


def test_a_chunk_that_is_the_policys_own_comes_once(client: RawClient) -> None:
    client.hello(reply="chunk")
    assert sorted(client.ask(obs(1, 2, 3))) == [
        "actions",
        "ctrl_space",
        "ctrl_type",
        "infer_ms",
        "status",
        "timestep",
    ]


def test_several_clients_at_once_each_get_their_own_answers(server: PolicyServer) -> None:
    wrong: list[tuple[int, int]] = []

    def ask_often(client_number: int) -> None:
        with RawClient(server.address) as mine:
            for request in range(30):
                value = client_number * 1000 + request
                if values(mine.ask(obs(value, 0, 0)))[0, 0] != value:
                    wrong.append((client_number, request))

    threads = [threading.Thread(target=ask_often, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert server.metrics.snapshot()["operations"]["infer"]["count"] == 240


def test_what_waits_while_the_device_is_busy_becomes_one_batch() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server:
        clients = [RawClient(server.address) for _ in range(4)]
        clients[0].send(obs(0, 0, 0))
        policy.started.wait()
        for number, client in enumerate(clients[1:], 1):
            client.send(obs(number, 0, 0))
        wait_until(lambda: len(server.service.dispatcher._queue) == 3)
        policy.release.set()
        assert [values(client.receive())[0, 0] for client in clients] == [0, 1, 2, 3]
        for client in clients:
            client.sock.close()
    assert policy.batch_sizes == [1, 3]


# text


def test_lines_of_text_are_answered_until_quit(client: RawClient) -> None:
    answers = client.say("PING\r\nping\nINFO\nSTATS\nHELP\nNONSENSE\nQUIT\nPING\n").splitlines()
    assert answers[:2] == ["PONG", "PONG"]
    assert json.loads(answers[2])["policy"] == "echo"
    assert json.loads(answers[3])["requests"] == 3
    assert answers[4].startswith("PING, INFO, STATS, HELP, QUIT")
    assert answers[5:] == ["ERROR unknown command 'NONSENSE': send HELP for a list", "BYE"]


def test_a_line_is_answered_after_the_sender_ended_its_side(client: RawClient) -> None:
    client.sock.sendall(b"INFO\n")
    client.sock.shutdown(socket.SHUT_WR)  # what ``printf 'INFO\n' | nc`` does
    assert json.loads(client.read_to_the_end())["action_dim"] == 3


def test_a_probe_sees_that_the_server_lives(client: RawClient) -> None:
    response = client.say("GET /healthz HTTP/1.1\r\nHost: localhost\r\nUser-Agent: probe\r\n\r\n")
    assert response.startswith("HTTP/1.1 200 OK\r\n")
    assert response.endswith("\r\n\r\nok\n")


def test_metrics_are_there_for_prometheus(server: PolicyServer, client: RawClient) -> None:
    with RawClient(server.address) as robot:
        robot.ask(obs(1, 2, 3))
        response = client.say("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert '\nrobowire_sessions_open{frontend="tcp"} 1\n' in response  # a poll is no session
    assert '\nrobowire_operation_seconds_count{operation="infer"} 1\n' in response


def test_another_path_is_not_found(client: RawClient) -> None:
    assert client.say("GET /etc/passwd HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 404 Not Found\r\n")


# tokens


def test_a_server_with_a_token_answers_nobody_who_has_not_shown_it() -> None:
    options = PolicyServerOptions(token="sesame")
    with running_server(EchoPolicy(), options) as server, RawClient(server.address) as client:
        assert client.ask(obs(1, 2, 3)) == []
        assert client.ask({"method": "get_info"})["error_type"] == "unauthenticated"
        assert client.hello(token="wrong") == {
            "status": "error",
            "error_type": "unauthenticated",
            "message": "the token is wrong",
        }
        assert client.hello(token="sesame")["status"] == "ok"
        assert len(client.ask(obs(1, 2, 3))) == 4


def test_before_the_token_a_large_frame_is_refused_and_after_it_taken() -> None:
    options = PolicyServerOptions(token="sesame")
    large = MetaObs(state=np.zeros(3), image=np.zeros((1, 3, 200, 200), np.uint8))
    with running_server(EchoPolicy(), options) as server:
        with RawClient(server.address) as unauthenticated:
            unauthenticated.send(large)
            assert unauthenticated.closed()
        with RawClient(server.address) as friend:
            friend.hello(token="sesame")
            assert len(friend.ask(large)) == 4


# the life of a connection


def test_a_person_sees_who_comes_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running_server(EchoPolicy()) as server:
        with RawClient(server.address) as client:
            host, port = client.sock.getsockname()
            client.ask(obs(1, 2, 3))
            client.ask("RESET")
        wait_until(lambda: len(caplog.messages) == 2)
    assert caplog.messages == [
        f"client #1 connected from {host}:{port}",
        "client #1 closed (2 requests, 0 s)",
    ]


def test_a_client_that_says_nothing_is_closed_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    options = PolicyServerOptions(session_timeout_s=0.05)
    with running_server(EchoPolicy(), options) as server, RawClient(server.address) as client:
        peer = "{}:{}".format(*client.sock.getsockname())
        assert client.closed()
    assert caplog.messages[-1] == (
        f"client #1 closed (0 requests, 0 s): {peer} sent nothing for 0.05 s; the connection was closed"
    )


def test_a_request_in_hand_is_finished_while_new_ones_are_refused() -> None:
    policy = SlowPolicy()
    with running_server(policy, PolicyServerOptions(drain_s=10)) as server:
        old, typed, busy = (RawClient(server.address) for _ in range(3))
        typed.hello()
        old.ask({"method": "ping"})
        busy.send(obs(1, 2, 3))
        policy.started.wait()
        server.stop()
        wait_until(lambda: listener_is_closed(server))
        assert old.ask(obs(1, 2, 3)) == []
        assert typed.ask(obs(1, 2, 3)) == {
            "status": "error",
            "error_type": "shutting_down",
            "message": "the server shuts down and takes no new requests",
        }
        policy.release.set()
        assert len(busy.receive()) == 4
        assert [client.closed() for client in (old, typed, busy)] == [True] * 3
    for client in (old, typed, busy):
        client.sock.close()


def listener_is_closed(server: PolicyServer) -> bool:
    try:
        socket.create_connection(server.address, timeout=1).close()
    except ConnectionError:  # refused; or reset, in the instant it closes
        return True
    return False


def test_a_drain_does_not_wait_longer_than_told_for_a_policy_that_hangs() -> None:
    policy = SlowPolicy()
    options = PolicyServerOptions(drain_s=0.1)
    started = time.monotonic()
    with running_server(policy, options) as server:
        client = RawClient(server.address)
        client.send(obs(1, 2, 3))
        policy.started.wait()
    elapsed = time.monotonic() - started
    policy.release.set()
    server.service.dispatcher.close(timeout_s=5)
    client.sock.close()
    assert elapsed < 3
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("session")])


def test_a_port_in_use_is_told_in_one_line() -> None:
    with running_server(EchoPolicy()) as server:
        host, port = server.address
        with pytest.raises(ConfigurationError) as raised:
            PolicyServer(EchoPolicy(), PolicyServerOptions(host=host, port=port))
    assert (
        str(raised.value) == f"port {port} is in use: stop what listens there, or choose another with --port"
    )


def test_a_name_that_is_no_host_is_told_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^cannot listen on 'no such host': .*: check --host$"):
        PolicyServer(EchoPolicy(), PolicyServerOptions(host="no such host"))


@pytest.mark.parametrize(("host", "target"), [("::1", "::1"), ("::", "::1"), ("::", "127.0.0.1")])
def test_ipv6_works_and_every_address_means_every_address(host: str, target: str) -> None:
    with PolicyServer(EchoPolicy(), PolicyServerOptions(host=host, port=0)) as server:
        _, port = server.address
        with RawClient((target, port)) as client:
            assert client.ask({"method": "ping"}) == {"status": "ok"}


def test_a_server_that_never_served_can_be_closed() -> None:
    server = PolicyServer(EchoPolicy(), PolicyServerOptions(host="127.0.0.1", port=0))
    server.shutdown()
