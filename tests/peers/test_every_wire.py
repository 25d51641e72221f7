"""One command serves the shipped policy on every wire; each peer's client gets the same actions, bit for bit.

The observations are those of an episode of ``Lift`` that our client drives, on a simulator of this process.
"""

from __future__ import annotations

import base64
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import zmq
from peer_process import run_peer
from saved_arrays import load_arrays
from server_process import ServerProcess

from benchmark.registry import SIMULATORS
from robowire import MetaAction, PolicyClient
from robowire.chunking import TemporalEnsembler
from robowire.frontends.lerobot import codec as lerobot
from robowire.interfaces import TaskOptions
from robowire.registry import load

STEPS = 6
# Of 16 actions of a chunk the shipped policy wants these executed.
N_ACTION_STEPS = 8

CAMERAS = ("agentview", "robot0_eye_in_hand")


@dataclass(frozen=True)
class Episode:
    """What our client sent and got.

    Attributes:
        file: ``image`` or ``front``, and ``wrist``: (STEPS, 96, 96, 3); ``images`` (STEPS, 2, 3, 96, 96);
            ``state`` (STEPS, 8).
        chunks: (STEPS, 16, 7).
    """

    file: Path
    chunks: np.ndarray


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("every_wire") / "log"
    ports = [word for wire in THROUGH for word in (f"--{wire}_port", "0")]
    command = ("policy", "--host", "127.0.0.1", "--device", "cpu")
    with ServerProcess(log, *ports, command=command) as server:
        yield server


