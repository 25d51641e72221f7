"""Sessions are recorded, and replayed as a policy, as a simulator, and to a server."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_process import finish, start_client
from raw_client import RawClient, wait_until
from server_process import ServerProcess

from robowire import PolicyClient, SimulatorClient
from robowire.errors import BackendError, ConfigurationError, InvalidParams
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.recording.difference import first_difference
from robowire.recording.format import GAP, INFER, MAGIC, Recording, encode_record, open_recordings
from robowire.recording.recorder import FileRecorder
from robowire.recording.replay_policy import make_policy
from robowire.registry import Entry
from robowire.serving.policy.server import PolicyServerOptions
from robowire.specs import PolicySpec
from robowire.testing import EchoPolicy, FailingPolicy, running_server, running_simulator_server

REPLAYED = Entry("robowire.recording.replay_simulator:make_simulator")


def client_program(*words: str, code: int = 0) -> str:
    return "".join(finish(start_client(*words), code=code, timeout_s=60))


def seen(step: int) -> MetaObs:
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (2, 3, 12, 16), dtype=np.uint8)
    return MetaObs(state=rng.normal(size=3).astype(np.float32), image=image, raw_lang="lift", timestep=step)


class SeeingPolicy(EchoPolicy):
    """Answers with the state, brighter by the images."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = PolicySpec(
            policy="seeing", camera_names=("a", "b"), state_dim=3, action_dim=3, chunk_size=4, ctrl_space="ee"
        )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        brightness = np.stack([observation.image.mean(dtype=np.float32) for observation in observations])
        for observation in observations:
            observation.state[:] = observation.state  # a policy may write to what it is given
        return super().infer(observations) + brightness[:, None, None]


def record_policy(folder: Path, **options: Any) -> np.ndarray:
    """Record five requests, a reset and a batch; return the answers to the five."""
    with running_server(SeeingPolicy(), PolicyServerOptions(drain_s=2.0, **options)) as server:
        server.service.recorder = FileRecorder(str(folder), max_bytes=10**8)
        with PolicyClient(*server.address, token=options.get("token")) as client:
            answers = [client.infer(seen(step)) for step in range(5)]
            client.reset()
            states = np.stack([seen(7).state, seen(8).state])
            images = np.stack([seen(7).image, seen(8).image])
            client.infer(MetaObs(state=states, image=images, timestep=np.array([[0], [0]])))
    return np.stack(answers)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("recorded")
    answers = record_policy(folder, token="sesame", insecure=True)
    (path,) = folder.iterdir()
    return path, answers


def test_a_recording_holds_what_was_said_and_no_token(recorded: tuple[Path, np.ndarray]) -> None:
    path, answers = recorded
    recording = Recording(path)
    assert (recording.header["kind"], recording.header["wire"], recording.torn) == ("policy", "tcp", "")
    assert recording.header["info"]["policy"] == "seeing"
    methods = [recording[index]["method"] for index in range(len(recording))]
    assert methods == ["infer"] * 5 + ["reset", "infer"]
    for step in range(5):
        record = recording[step]
        assert record["number"] == step + 1
        assert abs(record["time"] - time.time()) < 300
        assert first_difference(seen(step), record["request"]["observations"][0]) is None
        np.testing.assert_array_equal(record["reply"]["actions"], answers[step])
    assert b"sesame" not in path.read_bytes()


def replay_server(path: Path, **extra: Any) -> Any:
    return running_server(make_policy(PolicyOptions(str(path), extra=extra)))


def test_a_recording_answers_as_the_policy_did(recorded: tuple[Path, np.ndarray]) -> None:
    path, answers = recorded
    with replay_server(path) as server, PolicyClient(*server.address) as client:
        assert client.spec.policy == "seeing"
        for _ in range(2):  # from its beginning again
            for step in range(5):
                for _ in range(2):  # a repeated request
                    np.testing.assert_array_equal(client.infer(seen(step)), answers[step])


def test_the_first_divergence_is_named(recorded: tuple[Path, np.ndarray]) -> None:
    with replay_server(recorded[0]) as server, PolicyClient(*server.address) as client:
        client.infer(seen(0))
        other = seen(1)
        other.state[2] = 0.5
        with pytest.raises(InvalidParams) as raised:
            client.infer(other)
        assert str(raised.value) == (
            f"this is not the recorded request 2 of {recorded[0].name}: "
            f"state[2]: expected {float(seen(1).state[2])!r}, found 0.5"
        )
        other = seen(1)
        other.image[1, 2, 3, 4] ^= 1
        with pytest.raises(InvalidParams, match=r"request 2 of .*: image\[1, 2, 3, 4\]: expected \d+, found"):
            client.infer(other)


