"""A script written for LeRobot's client, and LeRobot's flags, against real servers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificates
from server_process import ROOT, environment

from benchmark.registry import SIMULATORS
from policies.registry import POLICIES
from robowire import PolicyClient
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.errors import ConfigurationError, TaskNotFound, UnknownSimulator
from robowire.integrations.lerobot import EnvConfig, LiberoEnv, SimClient, SimClientConfig
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import Entry
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_simulator_server

FAKE = "robowire.testing.fake_simulator:make_simulator"


class Listener(ConstantPolicy):
    """Remembers what it was told to do."""

    def __init__(self, options: PolicyOptions | None = None) -> None:
        super().__init__(
            PolicySpec(policy="constant", chunk_size=4, action_dim=3, ctrl_space="ee", ctrl_type="delta")
        )
        self.told: set[str] = set()

    def infer(self, observations: Any) -> Any:
        self.told |= {
            observation.raw_lang for observation in observations if isinstance(observation, MetaObs)
        }
        return super().infer(observations)


@pytest.fixture(scope="module")
def policy() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def server(policy: Listener) -> Iterator[str]:
    options = PolicyServerOptions(host="127.0.0.1", port=0, drain_s=2.0)
    with PolicyServer(policy, options, model_name="act_libero_10") as server:
        yield f"127.0.0.1:{server.address[1]}"


@pytest.fixture(scope="module")
def simulators() -> Iterator[SimulatorServer]:
    with running_simulator_server() as server:
        yield server


def config(server: str, simulators: SimulatorServer, folder: Path, **changes: Any) -> SimClientConfig:
    host, port = simulators.address[:2]
    chosen = {
        "env": EnvConfig("fake", "reach", episode_length=20),
        "policy_type": "constant",
        "pretrained_name_or_path": "lerobot/act_libero_10",
        "actions_per_chunk": 4,
        "server_address": server,
        "simulator_address": f"{host}:{port}",
        "output_dir": str(folder),
        "n_episodes": 2,
        "clock": "virtual",
    }
    return SimClientConfig(**{**chosen, **changes})


def test_a_script_written_for_lerobots_client_runs(
    server: str, simulators: SimulatorServer, policy: Listener, tmp_path: Path
) -> None:
    policy.told.clear()
    client = SimClient(config(server, simulators, tmp_path, clock="real", fps=100, policy_device="cuda"))
    assert client.start()
    receiver = threading.Thread(target=client.receive_actions, daemon=True)
    receiver.start()
    try:
        client.control_loop(task="go to the corner")
    finally:
        client.stop()
        receiver.join(10)
    assert not receiver.is_alive()
    (summary,) = client.results.values()
    assert (summary["episodes"], summary["errors"], summary["options"]["clock"]) == (2, 0, "real")
    assert policy.told == {"go to the corner"}
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "complete"


def test_both_servers_may_speak_tls(certificates: Certificates, tmp_path: Path) -> None:
    tls: dict[str, Any] = {
        "tls_cert": certificates.server_cert,
        "tls_key": certificates.server_key,
        "drain_s": 2.0,
    }
    with ExitStack() as stack:
        simulators = stack.enter_context(running_simulator_server(SimulatorServerOptions(**tls)))
        options = PolicyServerOptions(host="127.0.0.1", port=0, **tls)
        held = stack.enter_context(PolicyServer(Listener(), options, model_name="act_libero_10"))
        address = f"127.0.0.1:{held.address[1]}"
        for clock in ("virtual", "real"):
            client = SimClient(
                config(address, simulators, tmp_path / clock, ca=certificates.ca, clock=clock, fps=100)
            )
            assert client.start()
            (summary,) = client.control_loop().values()
            assert (summary["episodes"], summary["errors"]) == (2, 0)
        client = SimClient(
            config(address, simulators, tmp_path / "plain", ca=certificates.ca, simulator_tls=False)
        )
        assert not client.start()


def test_a_suite_means_all_its_tasks(server: str, simulators: SimulatorServer, tmp_path: Path) -> None:
    client = SimClient(
        config(server, simulators, tmp_path, env=EnvConfig("fake", "sound,reach", episode_length=8))
    )
    assert client.start()
    assert client.tasks == ["reach", "reach"]
    chosen = EnvConfig("fake", "faulty", task_ids=(1, 0))
    client = SimClient(config(server, simulators, tmp_path, env=chosen))
    assert client.start()
    assert client.tasks == ["babble_in_load_task", "babble_in_close"]


def test_a_suite_of_libero_has_the_order_of_publications(
    server: str, tmp_path: Path, libero_assets: Path
) -> None:
    table = {"libero": Entry("benchmark.libero:make_simulator")}
    with running_simulator_server(simulators=table) as simulators:
        client = SimClient(config(server, simulators, tmp_path, env=LiberoEnv()))
        assert client.start()
    assert client.tasks == [f"libero_10/{number}" for number in range(10)]


def test_an_episode_of_libero_runs_as_lerobot_configures_it(tmp_path: Path, libero_assets: Path) -> None:
    spec = PolicySpec(policy="act", chunk_size=4, action_dim=7, ctrl_space="ee", ctrl_type="delta")
    env = LiberoEnv(
        task="libero_spatial", task_ids=(0,), fps=30, obs_type="pixels_agent_pos", episode_length=5
    )
    with ExitStack() as stack:
        table = {"libero": SIMULATORS["libero"]}
        simulators = stack.enter_context(running_simulator_server(simulators=table))
        options = PolicyServerOptions(host="127.0.0.1", port=0, drain_s=2.0)
        held = stack.enter_context(PolicyServer(ConstantPolicy(spec), options, model_name="act_libero_10"))
        address = f"127.0.0.1:{held.address[1]}"
        client = SimClient(config(address, simulators, tmp_path, env=env, policy_type="act", n_episodes=1))
        assert client.start()
        (summary,) = client.control_loop(task="").values()
    assert (summary["episodes"], summary["errors"]) == (1, 0)
    assert summary["simulator"]["task"].startswith("pick_up_the_black_bowl_between")
    assert summary["options"]["fps"] == 30
    (episode,) = map(json.loads, (tmp_path / "episodes.jsonl").read_text().splitlines())
    assert (episode["steps"], episode["init_state"]) == (5, 0)


def test_a_number_that_a_suite_does_not_have_is_refused(
    server: str, simulators: SimulatorServer, tmp_path: Path
) -> None:
    client = SimClient(config(server, simulators, tmp_path, env=EnvConfig("fake", "sound", task_ids=(1,))))
    with pytest.raises(TaskNotFound) as raised:
        client.start()
    assert str(raised.value) == "sound has no task 1, expected 0 to 0"


def test_an_environment_that_the_server_does_not_have_is_refused(
    server: str, simulators: SimulatorServer, tmp_path: Path
) -> None:
    with pytest.raises(UnknownSimulator):
        SimClient(config(server, simulators, tmp_path, env=EnvConfig("pusht", "PushT-v0"))).start()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy_type": "smolvla"},
            "policy_type is 'smolvla', but the server at {server} holds 'constant': the policy is set "
            "when that server is started",
        ),
        (
            {"pretrained_name_or_path": "lerobot/act_aloha"},
            "pretrained_name_or_path is 'lerobot/act_aloha', but the server at {server} holds "
            "'act_libero_10': the checkpoint is set when that server is started",
        ),
    ],
)
def test_another_policy_than_the_servers_is_refused(
    server: str, simulators: SimulatorServer, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        SimClient(config(server, simulators, tmp_path, **changes)).start()
    assert str(raised.value) == message.format(server=server)


def test_a_server_tells_the_name_of_its_checkpoint_and_not_where_it_lies() -> None:
    folder = str(ROOT / "policies" / "act" / "default")
    flags = PolicyFlags(host="127.0.0.1", port=0, device="cpu", model_name_or_path=folder)
    with make_policy_server(flags, POLICIES) as server, PolicyClient(*server.address[:2]) as client:
        assert client.get_info()["model_name"] == "default"


def test_a_server_that_is_not_there_is_an_answer_as_with_lerobot(
    simulators: SimulatorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert not SimClient(config("127.0.0.1:1", simulators, tmp_path)).start()
    assert caplog.messages == ["cannot start: nothing listens on 127.0.0.1:1: is the server running there?"]


def test_stopping_ends_the_loop_after_the_episode_that_runs(
    server: str, simulators: SimulatorServer, tmp_path: Path
) -> None:
    client = SimClient(
        config(server, simulators, tmp_path, n_episodes=50), on_episode=lambda *told: client.stop()
    )
    client.start()
    (summary,) = client.control_loop().values()
    assert summary["episodes"] == 1


def test_lerobots_flags_run_our_loop(server: str, tmp_path: Path) -> None:
    program = [sys.executable, "client.py", "lerobot-eval", f"--env.type={FAKE}", "--env.task=reach"]
    program += ["--policy_type=constant", "--pretrained_name_or_path=lerobot/act_libero_10"]
    program += ["--policy_device=cuda", "--actions_per_chunk=50", "--chunk_size_threshold=0.5"]
    program += ["--aggregate_fn_name=weighted_average", "--n_episodes=2", f"--server_address={server}"]
    program += ["--clock=virtual", "--env.episode_length=20", f"--output_dir={tmp_path / 'results'}"]
    ended = subprocess.run(
        program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=80, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[:3] for line in ended.stdout.splitlines()[:2]] == [
        ["task", "episodes", "successes"],
        ["reach", "2", "0"],
    ]
    assert (
        "note: --policy_device changes nothing: the policy server was told its device when it was started\n"
        in ended.stderr
    )
    assert "WARNING actions_per_chunk is 50, but this policy's chunks have 4" in ended.stderr
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["tasks"]["reach"]["episodes"] == results["all"]["episodes"] == 2
    rows = (tmp_path / "results" / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(row)["steps"] for row in rows] == [20, 20]


def test_a_flag_that_lerobot_does_not_have_is_refused_with_the_nearest() -> None:
    program = [sys.executable, "client.py", "lerobot-eval", "--policy_type=act", "--chunk_size_treshold=0.5"]
    ended = subprocess.run(
        program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=80, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Did you mean '--chunk_size_threshold'?" in ended.stderr