@pytest.fixture(scope="module")
def episode(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Episode:
    simulator = load("simulator", "robosuite", SIMULATORS)()
    simulator.load_task("Lift", TaskOptions(image_height=96, image_width=96))
    chunks, observations = [], []
    with PolicyClient(*server.address) as policy:
        observed = simulator.reset(seed=0)
        for step in range(STEPS):
            observation = simulator.to_meta_obs(observed)
            observation.timestep = step
            observation.raw_lang = "lift the cube"
            chunk = policy.infer_chunk(observation)
            observations.append(observation)
            chunks.append(chunk.actions)
            action = MetaAction(chunk.ctrl_space, chunk.ctrl_type, chunk.actions[0])
            observed = simulator.step(simulator.from_meta_action(action)).observation
    simulator.close()
    images = np.stack([observation.image for observation in observations])
    upright = images.transpose(1, 0, 3, 4, 2)
    path = tmp_path_factory.mktemp("episode") / "in.npz"
    state = np.stack([observation.state for observation in observations])
    np.savez(path, image=upright[0], front=upright[0], wrist=upright[1], images=images, state=state)
    return Episode(path, np.stack(chunks))


def closes_positive(chunks: np.ndarray) -> np.ndarray:
    """Return actions whose gripper is -1 open and 1 closed, as LIBERO's users have it."""
    converted = chunks.copy()
    converted[..., -1] = 1 - 2 * chunks[..., -1]
    return converted


def port_of(server: ServerProcess, name: str) -> int:
    (line,) = (line for line in server.banner if line.startswith(f"for {name}"))
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert found
    return int(found[1])


def through_openpi(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    port = port_of(server, "openpi's")
    run_peer("openpi", "run_openpi.py", "127.0.0.1", port, episode.file, target)
    return load_arrays(target)["chunks"], closes_positive(episode.chunks)


def through_vla_eval(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    url = f"ws://127.0.0.1:{port_of(server, 'vla-eval')}"
    run_peer("vla_eval", "run_vla_eval.py", url, episode.file, target)
    # One action for each observation, of the chunk of the first.
    assert STEPS <= N_ACTION_STEPS
    return load_arrays(target)["png"], closes_positive(episode.chunks[0, :STEPS])


def through_vlastudio(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(episode.file) as arrays:
        np.savez(target, image=arrays["images"], state=arrays["state"])
    url = f"http://127.0.0.1:{port_of(server, 'VLAStudio')}"
    lines = run_peer("vlastudio", "run_vlastudio.py", url, target, "raw", "robot")
    actions = [
        np.frombuffer(base64.b64decode(line["actions"]), line["dtype"]).reshape(line["shape"])
        for line in lines
        if "actions" in line
    ]
    return np.stack(actions), episode.chunks


def through_gr00t(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    port = port_of(server, "GR00T's")
    run_peer("gr00t", "gr00t_client.py", "n1.5", port, episode.file, target, *CAMERAS)
    return load_arrays(target)["chunks"], episode.chunks


def through_act_zmq(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ACT server's documented client: one action, the average of what all chunks predicted."""
    actions = []
    with zmq.Context() as context, context.socket(zmq.REQ) as socket, np.load(episode.file) as arrays:
        socket.setsockopt(zmq.RCVTIMEO, 30_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{port_of(server, 'the ACT')}")

        def ask(value: object) -> dict[str, Any]:
            socket.send(pickle.dumps(value))
            reply: dict[str, Any] = pickle.loads(socket.recv())
            return reply

        assert ask("RESET") == {"status": "OK"}
        for front, wrist, qpos in zip(arrays["front"], arrays["wrist"], arrays["state"]):
            images = dict(zip(CAMERAS, (front, wrist)))
            actions.append(ask({"qpos": qpos, "images": images})["action"])
    ensembler = TemporalEnsembler()
    return np.stack(actions), np.stack([ensembler.update(chunk) for chunk in episode.chunks])


def through_lerobot(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    """LeRobot's calls; its own client, of 5 GB, is run where the marker ``lerobot06`` asks for it."""
    joints = [f"joint_{number}.pos" for number in range(8)]
    features: dict[str, Any] = {"observation.state": {"dtype": "float32", "shape": (8,), "names": joints}}
    for camera in CAMERAS:
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": (96, 96, 3), "names": []}
    config = lerobot.RemotePolicyConfig("act", "robowire/act", features, actions_per_chunk=50)
    chunks = []
    with np.load(episode.file) as arrays, grpc.insecure_channel(
        f"localhost:{port_of(server, 'LeRobot')}"
    ) as channel:

        def call(method: str, message: bytes = b"") -> bytes:
            reply: bytes = channel.unary_unary(f"/{lerobot.SERVICE}/{method}")(message, timeout=30)
            return reply

        call(lerobot.READY)
        call(lerobot.SEND_POLICY_INSTRUCTIONS, lerobot.encode_data(lerobot.encode_instructions(config)))
        send = channel.stream_unary(f"/{lerobot.SERVICE}/{lerobot.SEND_OBSERVATIONS}")
        for step, (front, wrist, state) in enumerate(zip(arrays["front"], arrays["wrist"], arrays["state"])):
            values = {**dict(zip(joints, state.tolist())), **dict(zip(CAMERAS, (front, wrist)))}
            observed = lerobot.TimedObservation(1000.0, step, {**values, "task": "lift the cube"}, True)
            send(iter(lerobot.encode_pieces(lerobot.encode_observation(observed))), timeout=30)
            actions = lerobot.decode_actions(lerobot.read_data(call(lerobot.GET_ACTIONS)))
            chunks.append(np.stack([action.action for action in actions]))
    return np.stack(chunks), episode.chunks


THROUGH: dict[str, Callable[[ServerProcess, Episode, Path], tuple[np.ndarray, np.ndarray]]] = {
    "openpi": through_openpi,
    "gr00t": through_gr00t,
    "lerobot": through_lerobot,
    "act_zmq": through_act_zmq,
    "vla_eval": through_vla_eval,
    "vlastudio": through_vlastudio,
}


@pytest.mark.parametrize("wire", THROUGH)
def test_each_wire_gives_its_own_client_the_same_actions(
    wire: str, server: ServerProcess, episode: Episode, tmp_path: Path
) -> None:
    got, expected = THROUGH[wire](server, episode, tmp_path / "out.npz")
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert got.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert not (episode.chunks == episode.chunks[0]).all()  # the observations differ, and it sees them
