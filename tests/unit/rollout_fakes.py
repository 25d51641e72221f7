"""A policy and a simulator in this process, with the methods of their clients: a point is pushed to zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

import numpy as np

from robowire.errors import BackendError, RobowireError
from robowire.meta import MetaAction, MetaObs
from robowire.specs import PolicySpec, SimulatorSpec

CHUNK_SIZE = 4
HORIZON = 12
DRIFT = 2.0**-20  # metres; a power of two, so that sums of it are exact here


@dataclass
class Step:
    observation: MetaObs
    reward: float


@dataclass
class Chunk:
    observation: MetaObs
    rewards: list[float]
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    steps: int


@dataclass
class FakePolicyServer:
    """Opens sessions. ``fails_at`` is the inference, counted over all sessions, at which it goes away."""

    info: dict[str, Any] = field(
        default_factory=lambda: PolicySpec(
            policy="push",
            chunk_size=CHUNK_SIZE,
            state_dim=1,
            action_dim=2,
            ctrl_space="ee",
            ctrl_type="delta",
        ).to_wire()
    )
    fails_at: int | None = None
    failure: RobowireError | BaseException | None = None
    calls: list[str] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    session: Callable[[FakePolicyServer], FakePolicySession] = field(
        default_factory=lambda: FakePolicySession
    )

    def open(self) -> FakePolicySession:
        self.calls.append("open")
        return self.session(self)


class FakePolicySession:
    def __init__(self, server: FakePolicyServer) -> None:
        self._server = server

    def get_info(self) -> dict[str, Any]:
        return self._server.info

    def reset(self) -> None:
        self._server.calls.append("reset")

    def send_meta_obs(self, obs: MetaObs) -> list[MetaAction]:
        server = self._server
        if server.failure is not None and len(server.timesteps) == server.fails_at:
            raise server.failure
        server.timesteps.append(obs.timestep)
        assert obs.state is not None
        move = np.clip(-obs.state[0], -0.1, 0.1)
        return [MetaAction("ee", "delta", np.array([move, 1.0], np.float32)) for _ in range(CHUNK_SIZE)]

    def disconnect(self) -> None:
        self._server.calls.append("disconnect")


@dataclass
class FakeSimulatorServer:
    """Opens sessions, whose point starts where the seed says.

    Attributes:
        dies: Seeds whose first run ends with the death of the simulator, and the step at which it dies.
        afterwards: Called at a death.
        gone: What a further session raises instead of opening.
        broken: What ``load_task`` raises.
        broken_loads: How many calls of ``load_task`` raise ``broken``; ``None`` for all.
        drifts: Makes a second run of a seed differ from the first.
        sparse: Gives a reward for success only.
        dies_loaded: How many simulators end right after load_task, before get_info.
    """

    spec: SimulatorSpec = field(
        default_factory=lambda: SimulatorSpec(
            simulator="line",
            task="Push",
            instruction="push the point to zero",
            state_dim=1,
            action_dim=2,
            ctrl_space="ee",
            ctrl_type="delta",
            control_hz=10,
            action_hold=("zero", "last"),
            max_episode_steps=HORIZON,
        )
    )
    dies: dict[int, int] = field(default_factory=dict)
    afterwards: Callable[[], None] = lambda: None
    gone: RobowireError | None = None
    broken: RobowireError | None = None
    broken_loads: int | None = None
    drifts: bool = False
    sparse: bool = False
    dies_loaded: int = 0
    calls: list[str] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    init_states: list[int | None] = field(default_factory=list)

    def open(self) -> FakeSimulatorSession:
        if self.gone is not None:
            raise self.gone
        self.calls.append("open")
        return FakeSimulatorSession(self)


class FakeSimulatorSession:
    def __init__(self, server: FakeSimulatorServer) -> None:
        self._server = server
        self._dead = False
        self._seed = self._steps = 0
        self._x = 0.0

    def select_simulator(self, name: str) -> None:
        self._server.calls.append(f"select {name}")

    def load_task(self, task_name: str, **options: Any) -> SimulatorSpec:
        if self._server.broken is not None and self._server.broken_loads != 0:
            if self._server.broken_loads is not None:
                self._server.broken_loads -= 1
            raise self._server.broken
        self._server.calls.append(f"load {task_name}")
        self._server.options.append(options)
        return self._server.spec

    def reset(self, seed: int | None = None, init_state: int | None = None) -> MetaObs:
        assert seed is not None
        self._server.init_states.append(init_state)
        self._seed, self._steps = seed, 0
        self._x = np.random.default_rng(seed).uniform(-2, 2)
        if self._server.drifts:
            self._x += DRIFT * self._server.seeds.count(seed)
        self._server.seeds.append(seed)
        return self._observe()

    def step(self, action: MetaAction) -> Step:
        chunk = self.step_chunk([action])
        return Step(chunk.observation, chunk.rewards[0])

    def step_chunk(self, actions: Sequence[MetaAction]) -> Chunk:
        rewards = []
        terminated = truncated = False
        for action in actions:
            if self._server.dies.get(self._seed) == self._steps:
                del self._server.dies[self._seed]
                self._dead = True
                self._server.afterwards()
            if self._dead:
                raise BackendError("the simulator died (killed by SIGKILL)")
            assert action.action is not None
            self._x += float(action.action[0])
            self._steps += 1
            terminated = abs(self._x) < 0.05
            rewards.append(float(terminated) if self._server.sparse else -abs(self._x))
            truncated = not terminated and self._steps >= HORIZON
            if terminated or truncated:
                break
        return Chunk(self._observe(), rewards, terminated, truncated, {"success": terminated}, len(rewards))

    def render(self, camera_name: str | None = None) -> np.ndarray:
        frame = np.zeros((16, 32, 3), np.uint8)
        frame[:, int(np.clip((self._x + 2) * 8, 0, 31))] = 255
        return frame

    def get_info(self) -> dict[str, Any]:
        if self._server.dies_loaded:
            self._server.dies_loaded -= 1
            return {"simulator": self._server.spec.simulator, "task": None}
        return {**self._server.spec.to_wire(), "process": {"versions": {"mujoco": "3.8.1"}}}

    def disconnect(self) -> None:
        self._server.calls.append("disconnect")
        if self._dead:
            raise BackendError("the simulator died (killed by SIGKILL)")

    def _observe(self) -> MetaObs:
        return MetaObs(state=np.array([self._x], np.float32), raw_lang=self._server.spec.instruction)
