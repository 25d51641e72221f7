"""The simulator center's wire over real sockets: its methods, its order of checks, and hostile clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from center_client import CenterClient, described
from raw_client import wait_until

from benchmark.registry import SIMULATORS
from robowire.cli.simulator import SimulatorFlags, make_simulator_server
from robowire.errors import ConfigurationError
from robowire.frontends.center.codec import decode, decode_array, encode
from robowire.frontends.center.tasks import CenterTasks
from robowire.frontends.simulator_frontends import SimulatorFrontendOptions, make_simulator_frontends
from robowire.interfaces import TaskOptions
from robowire.registry import load
from robowire.serving.simulator.server import SimulatorServer
from robowire.testing import FAKE_SIMULATORS


def running(table: Any = FAKE_SIMULATORS, **options: Any) -> SimulatorServer:
    given = SimulatorFrontendOptions(
        **{"host": "127.0.0.1", "port": 0, "center_port": 0, "drain_s": 2.0, **options}
    )
    return SimulatorServer(table, given, frontends=make_simulator_frontends(given))


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    with running() as server:
        yield server


@pytest.fixture
def client(server: SimulatorServer) -> Iterator[CenterClient]:
    with CenterClient(server.frontends[1].address) as client:
        yield client


def test_requests_and_replies_are_the_bytes_of_its_client() -> None:
    request = bytes.fromhex(
        "82a66d6574686f64a473746570a6616374696f6e81a6616374696f6e84a85f5f747970655f5fa76e646172726179"
        "a5736861706591 01a56474797065a7666c6f61743634a464617461c408000000000000f03f".replace(" ", "")
    )
    action = {"action": np.array([1.0])}
    assert encode({"method": "step", "action": action}) == request
    read = decode(request)
    np.testing.assert_array_equal(decode_array(read["action"]["action"]), [1.0])
    assert encode({"status": "ok", "tasks": ["a"]}).hex() == "82a6737461747573a26f6ba57461736b7391a161"


def test_the_sequence_of_its_own_integration_test(client: CenterClient) -> None:
    assert client.ask("list_simulators") == {"status": "ok", "simulators": ["fake"]}
    assert client.ask("select_simulator", simulator="fake") == {"status": "ok", "simulator": "fake"}
    assert "reach" in client.ask("list_tasks")["tasks"]
    before = client.ask("get_info")
    assert (before["backend_name"], before["current_task"], before["action_space"]) == ("fake", None, None)
    assert before["num_tasks"] > 1
    info = client.ask("load_task", task_name="reach")["task_info"]
    assert info["task_name"] == "reach"
    assert info["action_space"] == {"shape": [3], "dtype": "float64", "low": [-1.0] * 3, "high": [1.0] * 3}
    first = client.ask("reset")
    assert set(first) == {"status", "observation"}
    stepped = client.ask("step", action={"action": [0.0, 0.0, 0.0]})
    assert set(stepped) == {"status", "observation", "reward", "terminated", "truncated", "info"}
    again = client.ask("step", action={"action": described(np.zeros(3))})
    assert again["observation"].keys() == first["observation"].keys()
    after = client.ask("get_info")
    assert after["current_task"] == "reach"
    assert "front_image" in after["observation_space"]["images"]
    assert client.ask("disconnect") == {"status": "ok"}
    assert client.error("list_tasks") == "no_simulator_selected"
    # The same client may select again.
    assert client.ask("select_simulator", simulator="fake")["status"] == "ok"
    client.ask("disconnect")


def test_errors_have_its_types_in_its_order_of_checks(client: CenterClient) -> None:
    assert client.error(None, no_method=1) == "invalid_params"
    assert client.error("bogus_method") == "unknown_method"
    assert client.error("snapshot") == "unknown_method"  # ours alone
    # A missing parameter comes before the session.
    assert client.error("select_simulator") == "invalid_params"
    assert client.error("load_task") == "invalid_params"
    for method in ("list_tasks", "reset", "step", "get_info"):
        assert client.error(method) == "no_simulator_selected"
    assert client.error("load_task", task_name="reach") == "no_simulator_selected"
    assert client.error("select_simulator", simulator="mujoco") == "unknown_simulator"
    client.ask("select_simulator", simulator="fake")
    assert client.error("select_simulator", simulator="fake") == "simulator_already_selected"
    assert client.error("reset") == "no_task_loaded"
    assert client.error("step") == "no_task_loaded"
    assert client.error("load_task", task_name="nothing") == "task_not_found"
    client.ask("load_task", task_name="reach")
    assert client.error("step") == "not_reset"
    client.ask("reset")
    assert client.ask("step")["message"] == "Missing 'action' in step request"
    assert client.error("step", action={"action": [0.0]}) == "invalid_params"
    client.ask("disconnect")


def test_a_body_that_cannot_be_read_is_told_and_one_without_an_empty_frame_is_ignored(
    client: CenterClient,
) -> None:
    client.send(b"", b"\xc1garbage")
    assert client.receive() == {
        "status": "error",
        "error_type": "invalid_params",
        "message": "Failed to decode msgpack body",
    }
    client.send(msgpack.packb({"method": "list_simulators"}))
    assert not client.socket.poll(300)
    assert client.ask("list_simulators")["status"] == "ok"


@pytest.mark.parametrize(
    "action",
    [
        {"__type__": "ndarray", "shape": [3], "dtype": "object", "data": b"x" * 24},
        {"__type__": "ndarray", "shape": [3], "dtype": "float64", "data": b"x" * 23},
        {"__type__": "ndarray", "shape": [2**40, 2**40], "dtype": "float64", "data": b""},
        {"__type__": "ndarray", "shape": [-3], "dtype": "float64", "data": b""},
        {"__type__": "ndarray", "shape": [3], "dtype": "f8,f8", "data": b"x" * 24},
        ["text"] * 3,
        [10**18] * 5000,
        [float("nan")] * 3,
        None,
    ],
)
def test_an_action_that_lies_is_refused_and_the_episode_goes_on(client: CenterClient, action: Any) -> None:
    client.ask("select_simulator", simulator="fake")
    client.ask("load_task", task_name="reach")
    client.ask("reset")
    assert client.error("step", action={"action": action}) == "invalid_params"
    assert client.ask("step", action={"action": [0.0] * 3})["status"] == "ok"
    client.ask("disconnect")


def test_a_load_stalls_no_other_client(server: SimulatorServer) -> None:
    address = server.frontends[1].address
    with CenterClient(address) as slow, CenterClient(address) as quick:
        quick.ask("select_simulator", simulator="fake")
        quick.ask("load_task", task_name="reach")
        quick.ask("reset")
        loading = threading.Thread(target=slow.ask, args=("select_simulator",), kwargs={"simulator": "fake"})
        loading.start()  # a process is started and its modules are imported
        steps = 0
        while loading.is_alive():
            quick.ask("step", action={"action": [0.0] * 3})
            steps += 1
            if steps % 20 == 0:
                quick.ask("reset")
        loading.join()
        assert steps > 3


def test_a_session_ends_after_its_timeout_and_the_client_is_told() -> None:
    with running(session_timeout_s=0.5) as server:  # noqa: SIM117
        with CenterClient(server.frontends[1].address) as client:
            client.ask("select_simulator", simulator="fake")
            deadline = time.monotonic() + 10
            while server.service.capacity()["simulator_sessions"] and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.error("list_tasks") == "no_simulator_selected"


def test_the_token_is_asked_for_before_anything_else() -> None:
    with running(token="sesame") as server:  # noqa: SIM117
        with CenterClient(server.frontends[1].address) as client:
            assert client.error("list_simulators") == "unauthenticated"
            assert client.error("list_simulators", token="wrong") == "unauthenticated"
            assert client.ask("list_simulators", token="sesame")["status"] == "ok"
            assert client.ask("list_simulators")["status"] == "ok"


def test_its_variables_say_how_tasks_are_built() -> None:
    tasks = CenterTasks.from_environ(
        {
            "SIM_ROBOSUITE_ROBOT": "UR5e",
            "SIM_ROBOSUITE_CAMERA_NAMES": "frontview, agentview",
            "SIM_ROBOSUITE_REWARD_SHAPING": "true",
            "SIM_LIBERO_MAX_EPISODE_STEPS": "7",
        }
    )
    assert tasks.options("robosuite") == {
        "robot": "UR5e",
        "controller": None,
        "image_width": 256,
        "image_height": 256,
        "camera_names": ["frontview", "agentview"],
        "horizon": 1000,
        "reward_shaping": True,
        "names": "center",
    }
    assert tasks.options("libero")["horizon"] == 7
    assert tasks.options("highway") == {}


def test_its_variables_say_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_BIND_ADDRESS", "tcp://*:0")
    monkeypatch.setenv("SIM_SESSION_TIMEOUT_S", "12.5")
    with make_simulator_server(SimulatorFlags(host="127.0.0.1", port=0), SIMULATORS) as server:
        assert [frontend.name for frontend in server.frontends] == ["tcp", "center"]
        assert server.service.options.session_timeout_s == 12.5
    monkeypatch.setenv("SIM_BIND_ADDRESS", "5555")
    with pytest.raises(ConfigurationError, match=r"^SIM_BIND_ADDRESS is '5555', expected tcp://\*:PORT$"):
        make_simulator_server(SimulatorFlags(host="127.0.0.1", port=0), SIMULATORS)


def test_clients_without_the_token_take_no_place_from_its_holder() -> None:
    with running(token="sesame", max_connections=8, max_sessions=1) as server, ExitStack() as stack:
        address = server.frontends[1].address
        for _ in range(40):
            silent = stack.enter_context(socket.create_connection(address, timeout=10))
            silent.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03")
        for _ in range(6):  # fewer than the places, which libzmq would claim again ten times a second
            client = stack.enter_context(CenterClient(address))
            client.send(b"", msgpack.packb({"method": "select_simulator", "simulator": "fake"}))
        client = stack.enter_context(CenterClient(address))
        assert client.ask("list_simulators", token="sesame")["status"] == "ok"
        assert client.ask("select_simulator", simulator="fake")["status"] == "ok"


def test_a_client_that_holds_the_last_simulator_in_silence_loses_it_to_the_next_one() -> None:
    with running(session_timeout_s=1.0, max_sessions=1) as server, ExitStack() as stack:
        address = server.frontends[1].address
        silent = stack.enter_context(CenterClient(address))
        silent.ask("select_simulator", simulator="fake")
        client = stack.enter_context(CenterClient(address))
        assert client.error("select_simulator", simulator="fake") == "backend_error"
        wait_until(lambda: not server.service.capacity()["simulator_sessions"])
        assert client.ask("select_simulator", simulator="fake")["status"] == "ok"
        assert silent.error("list_tasks") == "no_simulator_selected"


@pytest.mark.parametrize("prefix", [b"\xff\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4000])
def test_garbage_and_half_sent_messages_hold_nobody_up(server: SimulatorServer, prefix: bytes) -> None:
    address = server.frontends[1].address
    with socket.create_connection(address, timeout=10) as hostile:
        hostile.sendall(prefix)
        with CenterClient(address) as client:
            assert client.ask("list_simulators")["status"] == "ok"


def test_a_request_that_is_too_large_is_answered() -> None:
    with running(max_payload=4096) as server:
        with CenterClient(server.frontends[1].address) as client:
            assert client.error("list_simulators", filler=b"x" * 8192) == "invalid_params"
        with CenterClient(server.frontends[1].address) as client:
            assert client.ask("list_simulators")["status"] == "ok"


def test_a_message_of_many_maps_costs_little(client: CenterClient) -> None:
    maps = msgpack.packb({"method": "step", "action": {"action": [{}] * 60_000}})
    client.send(b"", maps)
    assert client.receive()["message"] == "Failed to decode msgpack body"


def test_what_a_client_sends_is_quoted_in_short(client: CenterClient) -> None:
    reply = client.ask("x" * 60_000 + "\x1b[31m")
    assert len(reply["message"]) < 500
    assert reply["message"].isprintable()


def test_lift_is_as_the_center_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_ROBOSUITE_HORIZON", "2")
    monkeypatch.setenv("SIM_ROBOSUITE_RENDER_WIDTH", "64")
    with running(SIMULATORS) as server:  # noqa: SIM117
        with CenterClient(server.frontends[1].address) as client:
            client.ask("select_simulator", simulator="robosuite")
            info = client.ask("load_task", task_name="Lift")["task_info"]
            assert set(info) == {"task_name", "action_space", "max_episode_steps"}
            assert info["action_space"]["shape"] == [8]
            observation = client.ask("reset")["observation"]
            assert set(observation) == {
                *("robot0_joint_pos_cos", "robot0_joint_pos_sin", "robot0_joint_vel", "robot0_eef_pos"),
                *("robot0_eef_quat", "robot0_gripper_qpos", "robot0_gripper_qvel", "agentview_image"),
                *("robot0_eye_in_hand_image", "cube_pos", "cube_quat", "gripper_to_cube_pos"),
                *("robot0_proprio-state", "object-state"),
            }
            assert observation["agentview_image"].shape == (256, 64, 3)
            first = client.ask("step", action={"action": np.zeros(8).tolist()})
            assert (first["terminated"], first["truncated"]) == (False, False)
            last = client.ask("step", action={"action": described(np.zeros(8))})
            assert (last["terminated"], last["truncated"]) == (False, True)
            assert client.error("step", action={"action": [0.0] * 8}) == "not_reset"


def test_libero_is_as_the_center_serves_it(libero_assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_LIBERO_MAX_EPISODE_STEPS", "2")
    for side in ("WIDTH", "HEIGHT"):
        monkeypatch.setenv(f"SIM_LIBERO_RENDER_{side}", "64")
    with running({"libero": SIMULATORS["libero"]}) as server:  # noqa: SIM117
        with CenterClient(server.frontends[1].address) as client:
            client.ask("select_simulator", simulator="libero")
            tasks = client.ask("list_tasks")["tasks"]
            assert len(tasks) == 130
            name = next(task for task in tasks if "black_bowl_between" in task)
            info = client.ask("load_task", task_name=name)["task_info"]
            assert info["max_episode_steps"] == 2
            assert info["action_space"]["shape"] == [7]
            first, again = (client.ask("reset")["observation"] for _ in range(2))
            assert {name: array.shape for name, array in first.items()} == {
                "agentview_image": (64, 64, 3),
                "eye_in_hand_image": (64, 64, 3),
                "joint_positions": (7,),
                "joint_velocities": (7,),
                "ee_pos": (3,),
                "ee_quat": (4,),
                "gripper_position": (2,),
                "gripper_velocity": (2,),
            }
            for key, array in first.items():  # the initial state and the seed are the center's, 0 and 0
                np.testing.assert_array_equal(again[key], array)
            moved = {"joint_positions": described(np.full(6, 0.1)), "gripper": -1.0}
            stepped = client.ask("step", action=moved)
            assert (stepped["terminated"], stepped["truncated"]) == (False, False)
            assert not np.array_equal(stepped["observation"]["ee_pos"], first["ee_pos"])
            last = client.ask("step", action={"action": described(np.zeros(7))})
            assert (last["terminated"], last["truncated"]) == (False, True)
            assert client.error("step", action={"action": [0.0] * 7}) == "not_reset"
            client.ask("disconnect")


def test_success_ends_no_episode_of_robosuite_before_its_horizon() -> None:
    simulator = load("simulator", "robosuite", SIMULATORS)()
    try:
        options = TaskOptions(names="center", camera_names=(), horizon=2)
        assert simulator.load_task("Lift", options).action_dim == 8
        simulator.reset(seed=0)
        simulator._env._check_success = lambda: True
        first, last = (simulator.step(np.zeros(8)) for _ in range(2))
        assert (first.terminated, first.truncated, first.info["success"]) == (False, False, True)
        assert (last.terminated, last.truncated) == (True, False)
    finally:
        simulator.close()
