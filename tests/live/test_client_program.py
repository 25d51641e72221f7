"""The client program as a person runs it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from policies.registry import POLICIES
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.meta import MetaObs
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server
from robowire.wire.pickle.writer import encode_frame

ROOT = Path(__file__).resolve().parents[2]
SPEC = PolicySpec(
    policy="constant",
    camera_names=("top", "wrist"),
    image_height=48,
    image_width=64,
    state_dim=8,
    chunk_size=4,
    action_dim=7,
)


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with running_server(ConstantPolicy(SPEC)) as server:
        yield str(server.address[1])


def run(*arguments: str, stdin: bytes = b"", cwd: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(ROOT / "client.py"), *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        cwd=cwd,
        check=False,
    )


def output(*arguments: str, stdin: bytes = b"") -> str:
    done = run(*arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_ping_prints_every_round_trip_and_a_summary(port: str) -> None:
    lines = output("ping", "--address", f"localhost:{port}", "--count", "2").splitlines()
    assert len(lines) == 3
    assert re.fullmatch(rf"reply from localhost:{port} in \d+\.\d+ ms", lines[0])
    assert re.fullmatch(r"2 round trips: min \d+\.\d+ ms, p50 \d+\.\d+ ms, p99 \d+\.\d+ ms", lines[2])


def test_info_is_for_people_and_info_json_for_programs(port: str) -> None:
    assert re.search(r"^camera_names +top, wrist$", output("info", "--port", port), re.MULTILINE)
    assert json.loads(output("info", "--port", port, "--json"))["camera_names"] == ["top", "wrist"]


def test_info_says_what_the_folder_that_is_served_is() -> None:
    folder = ROOT / "policies" / "act" / "default"
    flags = PolicyFlags(host="127.0.0.1", port=0, model_name_or_path=str(folder))
    with make_policy_server(flags, POLICIES) as server:
        port = str(server.address[1])
        shown = output("info", "--port", port)
        assert json.loads(output("info", "--port", port, "--json"))["checkpoint_format"] == "robowire"
    lines = shown.splitlines()
    assert lines[0] == "format   robowire"
    assert "needs    cameras agentview, robot0_eye_in_hand; uint8 RGB, height 96, width 96" in lines
    assert "answers  16 actions of 7 numbers; control ee delta at 20 Hz" in lines
    assert any(line.strip().startswith("joint_pos_1 [rad], joint_pos_2 [rad]") for line in lines)


def test_a_reader_that_has_enough_ends_the_program_without_a_word(port: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "client.py"), "info", "--port", port]
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, timeout=60, cwd=ROOT, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_infer_sends_what_fits_the_policy(port: str) -> None:
    lines = output("infer", "--port", port, "--num_requests", "2", "--delay", "0").splitlines()
    assert re.fullmatch(r"request 2: 4 actions of 7 in \d+\.\d+ ms", lines[1])
    assert re.fullmatch(r"2 requests: p50 \d+\.\d+ ms, p99 \d+\.\d+ ms", lines[2])
    assert lines[3] == "first action: [0.5 0.5 0.5 0.5 0.5 0.5 0.5]"


def test_an_error_of_the_server_is_one_line_and_exit_code_1(port: str) -> None:
    done = run("infer", "--port", port, "--image_size", "32")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(
        "client.py infer: image is a uint8 array of shape (2, 3, 32, 32), expected"
    )
    assert done.stderr.count(b"\n") == 1


def test_bench_measures_with_several_processes(port: str) -> None:
    lines = output("bench", "--port", port, "--duration_s", "0.3", "--clients", "2").splitlines()
    assert re.fullmatch(r"2 client\(s\), 0\.018 MB an observation, \d+ requests measured", lines[0])
    assert re.fullmatch(r"latency: p50 [\d.]+ ms, p95 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms", lines[1])
    assert lines[2].startswith("throughput: ")


def test_debug_takes_a_reply_apart(port: str) -> None:
    lines = output("debug", "--port", port, stdin=pickle.dumps({"method": "get_info"})).splitlines()
    assert "  'policy': 'constant'" in lines
    assert lines[-1] == "connection: still open; closed by us"


def test_debug_shows_shapes_and_no_contents(port: str, tmp_path: Path) -> None:
    observation = MetaObs(state=np.zeros(8, np.float32), image=np.zeros((2, 3, 48, 64), np.uint8))
    hello = {"method": "hello", "reply": "chunk"}
    buffers = encode_frame(hello) + encode_frame(observation)
    (tmp_path / "frames").write_bytes(b"".join(buffers))
    lines = output("debug", "--port", port, "--raw", "--file", str(tmp_path / "frames")).splitlines()
    assert "  'actions': array float32 (4, 7)" in lines


def test_debug_sends_text(port: str) -> None:
    lines = output("debug", "--port", port, "--text", "PING").splitlines()
    assert "text: PONG" in lines


def test_debug_sends_in_pieces(port: str) -> None:
    arguments = ("--hex", pickle.dumps("RESET").hex(), "--cut", "1,3,5", "--pause_s", "0.01", "--count", "2")
    lines = output("debug", "--port", port, *arguments).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "#1: 24 bytes in 4 piece(s)",
        "#2: 24 bytes in 4 piece(s)",
    ]
    assert lines.count("  'status': 'OK'") == 2


def test_debug_says_that_the_server_closed(port: str) -> None:
    lines = output("debug", "--port", port, "--raw", "--hex", "3f ff ff ff").splitlines()
    assert lines[-2:] == ["no reply", "connection: closed by the server"]
    lines = output("debug", "--port", port, "--raw", "--hex", "00 00 00 04 65 76 69 6c").splitlines()
    assert "the request cannot be read: payload is not a pickle" in lines[-2]
    assert lines[-1] == "connection: closed by the server"


def test_debug_gives_up_on_half_a_frame(port: str) -> None:
    lines = output(
        "debug", "--port", port, "--raw", "--hex", "00 00 00 04", "--timeout_s", "0.2"
    ).splitlines()
    assert lines[-1] == "connection: closed by us: no complete reply within 0.2 s"


@pytest.mark.parametrize("command", ["ping", "info", "infer", "bench", "debug"])
def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(command: str) -> None:
    done = run(command, "--address", "localhost:1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"localhost:1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pign"], "client.py: no command is called 'pign'. Did you mean 'ping'? Known: "),
        (["ping", "--hots=x"], "client.py ping: unrecognized arguments: --hots=x. Did you mean '--host'?\n"),
        (["ping", "--address", "a:b"], "client.py ping: address is 'a:b', expected host:port, such as"),
        (["ping", "--count", "0"], "client.py ping: count is 0, expected at least 1\n"),
        (["infer", "--image_size", "big"], "client.py infer: image_size is 'big', expected pixels: 224, or"),
        (["debug", "--hex", "zz"], "client.py debug: hex is 'zz', expected pairs of 0-9 and a-f: "),
        (
            ["debug", "--hex", "00", "--cut", "x"],
            "client.py debug: cut is 'x', expected numbers of bytes: 1,3,5\n",
        ),
        (
            ["debug", "--file", "/no/such"],
            "client.py debug: cannot read /no/such: No such file or directory\n",
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(message)
    assert done.stderr.count(b"\n") == 1


def test_the_program_lists_its_commands() -> None:
    listed = {line.split()[0] for line in output("--help").splitlines() if line.startswith("  ")}
    assert listed >= {"ping", "info", "infer", "bench", "debug"}


def test_the_program_works_from_any_folder(port: str, tmp_path: Path) -> None:
    assert run("ping", "--port", port, "--count", "1", cwd=tmp_path).returncode == 0


def test_the_clients_are_importable_from_the_program() -> None:
    code = (
        "import client, robowire; print(client.PolicyClient is robowire.PolicyClient, client.SimulatorClient)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True, timeout=60)
    assert done.stdout == b"True <class 'robowire.client.simulator_client.SimulatorClient'>\n"