def test_numbers_within_the_tolerance_are_equal(recorded: tuple[Path, np.ndarray]) -> None:
    with replay_server(recorded[0], tolerance=0.01) as server, PolicyClient(*server.address) as client:
        other = seen(0)
        other.state += 0.005
        np.testing.assert_array_equal(client.infer(other), recorded[1][0])


def test_two_clients_follow_a_recording_each(tmp_path: Path) -> None:
    with running_server(EchoPolicy()) as server:
        server.service.recorder = FileRecorder(str(tmp_path), max_bytes=10**8)
        for start in (0, 10):
            with PolicyClient(*server.address) as client:
                for step in range(3):
                    client.infer(MetaObs(state=np.full(3, start + step, np.float32), timestep=step))
    with replay_server(tmp_path) as server, ExitStack() as stack:
        one, other = (stack.enter_context(PolicyClient(*server.address)) for _ in range(2))
        for step in range(3):
            for client, start in ((one, 0), (other, 10)):
                state = np.full(3, start + step, np.float32)
                assert client.infer(MetaObs(state=state, timestep=step))[0, 0] == start + step


def test_an_error_is_recorded_and_replayed(tmp_path: Path) -> None:
    with running_server(FailingPolicy()) as server:
        server.service.recorder = FileRecorder(str(tmp_path), max_bytes=10**8)
        with PolicyClient(*server.address) as client, pytest.raises(BackendError):
            client.infer(MetaObs(state=np.zeros(3, np.float32), raw_lang="raise"))
    message = r"^the policy failed: RuntimeError: the instruction says raise$"
    with replay_server(tmp_path) as server, ExitStack() as stack:
        client = stack.enter_context(PolicyClient(*server.address))
        stack.enter_context(pytest.raises(BackendError, match=message))
        client.infer(MetaObs(state=np.zeros(3, np.float32), raw_lang="raise"))


# client.py replay


def test_a_server_that_answers_alike_passes(recorded: tuple[Path, np.ndarray]) -> None:
    with running_server(SeeingPolicy()) as server:
        words = ("replay", str(recorded[0]), "--address", f"localhost:{server.address[1]}")
        assert client_program(*words) == "7 requests, every answer equal\n"


def test_a_server_that_answers_otherwise_is_shown_by_request(recorded: tuple[Path, np.ndarray]) -> None:
    class Shifted(SeeingPolicy):
        def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
            return super().infer(observations) + np.float32(0.25)

    with running_server(Shifted()) as server:
        words = ("replay", str(recorded[0]), "--address", f"localhost:{server.address[1]}")
        lines = client_program(*words, "--max_differences", "2", code=1).splitlines()
        assert client_program(*words, "--tolerance", "0.3").startswith(
            "7 requests, every answer equal within"
        )
    assert lines[0].split() == ["request", "method", "field", "expected", "found"]
    first = recorded[1][0, 0, 0]
    number, method, field, column, expected, found = lines[1].split()
    assert (number, method, field + column) == ("1", "infer", "actions[0,0]")
    assert float(found) - float(expected) == pytest.approx(0.25, abs=1e-4)
    assert float(expected) == first
    assert len(lines) == 4
    assert lines[3] == "6 of 7 answers differ"


# simulators


def record_simulator(folder: Path) -> list[Any]:
    with running_simulator_server() as server:
        server.service.recorder = FileRecorder(str(folder), max_bytes=10**8)
        with SimulatorClient(*server.address) as client:
            return drive(client)


def drive(client: SimulatorClient) -> list[Any]:
    client.select_simulator("fake")
    client.load_task("reach", camera_names=["front"], horizon=6)
    results: list[Any] = []
    for seed in (1, 2):
        results.append(client.reset(seed=seed))
        results.append(client.render())
        results += [vars(client.step(np.full(3, 0.1 * step))) for step in range(4)]
        results.append(vars(client.step_chunk(np.full((2, 3), 0.2))))
    return results


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("simulated")
    results = record_simulator(folder)
    (path,) = folder.iterdir()
    return path, results


@pytest.fixture
def replayed(simulated: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorClient]:
    monkeypatch.setenv("ROBOWIRE_REPLAY", str(simulated[0]))
    with running_simulator_server(simulators={"fake": REPLAYED}) as server, ExitStack() as stack:
        yield stack.enter_context(SimulatorClient(*server.address))


def test_a_recorded_simulator_answers_as_it_did(
    simulated: tuple[Path, list[Any]], replayed: SimulatorClient
) -> None:
    for expected, found in zip(simulated[1], drive(replayed), strict=True):
        assert first_difference(expected, found) is None


