"""A simulator of numpy alone, for tests: a point that is moved to a goal, and faults on demand.

A server finds it as ``"robowire.testing.fake_simulator:make_simulator"``.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any, Mapping

import numpy as np

from robowire.errors import InvalidParams, SnapshotMismatch, SpecMismatch, TaskNotFound
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec

__all__ = ["FakeSimulator", "make_simulator"]

_FAULTS = ("hang", "exit", "segfault", "raise", "babble", "leak")
_PLACES = ("load_task", "reset", "step", "close")

_SUITES: Mapping[str, tuple[str, ...]] = {
    "sound": ("reach",),
    "faulty": tuple(f"{fault}_in_{place}" for place in _PLACES for fault in _FAULTS),
}

_CAMERAS = ("front", "side", "wrist")
_INIT_STATES = 10
_STEP = 0.1  # metres that an action of 1 moves the point
_REACHED = 0.05  # metres from the goal
_LEAK = 32_000_000  # bytes


class FakeSimulator:
    """A point in a square of two by two metres.

    Task ``reach`` ends when it is near the goal. A task ``<fault>_in_<call>`` is the same until that call, in
    which it hangs, exits with code 3, commits a segmentation fault, raises, returns what is no plain data, or
    keeps 32 MB for ever.
    """

    def __init__(self) -> None:
        self._task = ""
        self._spec: SimulatorSpec | None = None
        self._rng = np.random.default_rng(0)
        self._position = np.zeros(2)
        self._goal = np.zeros(2)
        self._steps = 0
        self._leaked: list[bytes] = []

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the tasks; the suites are ``sound`` and ``faulty``."""
        if suite is None:
            return sorted(task for tasks in _SUITES.values() for task in tasks)
        if suite not in _SUITES:
            raise InvalidParams(f"no suite is called {suite!r}. Known: {', '.join(_SUITES)}")
        return sorted(_SUITES[suite])

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task: any of three cameras, 64 by 64 pixels unless told otherwise."""
        if task_name not in self.list_tasks():
            raise TaskNotFound(f"no task is called {task_name!r}. Known: {', '.join(self.list_tasks())}")
        cameras = _CAMERAS[:1] if options.camera_names is None else options.camera_names
        for camera in cameras:
            if camera not in _CAMERAS:
                raise InvalidParams(f"no camera is called {camera!r}. Known: {', '.join(_CAMERAS)}")
        self._task = task_name
        self._fail("load_task")
        self._spec = SimulatorSpec(
            simulator="fake",
            task=task_name,
            instruction="move the point to the goal",
            camera_names=cameras,
            image_height=options.image_height or 64,
            image_width=options.image_width or 64,
            state_dim=2,
            state_layout="position(2)",
            action_dim=3,
            action_layout="dposition(2) gripper(1)",
            ctrl_space="ee",
            ctrl_type="delta",
            control_hz=options.control_hz or 20.0,
            action_hold=("zero", "zero", "last"),
            max_episode_steps=options.horizon or 50,
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode: the point at the middle, the goal at random or at a numbered place."""
        if init_state is not None and init_state >= _INIT_STATES:
            raise InvalidParams(f"init_state is {init_state}, expected 0 to {_INIT_STATES - 1}")
        self._fail("reset")
        self._rng = np.random.default_rng(seed)
        self._position = np.zeros(2)
        place = self._rng if init_state is None else np.random.default_rng(init_state)
        self._goal = place.uniform(0.5, 1.0, 2)
        self._steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Move the point by a tenth of the action's first two numbers, in metres, with a little noise."""
        self._fail("step")
        noise = self._rng.normal(0, 1e-3, 2)
        self._position = np.clip(self._position + _STEP * np.asarray(action[:2]) + noise, -1, 1)
        self._steps += 1
        distance = float(np.linalg.norm(self._goal - self._position))
        success = distance < _REACHED
        truncated = not success and self._steps >= self._loaded.max_episode_steps
        info: dict[str, Any] = {"success": success, "distance": distance}
        if self._task == "babble_in_step":
            info["friend"] = self
        return StepResult(self._observe(), float(success), success, truncated, info)

    def save_state(self) -> dict[str, Any]:
        """Return the point, the goal, the generator and the count of steps."""
        return {
            "position": self._position.copy(),
            "goal": self._goal.copy(),
            "random": self._rng.bit_generator.state,
            "steps": self._steps,
        }

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go back to what :meth:`save_state` returned."""
        if set(state) != {"position", "goal", "random", "steps"}:
            raise SnapshotMismatch(f"the snapshot holds {sorted(state)}, which is no state of this simulator")
        self._position, self._goal = np.array(state["position"]), np.array(state["goal"])
        self._rng.bit_generator.state = state["random"]
        self._steps = int(state["steps"])
        return self._observe()

    def fingerprint(self) -> dict[str, str]:
        """Return the version of numpy, whose generator moves the point."""
        return {"numpy": np.__version__}

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return what the camera sees, the first one by default."""
        cameras = _CAMERAS if camera_name is None else (camera_name,)
        if cameras[0] not in _CAMERAS:
            raise InvalidParams(f"no camera is called {camera_name!r}. Known: {', '.join(_CAMERAS)}")
        return self._render(cameras[0])

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return the observation as policies read it."""
        images = [
            observation[f"{camera}_image"].transpose(2, 0, 1) for camera in self._loaded.camera_names or ()
        ]
        state = observation["position"].astype(np.float32)
        return MetaObs(state=state, image=np.stack(images) if images else None)

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the action's numbers, which are this simulator's own."""
        for name in ("ctrl_space", "ctrl_type"):
            wanted, given = getattr(self._loaded, name), getattr(action, name)
            if given != wanted:
                raise SpecMismatch(f"{name} is {given!r}, expected {wanted!r}")
        if action.action is None or np.shape(action.action) != (self._loaded.action_dim,):
            raise SpecMismatch(
                f"the action is {action.action!r}, expected ({self._loaded.action_dim},) numbers"
            )
        return np.asarray(action.action, dtype=np.float64)

    def close(self) -> None:
        """Do nothing, unless the task is to fail here."""
        self._fail("close")

    @property
    def _loaded(self) -> SimulatorSpec:
        assert self._spec is not None, "load_task comes first"
        return self._spec

    def _observe(self) -> dict[str, np.ndarray]:
        images = {f"{camera}_image": self._render(camera) for camera in self._loaded.camera_names or ()}
        return {"position": self._position.copy(), "goal": self._goal.copy(), **images}

    def _render(self, camera: str) -> np.ndarray:
        """Return noise of the camera and the step, so that an image that was mixed up or torn shows."""
        height, width = self._loaded.image_height or 0, self._loaded.image_width or 0
        rng = np.random.default_rng([_CAMERAS.index(camera), self._steps])
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def _fail(self, place: str) -> None:
        fault, _, where = self._task.partition("_in_")
        if where != place or fault == "babble":
            return
        if fault == "leak":
            self._leaked.append(b"x" * _LEAK)
            return
        sys.stderr.write(f"about to {fault}\n")
        if fault == "exit":
            os._exit(3)
        if fault == "segfault":
            ctypes.string_at(0)
        if fault == "raise":
            raise RuntimeError(f"the fake fails in {place}")
        while True:  # hang
            time.sleep(0.1)


def make_simulator() -> FakeSimulator:
    """Return the simulator, without a task."""
    return FakeSimulator()
