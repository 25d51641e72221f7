"""Policies and servers for tests: yours and ours. numpy only; nothing here waits for the clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from robowire.contracts import Policy, TaskOptions
from robowire.meta import MetaObs
from robowire.registry import Entry
from robowire.serving.policy_server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator_server import SimulatorServer, SimulatorServerOptions
from robowire.specs import PolicySpec

__all__ = [
    "FAKE_SIMULATORS",
    "ConstantPolicy",
    "EchoPolicy",
    "FailingPolicy",
    "SlowPolicy",
    "running_server",
    "running_simulator_server",
]


class ConstantPolicy:
    """Answer the same action whatever it sees, and accept anything.

    Args:
        spec: What it declares; ``action_dim`` must be set.
        value: Every entry of every action.
    """

    def __init__(self, spec: PolicySpec | None = None, *, value: float = 0.5) -> None:
        self.spec = spec or PolicySpec(policy="constant", chunk_size=4, action_dim=7)
        self._value = value

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim)."""
        shape = (len(observations), self.spec.chunk_size, self.spec.action_dim or 1)
        return np.full(shape, self._value, dtype=np.float32)


class EchoPolicy:
    """Answer with the state, so that a test sees whose observation an action came from.

    Step ``i`` of the chunk is the state plus ``i``.
    """

    def __init__(self, *, state_dim: int = 3, chunk_size: int = 4) -> None:
        self.spec = PolicySpec(
            policy="echo",
            camera_names=(),
            state_dim=state_dim,
            action_dim=state_dim,
            chunk_size=chunk_size,
            ctrl_space="joint",
            ctrl_type="absolute",
        )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, state_dim)."""
        states = np.stack([np.asarray(observation.state, dtype=np.float32) for observation in observations])
        steps = np.arange(self.spec.chunk_size, dtype=np.float32)
        chunks: np.ndarray = states[:, np.newaxis, :] + steps[:, np.newaxis]
        return chunks


class SlowPolicy:
    """Another policy that does not answer before it is released.

    Attributes:
        started: Set when an inference begins.
        release: Set it, and this inference and all later ones go on.
        batch_sizes: Of every inference so far.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or EchoPolicy()
        self.spec = self._policy.spec
        self.started = threading.Event()
        self.release = threading.Event()
        self.batch_sizes: list[int] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return what the other policy does, after ``release``."""
        self.batch_sizes.append(len(observations))
        self.started.set()
        self.release.wait()
        return self._policy.infer(observations)


class FailingPolicy:
    """Another policy that fails where the instruction says how: ``"raise"``, ``"nan"`` or ``"shape"``."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or EchoPolicy()
        self.spec = self._policy.spec

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return what the other policy does, or fail."""
        instructions = [observation.raw_lang for observation in observations]
        if "raise" in instructions:
            raise RuntimeError("the instruction says raise")
        actions = self._policy.infer(observations)
        actions[[instruction == "nan" for instruction in instructions]] = np.nan
        return actions[:, :-1] if "shape" in instructions else actions


@contextmanager
def running_server(policy: Policy, options: PolicyServerOptions | None = None) -> Iterator[PolicyServer]:
    """Serve the policy on a free port of this machine's loopback; leave no thread and no socket behind.

    Args:
        policy: What to serve.
        options: Its host and port are not used.
    """
    options = replace(options or PolicyServerOptions(drain_s=2.0), host="127.0.0.1", port=0)
    with PolicyServer(policy, options) as server:
        yield server


# A module of its own, because its process is to need nothing of a server.
FAKE_SIMULATORS: Mapping[str, Entry] = {
    "fake": Entry("robowire.fake_simulator:make_simulator", summary="a point that is moved to a goal")
}


@contextmanager
def running_simulator_server(
    options: SimulatorServerOptions | None = None,
    *,
    simulators: Mapping[str, Entry] = FAKE_SIMULATORS,
    task: TaskOptions | None = None,
    pythons: Mapping[str, str] | None = None,
) -> Iterator[SimulatorServer]:
    """Serve simulators on a free port of the loopback; leave no thread, process or socket behind.

    Args:
        options: Its host and port are not used.
        simulators: What clients may select.
        task: How tasks are built where a client does not say.
        pythons: Interpreter for a simulator.
    """
    options = replace(options or SimulatorServerOptions(drain_s=2.0), host="127.0.0.1", port=0)
    with SimulatorServer(simulators, options, task=task, pythons=pythons) as server:
        yield server
