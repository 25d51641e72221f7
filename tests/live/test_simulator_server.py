"""The simulator port over real connections and processes: what it answers, and what it survives."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from robowire.errors import ConfigurationError
from robowire.interfaces import TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS, running_simulator_server
from robowire.testing.fake_simulator import FakeSimulator
from robowire.transport.connection import Connection
from robowire.version import __version__
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame
from server import main

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=2)) as server:
        yield server


class Peer:
    """A client written from the protocol alone."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = Connection.connect(*address, timeout_s=5)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, **params: Any) -> Any:
        return loads(self.connection.exchange(encode_frame({"method": method, **params}), timeout_s=30))

    def send(self, method: str, **params: Any) -> None:
        self.connection.send(encode_frame({"method": method, **params}), timeout_s=5)

    def error(self, method: str, **params: Any) -> tuple[str, str]:
        reply = self.ask(method, **params)
        assert reply["status"] == "error", reply
        return reply["error_type"], reply["message"]

    def begin(self, task: str = "reach", **options: Any) -> Any:
        """Select, load and reset; return the process's number."""
        for method, params in (
            ("select_simulator", {"simulator": "fake"}),
            ("load_task", {"task_name": task, **options}),
            ("reset", {"seed": 0}),
        ):
            reply = self.ask(method, **params)
            assert reply["status"] == "ok", reply
        return self.ask("get_info")["process"]["pid"]

    def step(self) -> Any:
        return self.ask("step", action=np.zeros(3))


@contextmanager
def peer(server: SimulatorServer) -> Iterator[Peer]:
    with Peer(server.address) as peer:
        yield peer


