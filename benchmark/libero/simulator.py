"""LIBERO behind the contract of a simulator. What its numbers mean is in ``conventions.py``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmark.arms.commands import ARM_COMMANDS, command_units, control_rate, own_action, upright
from benchmark.libero.assets import require_assets
from benchmark.libero.conventions import (
    CONTROLLERS,
    STATE_LAYOUT,
    center_named,
    dummy_action,
    gripper_opening,
    libero_named,
    policy_state,
    turned,
)
from benchmark.libero.package import environments
from benchmark.libero.tasks import Task, find_task, package_folder, suite_tasks
from robowire.errors import BackendError, InvalidParams, NoTaskLoaded
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import nearest
from robowire.specs import SimulatorSpec, layout_names
from robowire.worker.simulator_input import advance_chunk, checked_action, chosen_seed, positive

__all__ = ["RENDERING_VARIABLE", "LiberoSimulator", "make_simulator"]

logger = logging.getLogger(__name__)

ROBOT = "Panda"  # the one that LIBERO's scenes are made for
JOINTS = 7
DEFAULT_CONTROLLER = "OSC_POSE"
DEFAULT_CAMERAS = ("agentview", "robot0_eye_in_hand")
DEFAULT_IMAGE_SIZE = 128  # that of LIBERO's data sets

# An episode begins when what was placed a little above the table has come to rest: the paper's number.
SETTLING_STEPS = 10

# Objects that found no place are drawn again; LIBERO itself would try for ever.
_MAX_PLACEMENTS = 20

# What ``render`` gives is for people, who see little in 128 pixels.
_RENDER_MIN_SIZE = 256
_BEST_VIEW = "agentview"

RENDERING_VARIABLE = "ROBOWIRE_LIBERO_RENDERING"
_RENDERING = {
    "libero": "as LIBERO draws: reflections, multisampling",
    # Two to three times as many steps a second on a CPU. Policies were trained on images with both.
    "fast": "reflections off, multisampling off",
}


class LiberoSimulator:
    """One LIBERO environment; implements :class:`robowire.interfaces.Simulator`.

    Observations are LIBERO's own: names, timing, and images upside down. An evaluation with LIBERO
    itself gets the same. ``to_meta_obs`` turns the images for policies.
    """

    def __init__(self) -> None:
        self._env: Any = None
        self._spec: SimulatorSpec | None = None
        self._init_states: np.ndarray = np.empty((0, 0))
        self._as_built: dict[str, np.ndarray] = {}
        self._steps = 0
        self._cameras: dict[str, Any] = {}
        self._controller = ""  # the spec does not show it
        self._center = False  # whether observations have the names of CENTER_NAMES

    @property
    def names(self) -> tuple[str, ...]:
        """LIBERO's own, and those of an older server: ``CENTER_NAMES`` in ``conventions.py``."""
        return ("raw", "center")

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the full names of a suite's tasks, or of all, sorted; numbers follow LIBERO's order instead.

        Raises:
            InvalidParams: There is no such suite.
        """
        return sorted(task.name for task in suite_tasks(suite))

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Build the task, closing the one before; returns its spec.

        Args:
            task_name: Its full name, or ``"libero_goal/7"``.
            options: ``horizon`` counts from when the scene has settled; by default the suite's.

        Raises:
            TaskNotFound: LIBERO has no such task.
            InvalidParams: An option does not suit it; names the option and what is known.
            BackendError: Files of its scene are missing.
        """
        task = find_task(task_name)
        if options.robot not in (None, ROBOT):
            raise InvalidParams(f"LIBERO's robot is {ROBOT!r}, not {options.robot!r}")
        if options.reward_shaping:
            raise InvalidParams("reward_shaping is True, but LIBERO's reward is 1 at success and 0 before")
        controller = options.controller or DEFAULT_CONTROLLER
        if controller not in CONTROLLERS:
            raise InvalidParams(
                f"LIBERO has no controller {controller!r}.{nearest(controller, CONTROLLERS)} "
                f"Known: {', '.join(sorted(CONTROLLERS))}"
            )
        control_hz = control_rate(options.control_hz)
        height = positive("image_height", options.image_height, DEFAULT_IMAGE_SIZE)
        width = positive("image_width", options.image_width, DEFAULT_IMAGE_SIZE)
        horizon = positive("horizon", options.horizon, task.step_limit)
        cameras = DEFAULT_CAMERAS if options.camera_names is None else tuple(options.camera_names)
        rendering = _rendering()
        require_assets(task)

        self.close()
        self._env = _build(task, controller=controller, control_hz=control_hz, fast=rendering == "fast")
        try:
            _require_cameras(cameras, self._env.sim.model.camera_names)
        except InvalidParams:
            self.close()
            raise
        for camera in cameras:
            self._add_camera(camera, height=height, width=width)
        self._init_states = task.init_states()
        self._as_built = _changing_arrays(self._env)
        self._controller = controller
        self._center = options.names == "center"
        command = ARM_COMMANDS[controller]
        action_layout = f"{command.layout.format(n=JOINTS)} gripper(1)"
        self._spec = SimulatorSpec(
            camera_names=cameras,
            image_height=height if cameras else None,
            image_width=width if cameras else None,
            state_dim=8,
            state_layout=STATE_LAYOUT,
            action_dim=int(self._env.env.action_dim),
            action_layout=action_layout,
            ctrl_space=command.ctrl_space,
            ctrl_type=command.ctrl_type,
            control_hz=control_hz,
            action_hold=(command.hold,) * (int(self._env.env.action_dim) - 1) + ("last",),
            state_names=layout_names(STATE_LAYOUT),
            action_names=layout_names(action_layout),
            state_units=("m",) * 3 + ("rad",) * 3 + ("m",) * 2,
            action_units=command_units(action_layout),
            simulator="libero",
            task=task.name,
            instruction=task.instruction,
            max_episode_steps=horizon,
            rendering=f"{_RENDERING[rendering]}; raw upside down, MetaObs turned by 180 degrees"
            if cameras
            else None,
            init_states=len(self._init_states),
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode, let the scene settle, and return the first observation.

        The same seed and initial state give the same episode, bit for bit. Published evaluations use one seed
        for all 50 initial states: it moves what an initial state does not hold, such as a cabinet.

        Args:
            seed: From 0 to 2**32 - 1; ``None`` draws one.
            init_state: 0 to 49; ``None`` draws a placement from the task's own distribution, by the seed.

        Raises:
            InvalidParams: ``seed`` or ``init_state`` is out of range.
            BackendError: No placement of the objects was found.
        """
        self._loaded()
        count = len(self._init_states)
        if init_state is not None and not 0 <= init_state < count:
            raise InvalidParams(f"init_state is {init_state}, expected 0 to {count - 1}")
        seed = chosen_seed(seed)
        np.random.seed(seed)  # all of LIBERO's randomness
        self._place()
        if init_state is not None:
            self._env.set_init_state(self._init_states[init_state])
        waiting = dummy_action(self._env.env.action_dim)
        for _ in range(SETTLING_STEPS):
            observation = _owned(self._env.step(waiting)[0])
        self._steps = 0
        return self._shown(observation)

    def step(self, action: np.ndarray) -> StepResult:
        """Execute LIBERO's own action, float (action_dim,), for one control period.

        Its last entry is the gripper's command, -1 open and +1 closed. Success ends the episode.

        Raises:
            InvalidParams: The action has another shape or holds something not finite.
        """
        result = self._advance(action)
        return replace(result, observation=self._shown(result.observation))

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        """Do as :meth:`step` for each action, up to the end of the episode, but draw after the last only.

        Returns:
            The reward of every action that was executed, and what the last one gave.
        """
        rewards, result = advance_chunk(self._advance, actions)
        return rewards, replace(result, observation=self._shown(result.observation))

    def save_state(self) -> dict[str, Any]:
        """Return the whole state of the episode, as plain data; see ``benchmark/arms/snapshots.py``."""
        self._loaded()
        images = {name: camera.draw() for name, camera in self._cameras.items()}
        return {"steps": self._steps, "pictures": images, **_snapshots().save(self._env.env)}

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go to an instant of an episode of the same task and return its observation; nothing is drawn.

        Raises:
            SnapshotMismatch: The state does not fit the task's model.
        """
        self._loaded()
        _snapshots().restore(self._env.env, state)
        self._steps = int(state["steps"])
        for name, camera in self._cameras.items():
            camera.put_back(state["pictures"][name])
        return self._shown(_owned(self._env.env._get_observations()))

    def fingerprint(self) -> dict[str, str]:
        """Return what a saved state depends on, in addition to the spec."""
        self._loaded()
        model = _snapshots().model_digest(self._env.env)
        return {**_snapshots().versions("hf-libero"), "controller": self._controller, "model": model}

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return uint8 (height, width, 3), RGB, upright, at least 256 pixels high and wide. A fresh array.

        Args:
            camera_name: ``None`` means ``"agentview"``, where the whole scene is seen.

        Raises:
            InvalidParams: The scene has no such camera.
        """
        spec = self._loaded()
        camera = camera_name or _BEST_VIEW
        _require_cameras([camera], self._env.sim.model.camera_names)
        height, width = (max(size or 0, _RENDER_MIN_SIZE) for size in (spec.image_height, spec.image_width))
        shown = self._camera(camera, height=height, width=width)
        shown.look()
        return upright(shown.draw()).copy()

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return what published policies take: see ``conventions.py``; never an object's pose."""
        spec = self._loaded()
        observation = libero_named(observation)
        images = [turned(observation[f"{camera}_image"]) for camera in spec.camera_names or ()]
        pose = (observation["robot0_eef_pos"], observation["robot0_eef_quat"])
        opening = gripper_opening(observation["robot0_gripper_qpos"])
        return MetaObs(
            state=policy_state(observation),
            state_ee=np.concatenate([*pose, [opening]]).astype(np.float32),
            state_joint=observation["robot0_joint_pos"].astype(np.float32),
            image=np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)) if images else None,
            raw_lang=spec.instruction,
            timestep=self._steps,
        )

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return LIBERO's own action, float32 (action_dim,).

        Raises:
            SpecMismatch: ``ctrl_space``, ``ctrl_type`` or the length is not the loaded task's.
        """
        return own_action(action, self._loaded(), [-1])

    def close(self) -> None:
        """Free the environment and its OpenGL context."""
        if self._env is not None:
            self._env.close()
        self._env = self._spec = None
        self._cameras = {}

    def _loaded(self) -> SimulatorSpec:
        if self._spec is None:
            raise NoTaskLoaded("load_task must come first")
        return self._spec

    def _place(self) -> None:
        """Reset LIBERO's environment. Its own wrapper would try again for ever, whatever went wrong.

        Nor is the model made again, which takes two seconds: what an episode changes in it is put back, which
        gives the same bits.
        """
        from robosuite.utils.errors import RandomizationError

        env = self._env.env
        for attempt in range(1, _MAX_PLACEMENTS + 1):
            for name, array in self._as_built.items():
                getattr(env.sim.model._model, name)[:] = array
            gripper = env.robots[0].gripper
            gripper.current_action = np.zeros_like(gripper.current_action)
            try:
                env.reset()
            except RandomizationError:
                logger.info("the objects found no place, attempt %d", attempt)
            else:
                return
        raise BackendError(
            f"LIBERO's objects found no place in {_MAX_PLACEMENTS} attempts; another seed may do"
        )

    def _advance(self, action: np.ndarray) -> StepResult:
        """Do as :meth:`step`, but for the images, which are empty."""
        spec = self._loaded()
        action = checked_action(action, spec.action_dim)
        observation, reward, success, _ = self._env.step(action)
        self._steps += 1
        return StepResult(
            observation=_owned(observation),
            reward=float(reward),
            terminated=bool(success),
            truncated=self._steps >= spec.max_episode_steps,
            info={"success": bool(success)},
        )

    def _add_camera(self, name: str, *, height: int, width: int) -> None:
        """Let a camera be an observable as LIBERO's are, and look at the same instants."""
        from robosuite.utils.observables import Observable, sensor

        camera = self._cameras[name] = self._camera(name, height=height, width=width)
        not_yet = np.zeros(0, np.uint8)  # the image comes when the observation is complete

        @sensor(modality="image")  # type: ignore[untyped-decorator]
        def look(cache: Mapping[str, Any]) -> np.ndarray:
            camera.look()
            return not_yet

        env = self._env.env
        env.add_observable(Observable(f"{name}_image", sensor=look, sampling_rate=env.control_freq))

    def _shown(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the observation complete with its images, under the names that were asked for."""
        for name, camera in self._cameras.items():
            observation[f"{name}_image"] = camera.draw()
        return center_named(observation, list(self._cameras)) if self._center else observation

    def _camera(self, name: str, *, height: int, width: int) -> Any:
        from benchmark.libero.cameras import Camera  # imports mujoco, which binds a GL backend then

        return Camera(self._env.sim, name, height=height, width=width)


def make_simulator() -> LiberoSimulator:
    """Return a LIBERO simulator without a task.

    Raises:
        MissingDependency: LIBERO is not installed.
    """
    package_folder()
    return LiberoSimulator()


def _snapshots() -> Any:
    from benchmark.arms import snapshots  # imports mujoco, which binds a GL backend then

    return snapshots


def _build(task: Task, *, controller: str, control_hz: float, fast: bool) -> Any:
    """Return LIBERO's own environment, not yet reset, without cameras; it ends no episode by itself."""
    env = environments().OffScreenRenderEnv(
        bddl_file_name=str(task.bddl_file),
        robots=[ROBOT],
        controller=controller,
        control_freq=control_hz,
        ignore_done=True,
        use_camera_obs=False,
    )
    if fast:
        _omit_costly_light(env.sim)
    env.env.hard_reset = False  # what that would do otherwise, _place does
    # LIBERO adds what opens a drawer once more at every hard reset, and each draws a random number. So many
    # there are when a new environment is reset for the first time.
    env.env.object_property_initializers *= 2
    return env


def _changing_arrays(env: Any) -> dict[str, np.ndarray]:
    """Return a copy of what episodes change in the model, as its description has it.

    A cabinet is placed by moving its body, and a burning stove shows by the colour of a site.
    """
    # mujoco's own, without the import that would bind a GL backend before one is chosen.
    described = type(env.sim.model._model).from_xml_string(env.env.model.get_xml())
    return {name: getattr(described, name).copy() for name in ("body_pos", "body_quat", "site_rgba")}


def _require_cameras(cameras: Sequence[str], known: Sequence[str]) -> None:
    for camera in cameras:
        if camera not in known:
            raise InvalidParams(
                f"LIBERO has no camera {camera!r} here.{nearest(camera, known)} "
                f"Known: {', '.join(sorted(known))}"
            )


def _omit_costly_light(sim: Any) -> None:
    """Draw matt surfaces, and one sample a pixel."""
    sim.model._model.mat_reflectance[:] = 0
    sim.model._model.vis.quality.offsamples = 0
    drawing = sim._render_context_offscreen
    drawing.con.free()  # it holds the samples
    drawing._set_mujoco_context_and_buffers()


def _rendering() -> str:
    chosen = os.environ.get(RENDERING_VARIABLE) or "libero"
    if chosen not in _RENDERING:
        raise InvalidParams(
            f"{RENDERING_VARIABLE} is {chosen!r}, expected {' or '.join(map(repr, _RENDERING))}"
        )
    return chosen


def _owned(observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in observation.items()}