def test_another_action_seed_or_option_is_named(replayed: SimulatorClient) -> None:
    replayed.select_simulator("fake")
    with pytest.raises(InvalidParams, match=r"has the task 'reach' with horizon: expected 6, found 7$"):
        replayed.load_task("reach", camera_names=["front"], horizon=7)
    replayed.load_task("reach", camera_names=["front"], horizon=6)
    with pytest.raises(InvalidParams, match=r"has the seed 3; recorded seeds: 1, 2$"):
        replayed.reset(seed=3)
    replayed.reset(seed=2)
    replayed.step(np.zeros(3))
    with pytest.raises(InvalidParams) as raised:
        replayed.step(np.array([0.1, 0.3, 0.1]))
    assert str(raised.value).endswith(": action[0][1]: expected 0.1, found 0.3")
    assert str(raised.value).startswith("this is not the recorded request ")
    replayed.step(np.full(3, 0.1))  # the recorded one still comes next


def test_a_recording_of_a_simulator_is_compared_by_the_client(simulated: tuple[Path, list[Any]]) -> None:
    with running_simulator_server() as server:
        words = ("replay", str(simulated[0]), "--address", f"localhost:{server.address[1]}")
        assert "every answer equal" in client_program(*words)


def drive_back_and_forth(client: SimulatorClient) -> list[Any]:
    """Try two actions from one instant, look ahead from a second one, and go on in a new task."""
    client.select_simulator("fake")
    client.load_task("reach", camera_names=["front"], horizon=9)
    results = [client.reset(seed=1), vars(client.step(np.full(3, 0.1)))]
    start = client.snapshot()
    for value in (0.2, -0.2):
        results.append(vars(client.step(np.full(3, value))))
        results.append(client.restore(start))
    results.append(vars(client.step(np.full(3, 0.3))))
    later = client.snapshot()
    results += [vars(client.step_chunk(np.full((2, 3), 0.2))), client.restore(later)]
    client.load_task("reach", camera_names=["front"], horizon=9)
    results += [client.restore(start), vars(client.step(np.full(3, 0.4)))]
    return results


def test_a_recorded_restore_is_answered_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_simulator_server() as server:
        server.service.recorder = FileRecorder(str(tmp_path), max_bytes=10**8)
        with SimulatorClient(*server.address) as client:
            recorded = drive_back_and_forth(client)
        with SimulatorClient(*server.address) as client:
            client.select_simulator("fake")
    monkeypatch.setenv("ROBOWIRE_REPLAY", str(tmp_path))
    with running_simulator_server(simulators={"fake": REPLAYED}) as server:
        with SimulatorClient(*server.address) as client:
            for expected, found in zip(recorded, drive_back_and_forth(client), strict=True):
                assert first_difference(expected, found) is None
        with SimulatorClient(*server.address) as client:
            client.select_simulator("fake")
            client.load_task("reach", camera_names=["front"], horizon=9)
            client.reset(seed=1)
            client.step(np.full(3, 0.1))
            client.step(np.full(3, 0.2))
            # The recording restores here.
            with pytest.raises(InvalidParams, match=r"request \d+ of .*, which restores a snapshot$"):
                client.step(np.full(3, -0.2))
            place = client.snapshot()
            assert first_difference(recorded[2]["observation"], client.restore(place)) is None


