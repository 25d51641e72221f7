"""A simulator of your own: a point in a square of two by two metres that is moved to a goal. numpy only.

From this folder: ``python ../server.py simulator --simulators my_simulator:make_simulator``
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from robowire import (
    InvalidParams,
    MetaAction,
    MetaObs,
    SimulatorSpec,
    SpecMismatch,
    StepResult,
    TaskNotFound,
    TaskOptions,
)

REACHED_M = 0.05
STEP_M = 0.1  # how far an action of 1 moves the point


class MySimulator:
    """One task, ``reach``; one camera, ``top``, which shows the goal in green and the point in red."""

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the names that ``load_task`` takes."""
        return ["reach"]

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task. ``None`` in an option means this simulator's default."""
        if task_name != "reach":
            raise TaskNotFound(f"no task is called {task_name!r}. Known: reach")
        cameras = ("top",) if options.camera_names is None else tuple(options.camera_names)
        if not set(cameras) <= {"top"}:
            raise InvalidParams(f"camera_names is {list(cameras)}, expected top or nothing")
        self._spec = SimulatorSpec(
            simulator="my_simulator",
            task="reach",
            instruction="move the point to the goal",
            camera_names=cameras,
            image_height=options.image_height or 64,
            image_width=options.image_width or 64,
            state_dim=4,
            state_layout="position(2) goal(2)",
            action_dim=2,
            action_layout="dposition(2)",
            ctrl_space="ee",
            ctrl_type="delta",
            control_hz=10.0,
            max_episode_steps=options.horizon or 60,
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode. Every random number comes from this seed: the same seed, the same episode."""
        self._random = np.random.default_rng(seed)
        self._position, self._goal = self._random.uniform(-0.9, 0.9, (2, 2))
        self._steps = 0
        return self._observation()

    def step(self, action: np.ndarray) -> StepResult:
        """Move the point, with a little noise, and say how the episode stands."""
        noise = self._random.normal(0, 0.01, 2)
        self._position = np.clip(self._position + STEP_M * np.clip(action, -1, 1) + noise, -1, 1)
        self._steps += 1
        success = bool(np.linalg.norm(self._goal - self._position) < REACHED_M)
        truncated = not success and self._steps >= self._spec.max_episode_steps
        return StepResult(self._observation(), float(success), success, truncated, {"success": success})

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright."""
        if camera_name not in (None, "top"):
            raise InvalidParams(f"no camera is called {camera_name!r}. Known: top")
        height, width = self._spec.image_height or 64, self._spec.image_width or 64
        image = np.full((height, width, 3), 255, np.uint8)
        for place, color in ((self._goal, (0, 160, 0)), (self._position, (200, 0, 0))):
            row = int((1 - place[1]) / 2 * (height - 1))
            column = int((1 + place[0]) / 2 * (width - 1))
            image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = color
        return image

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return the observation as policies read it: images are (cameras, 3, height, width)."""
        state = np.concatenate([observation["position"], observation["goal"]]).astype(np.float32)
        images = [observation[f"{name}_image"].transpose(2, 0, 1) for name in self._spec.camera_names or ()]
        return MetaObs(state=state, image=np.stack(images) if images else None)

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return this simulator's own action, and refuse one that means something else."""
        given: Any = (action.ctrl_space, action.ctrl_type, np.shape(action.action))
        if given != ("ee", "delta", (2,)):
            raise SpecMismatch(f"the action is {given}, expected ('ee', 'delta', (2,))")
        return np.asarray(action.action, dtype=np.float64)

    def close(self) -> None:
        """Free what the simulator holds: nothing."""

    def _observation(self) -> dict[str, np.ndarray]:
        images = {f"{name}_image": self.render(name) for name in self._spec.camera_names or ()}
        return {"position": self._position.copy(), "goal": self._goal.copy(), **images}


def make_simulator() -> MySimulator:
    """Build the simulator, without a task."""
    return MySimulator()