def wait_for_end(pid: int) -> None:
    """Return when the process has ended, and has been reaped where it is a child of ours."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = select.select([handle], [], [], 10)[0]
    os.close(handle)
    assert ended, f"process {pid} did not end"


# -- what it answers -----------------------------------------------------------------------------------------


def test_an_episode_from_the_first_call_to_the_last(server: SimulatorServer) -> None:
    here = FakeSimulator()
    with peer(server) as client:
        assert client.ask("hello")["server"] == "simulator"
        assert client.ask("list_simulators")["simulators"] == ["fake"]
        assert client.ask("select_simulator", simulator="fake") == {"status": "ok", "simulator": "fake"}
        assert client.ask("list_tasks", suite="sound") == {"status": "ok", "tasks": ["reach"]}
        spec = here.load_task("reach", TaskOptions(horizon=2))
        assert client.ask("load_task", task_name="reach", horizon=2) == {"status": "ok", **spec.to_wire()}
        first = client.ask("reset", seed=7)["observation"]
        assert first["goal"].tolist() == here.reset(seed=7)["goal"].tolist()
        result, expected = client.ask("step", action=[1, 0, 0]), here.step(np.array([1.0, 0, 0]))
        assert result["observation"]["position"].tolist() == expected.observation["position"].tolist()
        assert (result["reward"], result["terminated"], result["truncated"]) == (0.0, False, False)
        assert result["info"] == expected.info
        assert client.step()["truncated"] is True
        assert client.ask("render", camera_name="side")["image"].shape == (64, 64, 3)
        assert client.ask("ping") == {"status": "ok"}
        assert client.ask("stats")["operations"]["step"]["count"] == 2
        assert client.ask("disconnect") == {"status": "ok"}


def test_a_task_selected_with_the_simulator_need_not_be_named_again(server: SimulatorServer) -> None:
    with peer(server) as client:
        assert client.ask("select_simulator", simulator="fake:reach")["simulator"] == "fake"
        assert client.ask("load_task")["task"] == "reach"
        assert client.ask("load_task", task_name="raise_in_step")["task"] == "raise_in_step"
        client.ask("disconnect")
        client.ask("select_simulator", simulator="fake")
        assert client.error("load_task") == (
            "invalid_params",
            "load_task needs 'task_name': no task was selected with the simulator",
        )


def test_calls_in_the_wrong_order_are_refused(server: SimulatorServer) -> None:
    with peer(server) as client:
        for method, params in (("reset", {}), ("list_tasks", {}), ("load_task", {"task_name": "reach"})):
            assert client.error(method, **params) == ("no_simulator_selected", "select_simulator comes first")
        client.ask("select_simulator", simulator="fake")
        for method in ("reset", "render"):
            assert client.error(method) == ("no_task_loaded", "load_task comes first")
        assert client.error("step", action=[0, 0, 0]) == ("no_task_loaded", "load_task comes first")
        client.ask("load_task", task_name="reach", horizon=1)
        assert client.error("step", action=[0, 0, 0]) == ("not_reset", "reset comes before step")
        assert client.error("render") == ("not_reset", "reset comes before render")
        client.ask("reset")
        client.step()
        over = ("not_reset", "the episode is over: reset begins the next one")
        assert client.error("step", action=[0, 0, 0]) == over
        assert client.error("step_chunk", actions=[[0, 0, 0]]) == over
        assert client.ask("render")["status"] == "ok"
        client.ask("load_task", task_name="reach")
        assert client.error("step", action=[0, 0, 0]) == ("not_reset", "reset comes before step")


def test_names_that_are_not_there_are_refused_with_the_nearest(server: SimulatorServer) -> None:
    with peer(server) as client:
        assert client.error("select_simulator", simulator="fakd") == (
            "unknown_simulator",
            "no simulator is called 'fakd'. Did you mean 'fake'? Known: fake",
        )
        client.ask("select_simulator", simulator="fake")
        assert client.error("load_task", task_name="fly")[0] == "task_not_found"
        assert client.error("load_task", task_name="reach", camera_names=["top"]) == (
            "invalid_params",
            "no camera is called 'top'. Known: front, side, wrist",
        )
        assert client.error("loadtask", task_name="reach")[0] == "unknown_method"
        assert client.error("load_task", task="reach")[0] == "invalid_params"


def test_a_client_cannot_name_code(server: SimulatorServer) -> None:
    with peer(server) as client:
        error, _ = client.error(
            "select_simulator", simulator="robowire.testing.fake_simulator:make_simulator"
        )
        assert error == "unknown_simulator"


def test_a_session_runs_one_simulator(server: SimulatorServer) -> None:
    with peer(server) as client:
        client.ask("select_simulator", simulator="fake")
        assert client.error("select_simulator", simulator="fake") == (
            "simulator_already_selected",
            "this session runs 'fake' already: open another connection, or disconnect first",
        )


def test_after_disconnect_a_session_begins_anew(server: SimulatorServer) -> None:
    with peer(server) as client:
        pid = client.begin()
        client.ask("disconnect")
        assert not psutil.pid_exists(pid)
        assert client.error("reset") == ("no_simulator_selected", "select_simulator comes first")
        assert client.begin() != pid


def test_an_action_that_does_not_fit_costs_nothing(server: SimulatorServer) -> None:
    with peer(server) as client:
        client.begin(observation_format="meta")
        assert client.error("step", action=[0, np.nan, 0])[0] == "invalid_params"
        assert client.error("step", action=[0, 0])[0] == "spec_mismatch"
        assert client.error("step", action=MetaAction("joint", "delta", np.zeros(3)))[0] == "spec_mismatch"
        assert client.error("step_chunk", actions=[[0, 0, 0], [0, 0]])[0] == "spec_mismatch"
        assert client.step()["observation"].timestep == 1


def test_observations_leave_as_the_task_was_told(server: SimulatorServer) -> None:
    with peer(server) as client:
        client.begin(observation_format="meta", camera_names=["wrist", "front"])
        observation = client.ask("reset", seed=0)["observation"]
        assert isinstance(observation, MetaObs)
        assert observation.image is not None
        assert observation.image.shape == (2, 3, 64, 64)


def test_a_meta_action_moves_the_simulator(server: SimulatorServer) -> None:
    with peer(server) as client:
        client.begin()
        action = MetaAction("ee", "delta", np.array([1.0, 0, 0], np.float32))
        assert client.ask("step", action=action)["observation"]["position"][0] == pytest.approx(0.1, abs=0.01)


def test_a_chunk_ends_with_the_episode(server: SimulatorServer) -> None:
    with peer(server) as client:
        client.begin(horizon=3)
        chunk = client.ask("step_chunk", actions=np.zeros((5, 3)))
        assert (chunk["steps"], chunk["rewards"], chunk["truncated"]) == (3, [0.0] * 3, True)
        assert client.error("step", action=[0, 0, 0])[0] == "not_reset"


def test_info_grows_with_the_task(server: SimulatorServer) -> None:
    with peer(server) as client:
        before = client.ask("get_info")
        assert (before["simulators"], before["simulator"], before["task"]) == (["fake"], None, None)
        assert (before["session_timeout_s"], before["call_timeout_s"]) == (300.0, 60.0)
        assert "process" not in before
        assert (before["sessions"], before["warm"]) == ([], {})
        client.begin()
        after = client.ask("get_info")
        assert (after["simulator"], after["task"], after["action_dim"]) == ("fake", "reach", 3)
        assert after["process"]["versions"]["numpy"] == np.__version__
        assert after["sessions"] == [{"simulator": "fake", "task": "reach", "connected": True}]


def test_the_servers_defaults_give_way_to_the_clients(server: SimulatorServer) -> None:
    task = TaskOptions(camera_names=("side",), image_height=32, image_width=48)
    with running_simulator_server(task=task) as server, peer(server) as client:
        client.ask("select_simulator", simulator="fake")
        spec = client.ask("load_task", task_name="reach", image_height=16)
        assert (spec["camera_names"], spec["image_height"], spec["image_width"]) == (["side"], 16, 48)


def test_a_default_that_no_client_could_send_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"^image_height is -1, expected a whole number, 1 or more$"):
        SimulatorServer(
            FAKE_SIMULATORS,
            SimulatorServerOptions(host="127.0.0.1", port=0),
            task=TaskOptions(image_height=-1),
        )


def test_a_line_of_text_tells_which_sessions_run(server: SimulatorServer) -> None:
    with peer(server) as waiting, peer(server) as client:
        waiting.ask("hello", resumable=True)
        waiting.begin()
        waiting.connection.close()
        client.ask("select_simulator", simulator="fake")
        with socket.create_connection(server.address, timeout=5) as sock:
            sock.sendall(b"INFO\nQUIT\n")
            answer = json.loads(b"".join(iter(lambda: sock.recv(4096), b"")).partition(b"\n")[0])
    assert (answer["simulators"], answer["version"]) == (["fake"], __version__)
    assert sorted(answer["sessions"], key=lambda session: session["connected"]) == [
        {"simulator": "fake", "task": "reach", "connected": False},
        {"simulator": "fake", "task": None, "connected": True},
    ]


def test_text_works_too(server: SimulatorServer) -> None:
    with socket.create_connection(server.address, timeout=5) as sock:
        sock.sendall(b"PING\nINFO\nQUIT\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.startswith(b'PONG\n{"server":"simulator",')
    assert answer.endswith(b"\nBYE\n")


# -- what it survives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["exit_in_step", "segfault_in_step", "hang_in_step"])
def test_a_crash_or_hang_costs_one_episode_of_one_session(task: str) -> None:
    options = SimulatorServerOptions(call_timeout_s=2.0, drain_s=2)
    with running_simulator_server(options) as server, peer(server) as bad, peer(server) as good:
        good.begin()
        pid = bad.begin(task)
        bad.send("step", action=np.zeros(3))
        assert good.step()["status"] == "ok"  # meanwhile
        reply = loads(bad.connection.receive(wait_s=10, finish_s=10))  # type: ignore[arg-type]
        assert reply["error_type"] == "backend_error"
        assert not psutil.pid_exists(pid)
        for method, params in (("step", {"action": [0, 0, 0]}), ("reset", {}), ("render", {})):
            assert bad.error(method, **params) == ("backend_error", reply["message"])
        assert bad.ask("get_info")["task"] is None
        assert good.step()["status"] == "ok"
        assert bad.ask("load_task", task_name="reach")["status"] == "ok"  # in a new process
        assert bad.ask("reset", seed=0)["status"] == "ok"
        assert bad.step()["status"] == "ok"


def test_an_exception_in_the_middle_of_an_episode_ends_the_episode(server: SimulatorServer) -> None:
    with peer(server) as client:
        pid = client.begin("raise_in_step")
        assert client.error("step", action=[0, 0, 0]) == (
            "backend_error",
            "step failed in fake: RuntimeError: the fake fails in step",
        )
        assert client.error("step", action=[0, 0, 0]) == (
            "not_reset",
            "the simulator failed in the middle of the episode: reset begins another",
        )
        assert client.ask("reset")["status"] == "ok"
        assert client.ask("get_info")["process"]["pid"] == pid


def test_a_hang_in_reset_has_a_deadline_of_its_own() -> None:
    options = SimulatorServerOptions(load_timeout_s=3, drain_s=2)
    with running_simulator_server(options) as server, peer(server) as client:
        client.ask("select_simulator", simulator="fake")
        client.ask("load_task", task_name="hang_in_reset")
        error, message = client.error("reset")
        assert error == "backend_error"
        assert message.startswith("the simulator process did not answer 'reset' within 3 s and was killed")


def test_a_process_killed_in_the_middle_of_a_step_is_an_error(server: SimulatorServer) -> None:
    with peer(server) as client:
        pid = client.begin("hang_in_step")
        client.send("step", action=np.zeros(3))
        os.kill(pid, signal.SIGKILL)
        reply = loads(client.connection.receive(wait_s=10, finish_s=10))  # type: ignore[arg-type]
        assert reply["message"].startswith("the simulator process was killed by SIGKILL during 'step'")


def test_a_simulator_too_many_is_told_so_until_one_leaves(server: SimulatorServer) -> None:
    with peer(server) as first, peer(server) as second, peer(server) as third:
        first.begin()
        second.begin()
        assert third.error("select_simulator", simulator="fake") == (
            "overloaded",
            "all 2 simulator sessions are taken; try again later",
        )
        first.ask("disconnect")
        assert third.ask("select_simulator", simulator="fake")["status"] == "ok"


def test_a_simulator_that_cannot_start_takes_no_place() -> None:
    options = SimulatorServerOptions(max_sessions=1, drain_s=2)
    with running_simulator_server(options, pythons={"fake": "/nowhere/python"}) as server, peer(
        server
    ) as client:
        for _ in range(2):
            assert client.error("select_simulator", simulator="fake") == (
                "backend_error",
                "cannot start 'fake' with /nowhere/python: No such file or directory",
            )
        assert client.error("reset") == ("no_simulator_selected", "select_simulator comes first")


def test_a_client_that_is_gone_takes_its_simulator_with_it(server: SimulatorServer) -> None:
    with peer(server) as client:
        pid = client.begin()
    wait_for_end(pid)


def test_a_client_that_is_gone_in_the_middle_of_a_step_takes_its_simulator_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_simulator_server() as server:
        assert server.service.options.call_timeout_s == 60  # so it is not this that ends the simulator
        with peer(server) as client:
            pid = client.begin("hang_in_step")
            client.send("step", action=np.zeros(3))
        wait_for_end(pid)
    assert (
        f"client #1: simulator process {pid} was killed during 'step', as its client has left" in caplog.text
    )


def test_a_client_that_ended_its_half_of_the_connection_still_gets_its_answer(
    server: SimulatorServer,
) -> None:
    requests = [("select_simulator", {"simulator": "fake"}), ("load_task", {"task_name": "reach"})]
    with socket.create_connection(server.address, timeout=20) as sock:
        for method, params in requests:
            sock.sendall(b"".join(encode_frame({"method": method, **params})))
        sock.shutdown(socket.SHUT_WR)
        connection = Connection(sock)
        for _ in requests:
            payload = connection.receive(wait_s=20, finish_s=20)
            assert isinstance(payload, bytearray)
            assert loads(payload)["status"] == "ok"


def test_a_session_that_says_nothing_ends() -> None:
    options = SimulatorServerOptions(session_timeout_s=0.5, drain_s=2)
    with running_simulator_server(options) as server, peer(server) as client:
        pid = client.begin()
        wait_for_end(pid)
        assert client.connection.receive(wait_s=5, finish_s=5) is None


def test_a_server_that_closes_ends_even_a_simulator_that_hangs() -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=0.5)) as server, peer(server) as client:
        pid = client.begin("hang_in_step")
        client.send("step", action=np.zeros(3))
    assert not psutil.pid_exists(pid)


# -- the program ---------------------------------------------------------------------------------------------


@contextmanager
def running_program(*flags: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """Run ``server.py simulator`` with the fake simulator; yield it and its address."""
    fake = FAKE_SIMULATORS["fake"].target
    command = [sys.executable, "server.py", "simulator", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [*command, "--simulators", fake, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    ) as program:
        try:
            assert program.stdout is not None
            line = next(line for line in program.stdout if line.startswith("listening on "))
            host, _, port = line.split()[2].rstrip(":").rpartition(":")
            yield program, (host, int(port))
        finally:
            program.kill()


def begin_with_the_program(client: Peer, task: str) -> int:
    client.ask("select_simulator", simulator=FAKE_SIMULATORS["fake"].target)
    client.ask("load_task", task_name=task)
    client.ask("reset", seed=0)
    return int(client.ask("get_info")["process"]["pid"])


@pytest.mark.parametrize("task", ["reach", "hang_in_step"])
def test_sigterm_ends_the_program_and_its_simulators(task: str) -> None:
    with running_program("--drain_s", "1") as (program, address), Peer(address) as client:
        pid = begin_with_the_program(client, task)
        client.send("step", action=np.zeros(3))
        program.terminate()
        assert program.wait(10) == 0
        wait_for_end(pid)


@pytest.mark.parametrize("task", ["reach", "hang_in_step"])
def test_a_program_that_is_killed_takes_its_simulators_with_it(task: str) -> None:
    with running_program() as (program, address), Peer(address) as client:
        pid = begin_with_the_program(client, task)
        client.send("step", action=np.zeros(3))
        program.kill()
        wait_for_end(pid)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--simulators", "foo"), "simulators names 'foo', expected module:function. Offered already: "),
        (
            ("--simulator_python", "robosuite"),
            "simulator_python is 'robosuite', expected a simulator and its ",
        ),
        (
            ("--simulator_python", "robosuite=/nowhere/python"),
            "simulator_python of 'robosuite': there is no program '/nowhere/python'\n",
        ),
        (
            ("--simulator_python", f"robosuit={sys.executable}"),
            "simulator_python names 'robosuit', which is no simulator here. Did you mean 'robosuite'?",
        ),
        (("--image_height", "0"), "image_height is 0, expected a whole number, 1 or more\n"),
        (
            ("--session_timout_s", "3"),
            "unrecognized arguments: --session_timout_s 3. Did you mean '--session_timeout_s'?\n",
        ),
        (("--warm", "-1"), "warm is -1, expected 0 or more processes\n"),
        (("--max_session_mb", "-1"), "max_session_mb is -1.0, expected 0 or more\n"),
        (("--session_timeout_s", "0"), "session_timeout_s is 0.0, expected a number of seconds above 0\n"),
    ],
)
def test_an_option_that_cannot_be_used_ends_the_program(
    flags: Sequence[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulator", "--port", "0", *flags]) == 2
    assert capfd.readouterr().err.startswith(f"server.py simulator: {complaint}")


def test_variables_are_options_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOWIRE_SIM_CAMERA_NAMES", "front,wrist")
    monkeypatch.setenv("ROBOWIRE_SIM_CONTROL_HZ", "10")
    monkeypatch.setenv("ROBOWIRE_SIM_SESSION_TIMEOUT_S", "20")
    with running_program() as (_, address), Peer(address) as client:
        client.ask("select_simulator", simulator=FAKE_SIMULATORS["fake"].target)
        spec = client.ask("load_task", task_name="reach")
        assert (spec["camera_names"], spec["control_hz"]) == (["front", "wrist"], 10.0)
        assert client.ask("get_info")["session_timeout_s"] == 20.0
