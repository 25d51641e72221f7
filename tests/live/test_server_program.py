"""``server.py`` as a user starts it: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from raw_client import RawClient, wait_until
from server_process import ROOT, ServerProcess, environment, run_server, shown_python

import server as program
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer
from robowire.version import __version__

GATED_POLICY = '''
import pathlib, time
from robowire.testing import EchoPolicy

class Gated(EchoPolicy):
    """Answers when the file "go" lies beside this module; tells by the file "started" that it was asked."""
    def infer(self, observations):
        here = pathlib.Path(__file__).parent
        (here / "started").touch()
        while not (here / "go").exists():
            time.sleep(0.005)
        return super().infer(observations)

def make(options):
    return Gated()
'''


def obs() -> MetaObs:
    return MetaObs(state=np.zeros(3, np.float32))


def info(server: ServerProcess) -> dict[str, object]:
    with RawClient(server.address) as client:
        answer: dict[str, object] = json.loads(client.say("INFO\nQUIT\n").splitlines()[0])
        return answer


def test_the_banner_says_what_is_served_where_and_how_to_try_it(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", "--chunk_size", "8", "--camera_names", "front,wrist") as server:
        port = server.address[1]
        assert server.banner[0] == (
            "policy random, device auto, chunk_size 8 (of 64), cameras front, wrist, state_dim any, "
            "action_dim 7 (ee delta)"
        )
        assert server.banner[1].startswith(f"listening on 0.0.0.0:{port}: localhost:{port}")
        assert server.banner[2] == f"try it: {shown_python()} client.py infer --host localhost --port {port}"


def test_the_line_to_try_runs_as_printed_from_the_folder_where_the_server_was_started(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", "--chunk_size", "8", cwd=tmp_path) as server:
        line = server.banner[2].removeprefix("try it: ")
        tried = subprocess.run(
            ["bash", "-c", f"{line} --delay 0"],
            cwd=tmp_path,
            env=environment({"PATH": "/usr/bin:/bin"}),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (tried.returncode, tried.stderr) == (0, "")
    assert "request 5: 8 actions of 7 in " in tried.stdout


def test_it_answers_observations_and_logs_who_came(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", "--chunk_size", "8") as server:
        with RawClient(server.address) as client:
            assert len(client.ask(obs())) == 8
        server.wait_for_log("client #1 closed (1 requests, 0 s)")
        assert "client #1 connected from 127.0.0.1:" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(tmp_path / "log") as server, RawClient(server.address) as idle:
        idle.ask({"method": "ping"})
        server.signal(number)
        assert server.wait() == 0
        assert idle.closed()
    assert "Traceback" not in server.log


def gated_server(tmp_path: Path, *flags: str) -> ServerProcess:
    (tmp_path / "gated.py").write_text(GATED_POLICY)
    return ServerProcess(
        tmp_path / "log", "--policy", "gated:make", *flags, environ={"PYTHONPATH": str(tmp_path)}
    )


def test_told_to_stop_it_finishes_the_request_in_hand_and_refuses_new_ones(tmp_path: Path) -> None:
    with gated_server(tmp_path) as server, RawClient(server.address) as busy, RawClient(
        server.address
    ) as other:
        other.hello()
        busy.send(obs())
        wait_until((tmp_path / "started").exists)
        server.signal(signal.SIGTERM)
        server.wait_for_log("finishing the requests in hand; Ctrl-C again ends at once")
        wait_for_closed_port(server.address)
        assert other.ask(obs())["error_type"] == "shutting_down"
        (tmp_path / "go").touch()
        assert len(busy.receive()) == 4
        assert server.wait() == 0


def wait_for_closed_port(address: tuple[str, int]) -> None:
    def closed() -> bool:
        try:
            socket.create_connection(address, timeout=1).close()
        except ConnectionError:  # refused; or reset, in the instant it closes
            return True
        return False

    wait_until(closed)


def test_a_policy_that_hangs_does_not_keep_it_longer_than_drain_s(tmp_path: Path) -> None:
    with gated_server(tmp_path, "--drain_s", "0.1") as server, RawClient(server.address) as busy:
        busy.send(obs())
        wait_until((tmp_path / "started").exists)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - started < 3


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    with gated_server(tmp_path, "--drain_s", "60") as server, RawClient(server.address) as busy:
        busy.send(obs())
        wait_until((tmp_path / "started").exists)
        server.signal(signal.SIGINT)
        server.wait_for_log("Ctrl-C again ends at once")
        server.signal(signal.SIGINT)
        assert server.wait() == 130


def test_options_come_from_flags_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    config = tmp_path / "options.yaml"
    config.write_text(
        "max_payload: 100001\nchunk_size: 3\ntemporal_agg: true\ncamera_names: [front, wrist]\n"
    )
    with ServerProcess(
        tmp_path / "log",
        "--max_payload",
        "100003",
        "--config",
        str(config),
        environ={"ROBOWIRE_MAX_PAYLOAD": "100002", "ROBOWIRE_TEMPORAL_AGG": "false"},
    ) as server:
        told = info(server)
    assert told["max_payload"] == 100003
    assert told["temporal_agg"] is False
    assert told["chunk_size"] == 3
    assert told["camera_names"] == ["front", "wrist"]
    assert told["device"] == "auto"


@pytest.mark.parametrize("where", ["file", "environment"])
def test_ports_of_further_wires_come_from_the_file_or_the_environment(tmp_path: Path, where: str) -> None:
    wires = ("act_zmq", "gr00t", "lerobot", "openpi", "vla_eval", "vlastudio")
    ports = {f"{wire}_port": 0 for wire in wires}
    config = tmp_path / "options.yaml"
    config.write_text("".join(f"{name}: {port}\n" for name, port in ports.items()))
    environ = {f"ROBOWIRE_{name.upper()}": str(port) for name, port in ports.items()}
    flags, given = (("--config", str(config)), {}) if where == "file" else ((), environ)
    with ServerProcess(tmp_path / "log", *flags, environ=given) as server:
        lines = [line for line in server.banner if line.startswith("for ")]
    assert sorted(line.partition(":")[0] for line in lines) == [
        "for GR00T's clients",
        "for LeRobot's robot_client, gRPC",
        "for VLAStudio",
        "for openpi's clients",
        "for the ACT server's clients",
        "for vla-eval",
    ]


@pytest.mark.parametrize("where", ["file", "environment"])
def test_ports_of_a_simulator_server_come_from_there_too(tmp_path: Path, where: str) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("center_port: 0\nhttp_port: 0\n")
    environ = {"ROBOWIRE_SIM_CENTER_PORT": "0", "ROBOWIRE_SIM_HTTP_PORT": "0"}
    flags, given = (("--config", str(config)), {}) if where == "file" else ((), environ)
    with ServerProcess(tmp_path / "log", *flags, command=("simulator",), environ=given) as server:
        banner = "\n".join(server.banner)
    assert re.search(r"tcp://\S+:\d+", banner), banner
    assert re.search(r"http://\S+:\d+", banner), banner


def test_print_config_shows_what_would_be_used() -> None:
    ended = run_server(
        "policy", "--print_config", "--policy_options.seed", "7", environ={"ROBOWIRE_PORT": "5001"}
    )
    assert ended.returncode == 0
    assert "\nport: 5001\n" in ended.stdout
    assert "\npolicy_options:\n  seed: 7\n" in ended.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["policy", "--prot", "5"], "unrecognized arguments: --prot 5. Did you mean '--port'?"),
        (["policy", "--port", "x"], "port: expected int, found 'x'. See --help."),
        (["policy", "--port", "70000", "--policy", "random"], "port is 70000, expected 0 to 65535"),
        (
            ["policy", "--policy", "atc"],
            "no policy is called 'atc'. Did you mean 'act'? Known: act, lerobot, random, remote, replay",
        ),
        (["policy", "--config", "no.yaml"], "there is no file 'no.yaml': check --config"),
        (
            ["policy", "--policy", "random", "--model_path", "there"],
            "policy 'random' has no checkpoint: leave out --model_name_or_path and --dataset_id",
        ),
        (
            ["policy", "--policy", "random", "--policy_options.sed", "3"],
            "policy 'random' has no option 'sed'. Did you mean 'seed'? Known: seed, chunk_size, action_dim",
        ),
        (["policy", "--max_connections", "0"], "max_connections is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(flags: list[str], message: str) -> None:
    ended = run_server(*flags)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"server.py policy: {message}\n")


def test_a_key_that_the_file_misspells_is_named(tmp_path: Path) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("prot: 5001\n")
    ended = run_server("policy", "--config", str(config))
    message = f"server.py policy: {config}: option 'prot' is not accepted. Did you mean 'port'?\n"
    assert (ended.returncode, ended.stderr) == (2, message)


def test_an_unknown_command_is_one_line_and_exit_code_2() -> None:
    ended = run_server("polcy")
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "server.py: no command is called 'polcy'. Did you mean 'policy'? Known: policy"
    )


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_server("policy", "--policy", "random", "--port", str(port))
    message = (
        f"server.py policy: port {port} is in use: stop what listens there, or choose another with --port\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", message)


def test_a_port_in_use_is_reported_before_the_policy_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        missing = str(tmp_path / "none")
        ended = run_server("policy", "--host", "127.0.0.1", "--port", str(port), "--model_path", missing)
    assert f"port {port} is in use" in ended.stderr
    assert "checkpoint" not in ended.stderr


def test_log_lines_carry_the_date(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log") as server:
        with RawClient(server.address) as client:
            client.ask({"method": "ping"})
        server.wait_for_log("closed")
        assert re.search(
            r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d INFO    client #1 closed", server.log, re.MULTILINE
        )


def test_log_lines_can_be_json(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", environ={"ROBOWIRE_LOG_FORMAT": "json"}) as server:
        with RawClient(server.address) as client:
            client.ask({"method": "ping"})
        server.wait_for_log("closed")
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        assert any(line["message"].startswith("client #1 closed") for line in lines)


@pytest.mark.parametrize("name", ["ROBOWIRE_TOKEN", "ROBOWIRE_AUTH_TOKEN"])
def test_the_token_has_an_older_name(name: str, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", environ={name: "sesame"}) as server, RawClient(
        server.address
    ) as client:
        assert client.ask({"method": "ping"})["error_type"] == "unauthenticated"
        assert client.ask({"method": "hello", "token": "sesame"})["status"] == "ok"
        assert server.banner[-1].endswith(" --token TOKEN")


def test_a_checkpoint_that_is_missing_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    # A slow machine is told meanwhile that the policy is loaded.
    ended = run_server(
        "policy", "--model_path", str(tmp_path / "none"), "--device", "cpu", "--log_level", "error"
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"server.py policy: the checkpoint {tmp_path}/none does not exist")
    assert ended.stderr.count("\n") == 1


def test_the_environment_knows_the_other_name_of_a_flag_too(tmp_path: Path) -> None:
    names = {
        "ROBOWIRE_MODEL_PATH": str(tmp_path / "none"),
        "ROBOWIRE_DEVICE": "cpu",
        "ROBOWIRE_LOG_LEVEL": "error",
    }
    ended = run_server("policy", environ=names)
    assert ended.stderr.startswith(f"server.py policy: the checkpoint {tmp_path}/none does not exist")
    ended = run_server("policy", environ={**names, "ROBOWIRE_MODEL_NAME_OR_PATH": str(tmp_path / "neither")})
    assert ended.stderr.startswith(f"server.py policy: the checkpoint {tmp_path}/neither does not exist")


def test_help_names_every_option_with_its_unit_and_default() -> None:
    shown = " ".join(run_server("policy", "--help").stdout.split())
    assert "--port VALUE, -p VALUE TCP port; 0 picks a free one. (type: int, default: 5000)" in shown
    assert "--drain_s VALUE Seconds that requests in hand have to finish" in shown
    assert "--model_name_or_path VALUE, --model_path VALUE, -m VALUE Folder of a checkpoint" in shown
    assert "ROBOWIRE_PORT=5001" in shown


@pytest.mark.parametrize("flags", [["--version"], ["policy", "--version"]])
def test_the_version_is_told(flags: list[str]) -> None:
    assert run_server(*flags).stdout == f"robowire {__version__}\n"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, server\n"
        "try: server.main(['policy', '--help'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"False\n")


def test_server_py_is_where_users_look_for_the_server() -> None:
    assert program.PolicyServer is PolicyServer


def test_a_log_that_nobody_reads_stops_neither_the_server_nor_its_end() -> None:
    command = [sys.executable, "server.py", "policy", "--policy", "random", "--port", "0", "--drain_s", "5"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            listening = next(line for line in process.stdout if line.startswith("listening on "))
            port = int(re.findall(r":(\d+)", listening)[0])
            # Two log lines each: 64 KiB, all that the pipe holds, are full after some hundred.
            for _ in range(3000):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                    sock.sendall(b"PING\n")
                    assert sock.recv(10) == b"PONG\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_terminal_that_closes_drains_the_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log") as server:
        server.signal(signal.SIGHUP)
        assert server.wait() == 0


OPEN = "WITHOUT A TOKEN, EVERY MACHINE THAT REACHES THIS PORT CAN ASK THE POLICY FOR ACTIONS"


@pytest.mark.parametrize(
    ("flags", "warned"),
    [((), 1), (("--host", "127.0.0.1"), 0), (("--token", "sesame"), 0), (("--insecure",), 0)],
)
def test_a_port_that_is_open_to_other_machines_is_one_loud_line(
    tmp_path: Path, flags: tuple[str, ...], warned: int
) -> None:
    with ServerProcess(tmp_path / "log", *flags) as server:
        server.signal(signal.SIGTERM)
        server.wait()
        assert server.log.count(OPEN) == warned