def test_a_replayed_simulator_takes_actions_within_its_tolerance(
    simulated: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    words = ("simulator", "--replay", str(simulated[0]), "--replay_tolerance", "1e-3")
    with ServerProcess(tmp_path / "log", command=words) as server, ExitStack() as stack:
        client = stack.enter_context(SimulatorClient(*server.address))
        client.select_simulator("fake")
        client.load_task("reach", camera_names=["front"], horizon=6)
        client.reset(seed=1)
        result = client.step(np.full(3, 1e-4))
        assert first_difference(simulated[1][2], vars(result)) is None
        with pytest.raises(InvalidParams, match=r"action\[0\]\[0\]: expected 0\.1, found 0\.102$"):
            client.step(np.full(3, 0.102))


# what a recording never does


def test_a_slow_disk_delays_nobody_and_drops_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    recorder = FileRecorder(str(tmp_path), max_bytes=10**8)
    monkeypatch.setattr("robowire.recording.recorder._MAX_QUEUED", 3)
    prepared = recorder._prepared
    monkeypatch.setattr(recorder, "_prepared", lambda value: (release.wait(), prepared(value))[1])
    with running_server(EchoPolicy()) as server:
        server.service.recorder = recorder
        with PolicyClient(*server.address, timeout_s=5) as client:
            for step in range(20):
                client.infer(MetaObs(state=np.full(3, step, np.float32), timestep=step))
            release.set()
            wait_until(lambda: not recorder._queue)
            client.infer(MetaObs(state=np.zeros(3, np.float32)))
    (path,) = tmp_path.iterdir()
    recording = Recording(path)
    dropped = sum(recording[i]["dropped"] for i, kind in enumerate(recording.kinds()) if kind == GAP)
    assert dropped + list(recording.kinds()).count(INFER) == 21
    assert dropped >= 15
    assert any("requests were not recorded" in line for line in caplog.messages)


def test_the_size_of_all_files_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_server(SeeingPolicy()) as server:
        server.service.recorder = FileRecorder(str(tmp_path), max_bytes=30_000)
        for _ in range(3):
            with PolicyClient(*server.address) as client:
                for step in range(10):
                    client.infer(seen(step))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 30_000
    assert sum("--record_max_mb allows no more" in line for line in caplog.messages) == 1
    assert len(open_recordings(tmp_path, "policy")[0]) > 3


def test_a_killed_server_leaves_what_it_recorded(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "recorded"
    with ServerProcess(log, "--record", str(folder), "--policy_options.action_dim", "3") as server:
        with RawClient(server.address) as client:
            for step in range(5):
                client.ask(MetaObs(state=np.zeros(3), timestep=step))
            wait_until(lambda: any(path.stat().st_size > 3000 for path in folder.glob("*.rwrec")))
        server.process.kill()
    (recording,) = open_recordings(folder, "policy")
    assert len(recording) >= 1
    assert "recording sessions in" in log.read_text()


def test_a_torn_file_is_read_up_to_the_cut(recorded: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    whole = recorded[0].read_bytes()
    torn = tmp_path / "torn.rwrec"
    torn.write_bytes(whole[:-100])
    recording = Recording(torn)
    assert len(recording) == 6
    assert "bytes of a record" in recording.torn
    with running_server(SeeingPolicy()) as server:
        words = ("replay", str(torn), "--address", f"localhost:{server.address[1]}")
        assert "6 records can be read" in client_program(*words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no recording of robowire's"),
        (b"PK\x03\x04 something else", "is no recording of robowire's"),
        (MAGIC, "without its first record"),
        (MAGIC + b"\xff" * 9, "without its first record: what stands at byte 8 is no record"),
        (MAGIC + b"\x7f\xff\xff\xff\x00\x00\x00\x00\x00", "without its first record"),
        (MAGIC + b"".join(encode_record(0, {"kind": 3})), "does not describe a server"),
        (
            MAGIC
            + b"\x00\x00\x00\x20\xe9\x2e\xb9\x0c\x00"
            + b"cposix\nsystem\n(S'true'\ntR.".ljust(32, b"."),
            "is damaged: its checksum differs",
        ),
    ],
)
def test_a_hostile_file_gives_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.rwrec"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        Recording(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recording_executes_nothing(tmp_path: Path) -> None:
    payload = b"\x80\x02cposix\nsystem\n(S'touch pwned'\ntR."
    path = tmp_path / "hostile.rwrec"
    path.write_bytes(MAGIC + struct.pack("!IIB", len(payload), zlib.crc32(payload), 0) + payload)
    with pytest.raises(ConfigurationError, match=r"cannot be read: payload names posix.system"):
        Recording(path)


def test_an_image_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    header = encode_record(0, {"kind": "policy", "info": {}})
    bomb = {"encoding": "png", "shape": [1 << 19, 1 << 19, 3], "data": b"\x89PNG\r\n\x1a\n"}
    image = {"__image__": bomb, "shape": [1 << 19, 1 << 19, 3], "colors": "last"}
    path = tmp_path / "bomb.rwrec"
    path.write_bytes(MAGIC + b"".join(header) + b"".join(encode_record(INFER, {"request": image})))
    with pytest.raises(ConfigurationError, match=r"cannot be read: an image cannot be decoded"):
        Recording(path)[0]


def test_a_folder_that_cannot_be_written_is_found_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"^cannot record into .*: check --record$"):
        FileRecorder(str(tmp_path / "file" / "x"), max_bytes=1)


def test_clients_may_share_the_episodes_otherwise(tmp_path: Path) -> None:
    def observation(episode: int, step: int) -> MetaObs:
        return MetaObs(state=np.full(3, step * (episode + 1), np.float32), timestep=step)  # all begin alike

    with running_server(EchoPolicy()) as server:
        server.service.recorder = FileRecorder(str(tmp_path), max_bytes=10**8)
        with PolicyClient(*server.address) as client:
            for episode in range(3):
                client.reset()
                for step in range(3):
                    client.infer(observation(episode, step))
    with replay_server(tmp_path) as server, ExitStack() as stack:
        clients = [stack.enter_context(PolicyClient(*server.address)) for _ in range(3)]
        for step in range(3):
            for episode in (2, 0, 1):
                answer = clients[episode].infer(observation(episode, step))
                assert answer[0, 0] == step * (episode + 1)
