"""A Gymnasium environment behind the contract of a simulator. Which ones there are is a family's business."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from PIL import Image

from benchmark.environments.spaces import ActionNumbers, ObservationNames, rgb
from robowire.errors import BackendError, InvalidParams, NoTaskLoaded, SpecMismatch, TaskNotFound
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import nearest
from robowire.specs import SimulatorSpec
from robowire.worker.simulator_input import advance_chunk, checked_action, chosen_seed, positive

__all__ = ["RENDER", "Ending", "Family", "GymnasiumSimulator", "Scene"]

# The camera of every environment that draws itself.
RENDER = "render"
DEFAULT_IMAGE_SIZE = 128

# How many unknown names a message lists before it is no longer read.
_SHOWN_TASKS = 12


@dataclass(frozen=True)
class Ending:
    """What a step was, for the question whether the task succeeded.

    Attributes:
        reward: Of this step.
        total_reward: Of the episode so far.
        terminated: The environment ended the episode.
        truncated: It is over otherwise.
        info: The environment's own.
    """

    reward: float
    total_reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """A task, built.

    Attributes:
        env: Its environment, without a limit of steps, and with ``render_mode="rgb_array"`` where it can.
        instruction: The task in words.
        horizon: Steps after which an episode is truncated.
        control_hz: Actions per second of episode time; ``None`` where the environment does not say.
        begin: Begins an episode by its seed and the number of an initial state; returns the observation.
        success: Whether the task has succeeded, and by what rule, in words. Its answer at the end counts.
        draw: Returns the image, uint8 (height, width, 3), upright, and changes nothing by it.
        close: Ends the environment.
        rendering: What images are, for the spec.
        actions: What the numbers of an action mean to the environment.
        init_states: How many numbered initial states ``begin`` takes; ``None`` where there are none.
        bounded: Whether observations keep the bounds of their space.
        ctrl_space: As in the spec; ``None`` where the environment does not say.
        ctrl_type: The same.
    """

    env: gymnasium.Env[Any, Any]
    instruction: str
    horizon: int
    control_hz: float | None
    begin: Callable[[int, int | None], Any]
    success: Callable[[Ending], tuple[bool, str]]
    draw: Callable[[], np.ndarray]
    close: Callable[[], None]
    rendering: str
    actions: ActionNumbers
    init_states: int | None = None
    bounded: bool = True
    ctrl_space: str | None = None
    ctrl_type: str | None = None


class Family(Protocol):
    """Which tasks there are, and how they are built."""

    name: str

    def tasks(self, suite: str | None) -> list[str]:
        """Return the names of all tasks, or of a suite's, sorted.

        Raises:
            InvalidParams: There is no such suite.
        """
        ...

    def build(self, task_name: str, options: TaskOptions) -> Scene:
        """Return a task of :meth:`tasks`, built as ``horizon``, ``control_hz``, ``reward_shaping`` say.

        Raises:
            InvalidParams: One of these does not suit it.
        """
        ...


class GymnasiumSimulator:
    """One environment of a family; implements :class:`robowire.interfaces.Simulator`.

    Raw observations carry the names of the environment's own space, and ``render_image`` where the camera
    ``"render"`` is asked for.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._scene: Scene | None = None
        self._spec: SimulatorSpec | None = None
        self._names: ObservationNames | None = None
        self._steps = 0
        self._total_reward = 0.0
        self._instruction = ""  # what the last observation said

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the names ``load_task`` takes, sorted; of one suite, where one is named.

        Raises:
            InvalidParams: There is no such suite.
        """
        return self._family.tasks(suite)

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task, closing the one before; returns its spec.

        Raises:
            TaskNotFound: The family has no such task.
            InvalidParams: An option does not suit it; names the option.
        """
        name, known = self._family.name, self._family.tasks(None)
        if task_name not in known:
            shown = ", ".join(known) if len(known) <= _SHOWN_TASKS else f"{len(known)}, see list_tasks"
            raise TaskNotFound(f"{name} has no task {task_name!r}.{nearest(task_name, known)} Known: {shown}")
        for option in ("robot", "controller"):
            if getattr(options, option) is not None:
                raise InvalidParams(
                    f"{option} is {getattr(options, option)!r}, but a task of {name} has only its own: leave "
                    "it out"
                )
        height = positive("image_height", options.image_height, DEFAULT_IMAGE_SIZE)
        width = positive("image_width", options.image_width, DEFAULT_IMAGE_SIZE)
        positive("horizon", options.horizon, 1)

        self.close()
        scene = self._family.build(task_name, options)
        try:
            names = ObservationNames(scene.env.observation_space, bounded=scene.bounded)
            known_cameras = (RENDER, *names.images)
            cameras = names.images if options.camera_names is None else tuple(options.camera_names)
            for camera in cameras:
                if camera not in known_cameras:
                    raise InvalidParams(
                        f"{task_name} has no camera {camera!r}.{nearest(camera, known_cameras)} "
                        f"Known: {', '.join(known_cameras)}"
                    )
                if camera == RENDER:
                    _require_drawing(scene.env)
        except BaseException:
            scene.close()
            raise
        self._scene, self._names = scene, names
        self._spec = SimulatorSpec(
            camera_names=cameras,
            image_height=height if cameras else None,
            image_width=width if cameras else None,
            state_dim=sum(names.numbers.values()) or None,
            state_layout=" ".join(f"{part}({length})" for part, length in names.numbers.items()) or None,
            action_dim=scene.actions.dim,
            action_layout=scene.actions.layout,
            ctrl_space=scene.ctrl_space,
            ctrl_type=scene.ctrl_type,
            control_hz=scene.control_hz,
            action_hold=scene.actions.hold,
            simulator=name,
            task=task_name,
            instruction=scene.instruction,
            max_episode_steps=scene.horizon,
            rendering=scene.rendering if cameras else None,
            init_states=scene.init_states,
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode and return its first observation.

        Args:
            seed: From 0 to 2**32 - 1; ``None`` draws one. The same one gives the same episode, bit for bit,
                unless the environment itself does not repeat.
            init_state: From 0, where the spec says how many there are.

        Raises:
            InvalidParams: ``seed`` or ``init_state`` is out of range, or the task numbers no initial states.
        """
        spec, scene = self._loaded()
        if init_state is not None and spec.init_states is None:
            raise InvalidParams(
                f"{spec.task} numbers no initial states, so init_state must be None, not {init_state}"
            )
        if init_state is not None and not 0 <= init_state < (spec.init_states or 0):
            raise InvalidParams(f"init_state is {init_state}, expected 0 to {(spec.init_states or 0) - 1}")
        seed = chosen_seed(seed)
        # An environment should draw from its own generator alone. Some do not.
        random.seed(seed)
        np.random.seed(seed)
        self._steps, self._total_reward = 0, 0.0
        return self._with_images(self._arrays(scene.begin(seed, init_state)))

    def step(self, action: np.ndarray) -> StepResult:
        """Execute the environment's own action as one row of numbers, for one step.

        The environment decides what ends an episode, and the horizon. ``info`` holds what is plain data of
        the environment's own, ``success``, which is of the whole episode and false before its end, and
        ``success_rule``: how that was decided, in words.

        Raises:
            InvalidParams: The action has another shape, is not finite, or chooses what there is not.
        """
        result = self._advance(action)
        self._with_images(result.observation)
        return result

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        """Do as :meth:`step` for each action, up to the end of the episode, but draw after the last only.

        Returns:
            The reward of every action that was executed, and what the last one gave.
        """
        rewards, result = advance_chunk(self._advance, actions)
        self._with_images(result.observation)
        return rewards, result

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright, as large as the environment draws. A fresh array.

        Args:
            camera_name: ``None`` or ``"render"``.

        Raises:
            InvalidParams: It is another one, or the environment does not draw.
        """
        spec, scene = self._loaded()
        if camera_name not in (None, RENDER):
            raise InvalidParams(f"{spec.task} has no camera {camera_name!r} to render. Known: {RENDER}")
        _require_drawing(scene.env)
        return np.array(scene.draw())

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return all numbers of the observation one after the other, and the images of the cameras."""
        spec, _ = self._loaded()
        assert self._names is not None
        images = [
            _sized(
                observation[f"{camera}_image" if camera == RENDER else camera],
                height=spec.image_height or 0,
                width=spec.image_width or 0,
            )
            for camera in spec.camera_names or ()
        ]
        return MetaObs(
            state=self._names.state(observation),
            image=np.stack(images).transpose(0, 3, 1, 2).copy() if images else None,
            raw_lang=self._instruction or spec.instruction,
            timestep=self._steps,
        )

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the same numbers, float32 (action_dim,): they are the environment's own.

        Raises:
            SpecMismatch: ``ctrl_space`` or ``ctrl_type`` is not what the spec says, where it says one, or the
                length is another.
        """
        spec, _ = self._loaded()
        for field in ("ctrl_space", "ctrl_type"):
            found, expected = action[field], getattr(spec, field)
            if expected is not None and found != expected:
                raise SpecMismatch(f"{field} of the action is {found!r}, expected {expected!r}")
        shape = None if action.action is None else np.shape(action.action)
        if shape != (spec.action_dim,):
            raise SpecMismatch(
                f"the action has shape {shape}, expected ({spec.action_dim},): {spec.action_layout}"
            )
        return np.array(action.action, np.float32)

    def close(self) -> None:
        """Free the environment and what it draws with."""
        scene, self._scene, self._spec, self._names = self._scene, None, None, None
        if scene is not None:
            scene.close()

    def _loaded(self) -> tuple[SimulatorSpec, Scene]:
        if self._spec is None or self._scene is None:
            raise NoTaskLoaded("load_task must come first")
        return self._spec, self._scene

    def _advance(self, action: np.ndarray) -> StepResult:
        """Do as :meth:`step`, but for the images."""
        spec, scene = self._loaded()
        own = scene.actions.action(checked_action(action, spec.action_dim))
        observation, reward, terminated, truncated, info = scene.env.step(own)
        self._steps += 1
        reward = _number(reward)
        self._total_reward += reward
        truncated = bool(truncated) or self._steps >= spec.max_episode_steps
        reached, rule = scene.success(Ending(reward, self._total_reward, bool(terminated), truncated, info))
        # Where an environment goes on after success, as Fetch does, it may be lost again: what was there at
        # the end counts. And success is an end that the task made, be it at the horizon.
        success = reached and (bool(terminated) or truncated)
        return StepResult(
            observation=self._arrays(observation),
            reward=reward,
            terminated=bool(terminated) or success,
            truncated=truncated,
            info={**_plain_items(info), "success": success, "success_rule": rule},
        )

    def _arrays(self, observation: Any) -> dict[str, np.ndarray]:
        assert self._names is not None
        self._instruction = self._names.instruction(observation)
        return self._names.arrays(observation)

    def _with_images(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        spec, scene = self._loaded()
        if RENDER in (spec.camera_names or ()):
            height, width = spec.image_height or 0, spec.image_width or 0
            arrays[f"{RENDER}_image"] = _sized(scene.draw(), height=height, width=width)
        return arrays


def _require_drawing(env: gymnasium.Env[Any, Any]) -> None:
    if env.render_mode is None:
        raise InvalidParams("this environment draws no images: it has no render mode 'rgb_array'")


def _sized(frame: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Return an image, uint8 (height, width, 3), of any other size or of one grey channel."""
    frame = rgb(frame)
    if frame.shape[:2] == (height, width):
        return np.array(frame)
    # Pillow's BILINEAR looks at every pixel that a new one covers; few libraries' does.
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def _number(reward: Any) -> float:
    """Return a reward, which some environments wrap into an array of one."""
    try:
        return float(np.asarray(reward).item())
    except (TypeError, ValueError) as exc:
        raise BackendError(f"the reward is {str(reward)[:100]}, expected one number") from exc


def _plain_items(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an ``info`` the wire carries: numbers, texts, arrays of numbers, and dicts of them."""
    plain: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Mapping):
            plain[str(key)] = _plain_items(value)
        elif isinstance(value, (bool, int, float, str)) or value is None:
            plain[str(key)] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            plain[str(key)] = value.copy()
    return plain
