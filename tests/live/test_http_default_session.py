"""One environment over HTTP without a session, and Bench2Drive's environments on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from test_http_frontend import Browser

from benchmark.registry import SIMULATORS
from robowire.cli.fleet import FleetFlags, _variation
from robowire.cli.parser import parse
from robowire.client.http_simulator_client import HttpSimulatorClient
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    NotReset,
    RemoteProtocolError,
    RequestTimeout,
    UnknownMethod,
)
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.integrations.carla_env import CarlaEnv, VectorizedCarlaEnv
from robowire.integrations.gymnasium_env import RemoteEnv
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS
from server import COMMANDS

OPTIONS = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2.0, detached_grace_s=0.0, max_sessions=2)


def server_of(
    simulator: str | None, task: str | None, table: Any = FAKE_SIMULATORS, options: Any = OPTIONS
) -> SimulatorServer:
    http = HttpOptions(simulator=simulator, task=task)
    return SimulatorServer(table, options, frontends=[lambda service: HttpServer(service, http)])


@pytest.fixture
def browser() -> Iterator[Browser]:
    with server_of("fake", "reach") as server:
        yield Browser(server)


def test_the_nine_paths_need_no_session(browser: Browser) -> None:
    assert browser.get("/health").status == 200
    assert browser.post("/step", {"action": [0, 0, 0]}).error == (
        409,
        "no_simulator_selected",
        "POST /reset comes first: it starts the simulator",
    )
    first = browser.post("/reset").value
    assert first["spec"]["task"] == "reach"
    stepped = browser.post("/step", {"action": [1, 0, 0]}).value
    assert browser.get("/observation").value == stepped
    assert browser.get("/render").headers["content-type"] == "image/png"
    snapshot = browser.post("/snapshot/create").value["snapshot_id"]
    browser.post("/step", {"action": [1, 0, 0]})
    restored = browser.post("/snapshot/restore", {"snapshot_id": snapshot}).value
    assert restored["observation"]["position"] == stepped["observation"]["position"]
    assert browser.get("/snapshot/list").value["snapshots"][0]["snapshot_id"] == snapshot
    assert browser.get("/info").value["task"] == "reach"
    # Another client has the same environment, and the next reset goes on in it.
    assert browser.post("/reset").value["session"] == first["session"]
    assert browser.get("/health").value["simulator_sessions"] == 1


def test_options_of_a_reset_are_its_parameters(browser: Browser) -> None:
    assert browser.post("/reset", {"options": {"horizon": 1}}).value["spec"]["max_episode_steps"] == 1
    assert browser.post("/step", {"action": [0, 0, 0]}).value["truncated"] is True
    assert browser.post("/reset", {"seed": 1, "options": None}).status == 200
    assert browser.post("/reset", {"seed": 1, "options": {"seed": 2}}).error[1:] == (
        "invalid_params",
        "options names 'seed', which belongs in the body, once",
    )
    assert browser.post("/reset", {"options": [1]}).error[1] == "invalid_params"


def test_the_environment_is_built_again_where_its_simulator_died(browser: Browser) -> None:
    browser.post("/reset")
    browser.server.service.find(browser.post("/reset").value["session"]).kill()
    assert browser.post("/step", {"action": [0, 0, 0]}).status != 200
    assert browser.post("/reset").value["spec"]["task"] == "reach"
    assert browser.post("/step", {"action": [0, 0, 0]}).status == 200


def test_an_environment_without_a_task_is_told_by_its_first_reset() -> None:
    with server_of("fake", None) as server:
        browser = Browser(server)
        message = "reset needs 'task': this server was started with --simulator alone"
        assert browser.post("/reset").error == (422, "invalid_params", message)
        assert browser.post("/reset", {"task": "reach"}).status == 200


def test_an_unknown_simulator_is_found_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"^no simulator is called 'fakee'\. Did you mean 'fake'\?"):
        server_of("fakee", "reach")


def test_a_page_that_is_closed_gives_its_place_up() -> None:
    """What page.html sends on pagehide, as a browser sends it."""
    options = SimulatorServerOptions(
        host="127.0.0.1", port=0, drain_s=2.0, detached_grace_s=0.0, max_sessions=1
    )
    with server_of(None, None, options=options) as server:
        browser = Browser(server)
        page = browser.begin()
        body = {"simulator": "fake", "task": "reach"}
        assert browser.post("/reset", body).error[:2] == (503, "overloaded")
        headers = {"Sec_Fetch_Site": "same-origin", "Origin": browser.url}
        assert browser.post(f"/session/release?session={page.name}", b"", **headers).status == 200
        # It was reloaded, and goes on: its place is its own again.
        assert page.get("/observation").status == 200
        assert browser.post("/reset", body).error[:2] == (503, "overloaded")
        assert page.post("/session/release").status == 200
        assert browser.post("/reset", body).status == 200
        assert page.get("/observation").error[1] == "session_not_found"


def test_arrays_in_json_come_bit_for_bit(browser: Browser) -> None:
    url = browser.url
    with closing(CarlaEnv(url)) as ours, closing(
        RemoteEnv(address="{}:{}".format(*browser.server.address), simulator="fake", task="reach")
    ) as native:
        for seed in (0, 7):
            seen, wanted = ours.reset(seed=seed), native.reset(seed=seed)
            for _ in range(3):
                assert seen[0].keys() == wanted[0].keys()
                for name, array in wanted[0].items():
                    assert seen[0][name].dtype == array.dtype
                    np.testing.assert_array_equal(seen[0][name], array)
                assert seen[1:] == wanted[1:]
                action = native.action_space.sample()
                seen, wanted = ours.step(action), native.step(action)


@pytest.mark.filterwarnings("ignore:.*not within the observation space")
def test_gymnasiums_checker_accepts_carla_env(browser: Browser) -> None:
    with closing(CarlaEnv(browser.url, render_mode="rgb_array")) as env:
        check_env(env, skip_render_check=True)


def test_several_servers_are_one_vector_environment() -> None:
    with server_of("fake", "reach") as one, server_of("fake", "reach") as two:
        urls = [Browser(server).url for server in (one, two)]
        for server in (one, two):  # pydantic makes its schemas at a first request, in one thread only
            Browser(server).post("/reset")
        with closing(VectorizedCarlaEnv(server_urls=urls)) as envs:
            envs.reset(seed=[3, 4])
            actions = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
            envs.step(actions)
            snapshots = envs.save_snapshot()
            after = envs.step(actions)
            envs.step(actions)
            envs.restore_snapshot(snapshots)
            again = envs.step(actions)
            for name in after[0]:
                np.testing.assert_array_equal(after[0][name], again[0][name])
            with pytest.raises(ValueError, match="expected 2 ids"):
                envs.restore_snapshot(snapshots[:1])
    with pytest.raises(ValueError, match="names an address twice"):
        VectorizedCarlaEnv([urls[0], urls[0]])


@pytest.mark.parametrize(
    ("simulator", "task", "action_dim"), [("highway", "highway-v0", 3), ("robosuite", "Lift", 7)]
)
def test_it_drives_highway_and_robosuite(simulator: str, task: str, action_dim: int) -> None:
    with server_of(simulator, task, SIMULATORS) as server:  # noqa: SIM117
        with closing(CarlaEnv(server_url=Browser(server).url)) as env:
            env.reset(seed=1)
            action = np.zeros(action_dim, np.float32)
            env.step(action)
            if simulator == "robosuite":
                snapshot = env.save_snapshot()
                expected = env.step(action)[0]
                env.step(action)
                env.restore_snapshot(snapshot)
                found = env.step(action)[0]
                for name, array in expected.items():
                    np.testing.assert_array_equal(found[name], array)
            else:
                with pytest.raises(UnknownMethod, match="offers no snapshots"):
                    env.save_snapshot()
            if simulator == "highway":
                np.testing.assert_array_equal(env.action_space.low, np.float32([-1, -1, 0]))


def test_errors_are_those_of_our_clients(browser: Browser) -> None:
    with HttpSimulatorClient(browser.url) as client:
        client.load_task(horizon=1)
        assert client.step([0, 0, 0]).truncated
        with pytest.raises(NotReset):
            client.step([0, 0, 0])
    with pytest.raises(ConfigurationError, match=r"^server_url is 'localhost:1', expected http://host:port"):
        HttpSimulatorClient("localhost:1")
    with pytest.raises(ConnectFailed, match=r"^cannot connect to 127\.0\.0\.1:1: "):
        HttpSimulatorClient("http://127.0.0.1:1").load_task()
    with HttpSimulatorClient(browser.url) as client:  # noqa: SIM117
        with pytest.raises(RemoteProtocolError, match="is not of this wire"):
            client._call("GET", "/docs")


def test_each_server_of_a_fleet_has_the_next_port() -> None:
    flags = FleetFlags(num_services=2, http_port=8080, simulator="carla", task="route")
    assert _variation(flags, 0)[0] == ["--http_port", "8080"]
    words, environ = _variation(flags, 3)
    assert words == ["--http_port", "8083"]
    assert environ == {"ROBOWIRE_CARLA": "localhost:2006"}


def test_dashes_and_underscores_in_flags_are_the_same() -> None:
    words = ["--num-services", "4", "--gpus", "0,1", "--http-port", "8080", "--center_port", "9000"]
    flags, _ = parse("server.py", "fleet", COMMANDS["fleet"], words)
    assert (flags.num_services, flags.gpus, flags.http_port) == (4, ("0", "1"), 8080)
    assert _variation(flags, 2)[0] == ["--http_port", "8082", "--center_port", "9002"]


def test_a_reply_that_does_not_come_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "http://{}:{}".format(*silent.getsockname())
        with HttpSimulatorClient(url, timeout_s=0.2) as client:  # noqa: SIM117
            with pytest.raises(RequestTimeout, match=r"^no reply to POST /reset of .* within 0\.2 s$"):
                client.load_task()
