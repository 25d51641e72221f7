"""Fleets of real servers: clients are spread, what dies is replaced, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from certificates import Certificates
from raw_client import RawClient
from server_process import PATIENCE_S, ROOT, ServerProcess, run_server, shown_python

import client as client_program
from benchmark.registry import SIMULATORS
from robowire.cli.fleet import FleetFlags, make_fleet
from robowire.cli.parser import parse
from robowire.cli.simulator import SimulatorFlags
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import (
    ConfigurationError,
    ConnectionLost,
    Overloaded,
    SessionNotFound,
    SimulatorAlreadySelected,
    TlsFailed,
    Unauthenticated,
)
from robowire.fleet.fleet_client import ask_fleet
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.options import FleetOptions
from robowire.fleet.probe import service_tls
from robowire.integrations.gymnasium_env import RemoteEnv, RemoteVectorEnv
from robowire.serving.sessions import Peer
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.tcp import TcpOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server, running_simulator_server
from robowire.transport.stream import Stream
from robowire.wire.messages import Request
from server import COMMANDS

FAKE = "robowire.testing.fake_simulator:make_simulator"
ACTION = np.array([0.1, 0.1, 0.0])


@contextmanager
def running_fleet(
    num_services: int = 2,
    *flags: str,
    token: str | None = None,
    tls: dict[str, str] | None = None,
    wait: bool = True,
    **options: Any,
) -> Iterator[FleetServer]:
    """Run a fleet in this process, its services as processes; ``flags`` are theirs."""
    quick: dict[str, Any] = {"health_interval_s": 0.1, "health_timeout_s": 10.0, "backoff_s": 0.1}
    fleet_options = FleetOptions(num_services=num_services, **{**quick, **options})
    tcp = TcpOptions(host="127.0.0.1", port=0, drain_s=2.0, token=token, **(tls or {}))
    flags += tuple(word for name, path in (tls or {}).items() for word in (f"--{name}", path))
    serve = ["simulator", "--simulators", FAKE, "--host", "127.0.0.1", "--drain_s", "2"]
    command = [sys.executable, str(ROOT / "server.py"), *serve, "--log_level", "warning", *flags]
    with FleetServer(fleet_options, tcp, command) as fleet:
        if wait:
            wait_until(lambda: states(fleet) == ["healthy"] * num_services, fleet)
        yield fleet


def wait_until(condition: Callable[[], bool], fleet: FleetServer) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, fleet.rows()
        time.sleep(0.02)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def states(fleet: FleetServer) -> list[str]:
    return [row["state"] for row in fleet.rows()]


def begin(client: SimulatorClient) -> SimulatorClient:
    client.select_simulator(FAKE)
    client.load_task("reach", camera_names=[])
    client.reset(seed=1)
    return client


def service_of(client: SimulatorClient) -> str:
    return (client.session_token or "").partition("@")[2]


def pid_of(fleet: FleetServer, service: str) -> int:
    (pid,) = (row["pid"] for row in fleet.rows() if row["service"] == service)
    return int(pid)


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet(2, "--max_sessions", "4") as fleet:
        yield fleet


@pytest.fixture
def calm(fleet: FleetServer) -> FleetServer:
    """The same, with two healthy services and no session, whatever a test did before."""
    wait_until(lambda: states(fleet) == ["healthy"] * 2, fleet)
    wait_until(lambda: all(row["sessions"] == 0 for row in fleet.rows()), fleet)
    return fleet


# -- where clients go ----------------------------------------------------------------------------------------


def test_two_clients_land_on_two_services(calm: FleetServer) -> None:
    with SimulatorClient(*calm.address) as first, SimulatorClient(*calm.address) as second:
        assert {service_of(begin(client)) for client in (first, second)} == {
            row["service"] for row in calm.rows()
        }


def test_a_client_without_redirects_acquires_an_address(calm: FleetServer) -> None:
    with RawClient(calm.address) as asking:
        acquired = asking.ask_pickled({"method": "acquire"})
    host, _, port = acquired["address"].rpartition(":")
    assert (acquired["status"], host) == ("ok", "127.0.0.1")
    with RawClient((host, int(port))) as raw:
        assert raw.ask_pickled({"method": "select_simulator", "simulator": FAKE})["status"] == "ok"
        raw.ask({"method": "disconnect"})


def test_a_client_that_does_not_ask_for_a_redirect_gets_an_error(calm: FleetServer) -> None:
    with RawClient(calm.address) as raw:
        assert raw.ask_pickled({"method": "select_simulator", "simulator": FAKE}) == {
            "status": "error",
            "error_type": "unknown_method",
            "message": "a fleet does not answer 'select_simulator' itself: ask 'acquire' for the address of "
            "a simulator server, or say hello with 'redirect': True",
        }
        assert "redirect" not in raw.hello()


def test_a_session_that_waits_is_found_by_its_token(calm: FleetServer) -> None:
    first = begin(SimulatorClient(*calm.address))
    position = first.step(ACTION).observation["position"]
    first._session.connection.close()  # type: ignore[union-attr]
    for _ in range(3):  # wherever the fleet would send a new client
        with SimulatorClient(*calm.address) as other:
            other.ping()
    with SimulatorClient(*calm.address) as second:
        assert second.resume(first.session_token or "").observation["position"].tolist() == position.tolist()
        assert second.session_token == first.session_token


def test_forks_are_found_by_their_tokens(calm: FleetServer) -> None:
    with SimulatorClient(*calm.address) as parent:
        tokens = begin(parent).fork(parent.snapshot(), 2)
        for token in tokens:
            with SimulatorClient(*calm.address) as child:
                child.resume(token)
                child.step(ACTION)


def test_a_client_that_runs_a_simulator_does_not_move_to_another_service(calm: FleetServer) -> None:
    with SimulatorClient(*calm.address) as first, SimulatorClient(*calm.address) as second:
        begin(first), begin(second)
        with pytest.raises(SimulatorAlreadySelected):
            first.resume(second.session_token or "")
        first.step(ACTION)


def test_a_connection_that_drops_is_taken_up_again(calm: FleetServer) -> None:
    with SimulatorClient(*calm.address) as client:
        token = begin(client).session_token
        before = client.step(ACTION).observation["position"]
        client._session.connection.stop_reading()  # type: ignore[union-attr]
        after = client.step(ACTION).observation["position"]
        assert (after > before).all()
        assert client.session_token == token


def test_a_token_of_a_service_that_never_was_is_refused(calm: FleetServer) -> None:
    with SimulatorClient(*calm.address) as client, pytest.raises(
        SessionNotFound, match=r"^service 9\.9 has ended, and its sessions with it$"
    ):
        client.resume("token@9.9")


def test_gymnasium_environments_spread(calm: FleetServer) -> None:
    host, port = calm.address
    where = {"address": f"{host}:{port}", "simulator": FAKE, "task": "reach", "camera_names": []}
    envs = RemoteVectorEnv(4, **where)  # type: ignore[arg-type]
    envs.reset(seed=0)
    env = RemoteEnv(**where)  # type: ignore[arg-type]
    assert env.reset(seed=0)[0]["position"].tolist() == [0, 0]
    assert sorted(service_of(one._client) for one in envs.envs) == sorted(
        2 * [row["service"] for row in calm.rows()]
    )
    env.close()
    envs.close()


def test_evaluate_takes_the_address_of_a_fleet(calm: FleetServer, tmp_path: Path) -> None:
    host, port = calm.address
    policy = ConstantPolicy(
        PolicySpec(policy="constant", camera_names=(), chunk_size=4, action_dim=3, ctrl_type="delta")
    )
    with running_server(policy) as server:
        flags = ["--address", f"127.0.0.1:{server.address[1]}", "--simulator_address", f"{host}:{port}"]
        flags += ["--simulator", FAKE, "--task", "reach", "--num_episodes", "4", "--num_envs", "2"]
        flags += ["--output_dir", str(tmp_path), "--record_video", "off"]
        assert client_program.main(["evaluate", *flags]) == 0


# -- what dies is replaced -----------------------------------------------------------------------------------


def test_a_killed_service_is_replaced_and_costs_its_own_sessions_only(calm: FleetServer) -> None:
    with SimulatorClient(*calm.address) as one, SimulatorClient(*calm.address) as other:
        begin(one), begin(other)
        lost = service_of(one)
        os.kill(pid_of(calm, lost), signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(
            ConnectionLost, match=rf"session ended: service {re.escape(lost)} has ended, and its sessions"
        ):
            one.step(ACTION)
        assert time.monotonic() - started < 10  # and not reconnect_s
        other.step(ACTION)
        one.connect()
        begin(one).step(ACTION)
        number, launch = lost.split(".")
        again = f"{number}.{int(launch) + 1}"
        wait_until(lambda: ("healthy", again) in [(r["state"], r["service"]) for r in calm.rows()], calm)
        other.step(ACTION)


def test_a_vector_environment_goes_on_elsewhere_when_a_service_dies(calm: FleetServer) -> None:
    host, port = calm.address
    where = {"address": f"{host}:{port}", "simulator": FAKE, "task": "reach", "camera_names": []}
    envs = RemoteVectorEnv(2, **where)  # type: ignore[arg-type]
    try:
        envs.reset(seed=0)
        actions = np.zeros((2, 3), np.float32)
        os.kill(pid_of(calm, service_of(envs.envs[0]._client)), signal.SIGKILL)
        assert envs.step(actions)[4]["alive"].tolist() == [False, True]
        assert envs.step(actions)[4]["alive"].tolist() == [True, True]
    finally:
        envs.close()


def test_a_service_that_hangs_is_given_no_clients_and_then_replaced() -> None:
    with running_fleet(2, health_timeout_s=0.3, unhealthy_s=1.0) as fleet:
        hung = fleet.rows()[0]
        os.kill(hung["pid"], signal.SIGSTOP)
        wait_until(lambda: states(fleet)[0] == "unhealthy", fleet)
        for _ in range(3):
            with SimulatorClient(*fleet.address) as client:
                assert service_of(begin(client)) == fleet.rows()[1]["service"]
        wait_until(lambda: fleet.rows()[0]["restarts"] == 1 and states(fleet) == ["healthy"] * 2, fleet)
        assert not psutil.pid_exists(hung["pid"])


def test_a_client_that_is_sent_to_a_service_which_is_ending_is_sent_to_another_one() -> None:
    with running_fleet(2, health_interval_s=30.0) as fleet, SimulatorClient(*fleet.address) as busy:
        busy.select_simulator(FAKE)
        busy.load_task("hang_in_reset", camera_names=[])
        (ending,) = (row for row in fleet.rows() if row["service"] == service_of(busy))

        def hang() -> None:
            with pytest.raises(ConnectionLost):
                busy.reset()

        hanging = threading.Thread(target=hang)
        hanging.start()
        time.sleep(0.2)  # until the request is in hand: then the service drains for as long as it may
        os.kill(ending["pid"], signal.SIGTERM)
        wait_until(lambda: not listens(ending["address"]), fleet)
        assert states(fleet) == ["healthy", "healthy"]  # the next look comes later
        for _ in range(4):
            with SimulatorClient(*fleet.address) as client:
                client.ping()
        hanging.join()


@pytest.fixture
def hungry() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield "hungry_simulator:make_simulator"


def test_services_that_grow_alike_are_replaced_one_after_the_other(hungry: str) -> None:
    with running_fleet(2, "--simulators", hungry, max_service_mb=200.0, steady_s=0.1) as fleet:
        clients = [SimulatorClient(*fleet.address) for _ in range(2)]
        for client in clients:
            client.select_simulator(hungry)
            client.load_task("reach", camera_names=[])
        wait_until(lambda: min(row["memory_mb"] for row in fleet.rows()) > 200, fleet)
        wait_until(lambda: "draining" in states(fleet), fleet)
        time.sleep(0.5)  # several looks
        assert sorted(states(fleet)) == ["draining", "healthy"]
        with SimulatorClient(*fleet.address) as another:
            another.ping()
        for client in clients:
            client.disconnect()


def test_a_service_that_grew_too_large_is_replaced_after_its_session(hungry: str) -> None:
    with running_fleet(1, "--simulators", hungry, max_service_mb=200.0, steady_s=0.1) as fleet:
        with SimulatorClient(*fleet.address) as client:
            client.select_simulator(hungry)
            client.load_task("reach", camera_names=[])
            wait_until(lambda: states(fleet) == ["draining"], fleet)
            client.reset(seed=1)
            with pytest.raises(
                Overloaded,
                match=r"^no service of this fleet is ready \(1 draining\); try again later$",
            ):
                SimulatorClient(*fleet.address).connect()
            client.step(ACTION)
        wait_until(lambda: states(fleet) == ["healthy"], fleet)
        (row,) = fleet.rows()
        assert (row["service"], row["restarts"]) == ("1.2", 1)


def test_the_reason_of_a_service_that_cannot_start_is_shown() -> None:
    with running_fleet(1, "--max_sessions", "0", wait=False) as fleet:
        wait_until(lambda: fleet.rows()[0]["restarts"] >= 2, fleet)
        assert fleet.rows()[0]["reason"] == (
            "exited with code 2: server.py simulator: max_sessions is 0, expected at least 1"
        )


# -- what they get -------------------------------------------------------------------------------------------


def test_a_taken_port_is_left_out_and_gpus_and_cores_are_shared() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        with running_fleet(2, first_service_port=first, gpus=("0", "1"), cores_per_service=1) as fleet:
            ports = [int(row["address"].rpartition(":")[2]) for row in fleet.rows()]
            assert first not in ports
            assert min(ports) > first
            for row, gpu in zip(fleet.rows(), "01"):
                process = psutil.Process(row["pid"])
                assert (row["gpu"], process.environ()["CUDA_VISIBLE_DEVICES"]) == (gpu, gpu)
                assert process.environ()["MUJOCO_EGL_DEVICE_ID"] == gpu
                assert process.cpu_affinity() == [int(row["cores"])]
            assert len({row["cores"] for row in fleet.rows()}) == min(2, len(os.sched_getaffinity(0)))


def test_a_token_is_the_fleets_and_its_services() -> None:
    with running_fleet(1, token="secret") as fleet:
        with SimulatorClient(*fleet.address, token="secret") as client:
            begin(client)
        with pytest.raises(Unauthenticated):
            SimulatorClient(*fleet.address, token="guessed").connect()
        with RawClient(fleet.address) as raw:
            assert raw.ask({"method": "acquire"})["error_type"] == "unauthenticated"
        (row,) = fleet.rows()
        assert "secret" not in " ".join(psutil.Process(row["pid"]).cmdline())


def test_without_a_token_a_fleet_is_changed_from_its_own_machine_only() -> None:
    with running_fleet(0) as fleet:
        other = fleet.service.open_session(Peer("192.0.2.1:50000"))
        for request in (Request("scale", {"num_services": 1}), Request("stop")):
            with pytest.raises(Unauthenticated, match=r"^without a token the fleet is changed from its own"):
                fleet.service._execute(other, request)
        assert fleet.rows() == []
        with RawClient(fleet.address) as raw:
            assert raw.ask({"method": "scale", "num_services": 0})["status"] == "ok"
        fleet.service.close_session(other)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
def test_a_fleet_and_its_services_speak_tls(certificates: Certificates, mutual: bool) -> None:
    tls = {"tls_cert": certificates.server_cert, "tls_key": certificates.server_key}
    shown: dict[str, Any] = {"ca": certificates.ca}
    if mutual:
        tls["tls_client_ca"] = certificates.ca
        shown.update(tls_cert=certificates.client_cert, tls_key=certificates.client_key)
    with running_fleet(1, tls=tls, token="secret") as fleet:  # healthy: the probe got through
        with SimulatorClient(*fleet.address, token="secret", **shown) as client:
            assert begin(client).step(ACTION).reward is not None
            assert service_of(client) == fleet.rows()[0]["service"]
        command = Path(f"/proc/{fleet.rows()[0]['pid']}/cmdline").read_bytes()
        assert b"secret" not in command
        assert certificates.server_cert.encode() in command
        plain = Stream.connect("127.0.0.1", int(fleet.rows()[0]["address"].rpartition(":")[2]), timeout_s=5)
        plain.send([b"hello there, is this plain?"], timeout_s=5)
        assert plain.recv_into((memoryview(bytearray(1)),), 5) in (0, 1)  # an alert, or the end
        plain.close()


def test_the_probe_of_a_fleet_trusts_its_own_certificate_alone(certificates: Certificates) -> None:
    own = TcpOptions(tls_cert=certificates.server_cert, tls_key=certificates.server_key)
    other = dataclasses.replace(own, tls_cert=certificates.elsewhere_cert, tls_key=certificates.elsewhere_key)
    options = SimulatorServerOptions(tls_cert=own.tls_cert, tls_key=own.tls_key)
    with running_simulator_server(options) as server:  # one authority signed both certificates
        for tcp, trusted in ((own, True), (other, False)):
            client = SimulatorClient(*server.address, tls=service_tls(tcp) or False)
            if trusted:
                client.ping()
                client.disconnect()
            else:
                with pytest.raises(TlsFailed):
                    client.connect()


def test_it_grows_and_shrinks_while_it_runs_and_leaves_nothing_behind() -> None:
    def present() -> tuple[set[psutil.Process], set[threading.Thread]]:
        return set(psutil.Process().children(recursive=True)), set(threading.enumerate())

    before = present()
    with running_fleet(1) as fleet, SimulatorClient(*fleet.address) as first:
        begin(first)
        fleet.supervisor.scale(2)
        wait_until(lambda: states(fleet) == ["healthy"] * 2, fleet)
        with SimulatorClient(*fleet.address) as second:
            begin(second)
            assert service_of(second) != service_of(first)
            fleet.supervisor.scale(0)
            wait_until(lambda: states(fleet) == ["draining"] * 2, fleet)
            first.step(ACTION)
            second.step(ACTION)
        wait_until(lambda: states(fleet) == ["draining"], fleet)
        first.step(ACTION)
        first.disconnect()
        wait_until(lambda: states(fleet) == [], fleet)
        fleet.supervisor.scale(1)
        wait_until(lambda: states(fleet) == ["healthy"], fleet)
    assert present() == before


def test_a_probe_with_http_is_answered(calm: FleetServer) -> None:
    host, port = calm.address
    with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=5) as reply:
        assert reply.read() == b"ok\n"
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    assert 'robowire_fleet_services{state="healthy"} 2' in text


# -- the program ---------------------------------------------------------------------------------------------


def fleet_process(tmp_path: Path, *flags: str) -> ServerProcess:
    quick = ("--host", "127.0.0.1", "--simulator", FAKE, "--health_interval_s", "0.1", "--drain_s", "2")
    return ServerProcess(tmp_path / "log", *quick, *flags, command=("fleet",))


def status(server: ServerProcess, *words: str) -> str:
    host, port = server.address
    ended = run_server("fleet", *words, "--address", f"{host}:{port}")
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def rows(server: ServerProcess) -> list[dict[str, Any]]:
    return list(ask_fleet(*server.address, "list_services")["services"])


def wait_for_services(
    server: ServerProcess, count: int, *, patience_s: float = PATIENCE_S
) -> list[psutil.Process]:
    deadline = time.monotonic() + patience_s
    while [row["state"] for row in rows(server)] != ["healthy"] * count:
        assert time.monotonic() < deadline, (rows(server), server.log)
        time.sleep(0.1)
    return psutil.Process(server.process.pid).children(recursive=True)


def test_the_program_is_scaled_and_stopped(tmp_path: Path) -> None:
    with fleet_process(tmp_path, "--num_services", "1", "--max_sessions", "3") as server:
        port = server.address[1]
        assert server.banner == [
            "a fleet of 1 simulator servers, engine local",
            f"listening on 127.0.0.1:{port}: 127.0.0.1:{port}",
            f"try it: {shown_python()} server.py fleet status --address 127.0.0.1:{port}",
        ]
        wait_for_services(server, 1)
        assert re.search(
            r"^1\.1      127\.0\.0\.1:\d+  healthy  0/3 ", status(server, "status"), re.MULTILINE
        )
        message = f"the fleet at 127.0.0.1:{port} goes to 2 servers: see fleet status\n"
        assert status(server, "scale", "2") == message
        services = wait_for_services(server, 2)
        assert len(services) == 2
        stopping = f"the fleet at 127.0.0.1:{port} finishes the requests in hand and ends\n"
        assert status(server, "stop") == stopping
        assert server.wait() == 0
        assert not any(service.is_running() for service in services)
        assert "Traceback" not in server.log


def test_after_a_signal_it_lets_requests_finish_and_exits_0(tmp_path: Path) -> None:
    with fleet_process(tmp_path, "--num_services", "2") as server:
        services = wait_for_services(server, 2)
        with SimulatorClient(*server.address, reconnect_s=0) as client:
            begin(client)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        assert not any(service.is_running() for service in services)
        assert server.log.count("exited with code 0") == 2


def test_killed_it_leaves_no_orphan(tmp_path: Path) -> None:
    with fleet_process(tmp_path, "--num_services", "2") as server:
        wait_for_services(server, 2)
        with SimulatorClient(*server.address, reconnect_s=0) as client:
            begin(client)
            family = psutil.Process(server.process.pid).children(recursive=True)
            assert len(family) == 3
            server.signal(signal.SIGKILL)
            assert psutil.wait_procs(family, timeout=10)[1] == []


def test_a_service_gets_the_flags_of_its_fleet() -> None:
    flags = FleetFlags(
        num_services=0,
        simulator=FAKE,
        simulators=("my.module:make", "other:make"),
        max_sessions=3,
        reward_shaping=False,
        control_hz=12.5,
        camera_names=("front", "wrist"),
        host="127.0.0.1",
        snapshot_dir="with a space",
        token="secret",
        port=0,
    )
    with make_fleet(flags, SIMULATORS, ["server.py"]) as fleet:
        words = fleet.supervisor.command
    name, *given = words[words.index("simulator") :]
    parsed, _ = parse("server.py", name, COMMANDS[name], given)
    for option in dataclasses.fields(SimulatorFlags):
        expected = getattr(flags, option.name)
        # A port of its own; the token by the environment; the fleet has warned of open ports already.
        if option.name in ("port", "token", "insecure"):
            continue
        assert getattr(parsed, option.name) == expected, option.name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["fleet", "--simulator", "liberro"],
            "server.py fleet: no simulator is called 'liberro'. Did you mean 'libero'? Known: ",
        ),
        (
            ["fleet", "--max_sesions", "3"],
            "server.py fleet: unrecognized arguments: --max_sesions 3. Did you",
        ),
        (
            ["fleet", "--ray_address", "auto"],
            "server.py fleet: ray_address is for --engine ray; --gpus shares",
        ),
        (["fleet", "scale", "many"], "server.py fleet scale: num_services: expected int, found 'many'."),
        (["fleet", "status", "--address", "x"], "server.py fleet status: address is 'x', expected host:port"),
    ],
)
def test_an_unusable_setting_is_one_line_and_exit_code_2(flags: list[str], message: str) -> None:
    ended = run_server(*flags)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(message)


def test_a_server_that_is_not_a_fleet_is_an_error(calm: FleetServer) -> None:
    with running_simulator_server() as server:
        host, port = server.address
        with pytest.raises(
            ConfigurationError, match=rf"^127\.0\.0\.1:{port} is a simulator server, not a fleet$"
        ):
            ask_fleet(host, port, "list_services")


# -- a cluster -----------------------------------------------------------------------------------------------


def test_a_ray_cluster_runs_the_same_fleet(tmp_path: Path) -> None:
    flags = ("--engine", "ray", "--num_services", "2", "--cores_per_service", "0", "--backoff_s", "0.1")
    with fleet_process(tmp_path, *flags) as server:
        wait_for_services(server, 2, patience_s=90)  # Ray starts a process for each actor first
        with SimulatorClient(*server.address) as first, SimulatorClient(*server.address) as second:
            begin(first), begin(second)
            assert sorted(map(service_of, (first, second))) == ["1.1", "2.1"]
            (pid,) = (row["pid"] for row in rows(server) if row["service"] == service_of(first))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionLost):
                first.step(ACTION)
            second.step(ACTION)
            first.connect()
            begin(first).step(ACTION)
        wait_for_services(server, 2, patience_s=90)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert psutil.wait_procs(family, timeout=10)[1] == []
