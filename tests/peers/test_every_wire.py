"""One command serves the shipped policy on every wire; each peer's client gets the same actions, bit for bit.

The observations are those of an episode of ``Lift`` that our client drives, on a simulator of this process.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from peer_process import run_peer
from server_process import ServerProcess

from benchmark.registry import SIMULATORS
from robowire import MetaAction, PolicyClient
from robowire.interfaces import TaskOptions
from robowire.registry import load

STEPS = 6
# Of 16 actions of a chunk the shipped policy wants these executed.
N_ACTION_STEPS = 8

WIRES = ("openpi", "vla_eval", "vlastudio")


@dataclass(frozen=True)
class Episode:
    """What our client sent and got.

    Attributes:
        file: ``image`` and ``wrist`` (STEPS, 96, 96, 3), ``images`` (STEPS, 2, 3, 96, 96), ``state``.
        chunks: (STEPS, 16, 7).
    """

    file: Path
    chunks: np.ndarray


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    ports = [word for wire in WIRES for word in (f"--{wire}_port", "0")]
    log = tmp_path_factory.mktemp("every_wire") / "log"
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
    np.savez(path, image=upright[0], wrist=upright[1], images=images, state=state)
    return Episode(path, np.stack(chunks))


def closes_positive(chunks: np.ndarray) -> np.ndarray:
    """Return actions whose gripper is -1 open and 1 closed, as LIBERO's users have it."""
    converted = chunks.copy()
    converted[..., -1] = 1 - 2 * chunks[..., -1]
    return converted


def port_of(server: ServerProcess, name: str) -> int:
    (line,) = (line for line in server.banner if line.startswith(f"for {name}"))
    found = re.search(r"://[\w.]+:(\d+)", line)
    assert found
    return int(found[1])


def through_openpi(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    port = port_of(server, "openpi's")
    run_peer("openpi", "run_openpi.py", "127.0.0.1", port, episode.file, target)
    return np.load(target)["chunks"], closes_positive(episode.chunks)


def through_vla_eval(server: ServerProcess, episode: Episode, target: Path) -> tuple[np.ndarray, np.ndarray]:
    url = f"ws://127.0.0.1:{port_of(server, 'vla-eval')}"
    run_peer("vla_eval", "run_vla_eval.py", url, episode.file, target)
    # One action for each observation, of the chunk of the first.
    assert STEPS <= N_ACTION_STEPS
    return np.load(target)["png"], closes_positive(episode.chunks[0, :STEPS])


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


THROUGH: dict[str, Callable[[ServerProcess, Episode, Path], tuple[np.ndarray, np.ndarray]]] = {
    "openpi": through_openpi,
    "vla_eval": through_vla_eval,
    "vlastudio": through_vlastudio,
}


@pytest.mark.parametrize("wire", WIRES)
def test_each_wire_gives_its_own_client_the_same_actions(
    wire: str, server: ServerProcess, episode: Episode, tmp_path: Path
) -> None:
    got, expected = THROUGH[wire](server, episode, tmp_path / "out.npz")
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert got.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert not (episode.chunks == episode.chunks[0]).all()  # the observations differ, and it sees them
