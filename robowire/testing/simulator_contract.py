"""What every simulator keeps, as tests for a simulator of your own.

A test file of five lines, run by ``pytest`` in the environment of the simulator::

    from my.module import make_simulator
    from robowire.testing import SimulatorContract

    class TestMine(SimulatorContract):
        make_simulator = make_simulator
        task_name = "lift the cube"

Needs numpy and whatever runs the methods; nothing of pytest is imported.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, List, Mapping, Sequence

import numpy as np

from robowire.errors import InvalidParams, SnapshotMismatch, SpecMismatch, TaskNotFound
from robowire.interfaces import Chunked, Restorable, Simulator, StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode
from robowire.worker.snapshots import digests

__all__ = ["SimulatorContract"]

# What was seen at each moment of an episode: digests by name.
Trace = List[Dict[str, bytes]]

_NOWHERE = "no such thing as this"


@dataclass
class _Held:
    """The simulator that the tests of a class share: loading a task takes seconds."""

    simulator: Simulator
    options: TaskOptions | None = None  # how the task was loaded
    spec: SimulatorSpec | None = None


@dataclass(frozen=True)
class _Instant:
    """What was saved in the middle of an episode, as it crosses the wire, and what came next."""

    payload: bytes
    observation: dict[str, bytes]
    following: Trace

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = loads(bytearray(self.payload))
        return state


class SimulatorContract:
    """Inherit from it, in a class whose name begins with ``Test``.

    Snapshots and chunks are checked where the simulator offers them: :class:`robowire.interfaces.Restorable`,
    :class:`robowire.interfaces.Chunked`.

    Attributes:
        make_simulator: What a server would call: a function or class of a module, for another process has to
            find it too.
        task_name: A task to load.
        options: How; small images make the tests fast.
        seeds_differ: Whether episodes of different seeds begin differently.
        num_steps: How many steps are compared bit for bit after a restore.
        timeout_s: Seconds that another process may take to load the task and run some episodes.
    """

    make_simulator: ClassVar[Callable[[], Any]]
    task_name: ClassVar[str]
    options: ClassVar[TaskOptions] = TaskOptions()
    seeds_differ: ClassVar[bool] = True
    num_steps: ClassVar[int] = 50
    timeout_s: ClassVar[float] = 300.0

    _held: ClassVar[_Held | None] = None
    _instant: ClassVar[_Instant | None] = None
    _elsewhere: ClassVar[dict[str, Trace] | None] = None

    def actions(self, spec: SimulatorSpec, count: int) -> np.ndarray:
        """Return (count, action_dim) of the simulator's own actions; override it where not all will do."""
        return np.random.default_rng(7).uniform(-1, 1, (count, spec.action_dim or 0))

    @classmethod
    def teardown_class(cls) -> None:
        """Close the simulator; pytest calls it."""
        held, cls._held, cls._instant, cls._elsewhere = cls._held, None, None, None
        if held is not None:
            held.simulator.close()

    # -- tasks -----------------------------------------------------------------------------------------

    def test_tasks_are_listed_in_order_and_the_loaded_one_is_among_them(self) -> None:
        simulator, spec = self._loaded()
        tasks = simulator.list_tasks()
        _require(tasks == sorted(set(tasks)), "list_tasks", tasks[:9], "sorted names, each once")
        _require(spec.task in tasks, "the task of the spec", spec.task, f"one of {tasks[:9]}")

    def test_an_unknown_task_is_not_found(self) -> None:
        self._refuses_to_load(_NOWHERE, self.options, TaskNotFound)

    def test_an_unknown_camera_is_refused(self) -> None:
        options = replace(self.options, camera_names=(_NOWHERE,))
        self._refuses_to_load(self.task_name, options, InvalidParams)

    def test_the_spec_says_what_a_client_must_know(self) -> None:
        _, spec = self._loaded()
        _require(isinstance(spec, SimulatorSpec), "load_task", type(spec).__name__, "a SimulatorSpec")
        needed = ["simulator", "task", "action_dim", "max_episode_steps"]
        if spec.camera_names:
            needed += ["image_height", "image_width"]
        unsaid = [name for name in needed if not getattr(spec, name)]
        _require(not unsaid, "the spec", f"nothing in {unsaid}", "all of them")
        _require(spec.camera_names is not None, "camera_names of the spec", None, "names, or () for none")

    def test_a_simulator_without_a_task_can_be_closed(self) -> None:
        self._make().close()

    # -- observations ----------------------------------------------------------------------------------

    def test_an_observation_is_arrays_of_numbers_by_name(self) -> None:
        simulator, _ = self._loaded()
        for name, value in simulator.reset(seed=0).items():
            _require(isinstance(name, str), "a name of the observation", name, "text")
            found = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
            numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
            _require(numbers, f"{name!r} of the observation", found, "an array of numbers or bools")

    def test_names_types_and_shapes_of_observations_stay_the_same(self) -> None:
        simulator, spec = self._loaded()
        first = _shape(simulator.reset(seed=0))
        later = [simulator.step(action).observation for action in self.actions(spec, 3)]
        for observation in [*later, simulator.reset(seed=1)]:
            _require(_shape(observation) == first, "an observation", _shape(observation), first)

    def test_an_observation_does_not_change_when_the_simulation_goes_on(self) -> None:
        simulator, spec = self._loaded()
        observation = simulator.reset(seed=0)
        before = digests(dict(observation))
        for action in self.actions(spec, 2):
            simulator.step(action)
        _require_same([before], [digests(dict(observation))], "an observation that was given out")

    def test_a_policy_sees_what_the_spec_says(self) -> None:
        simulator, spec = self._loaded()
        seen = simulator.to_meta_obs(simulator.reset(seed=0))
        _require(isinstance(seen, MetaObs), "to_meta_obs", type(seen).__name__, "a MetaObs")
        if spec.state_dim is not None:
            expected: Any = ((spec.state_dim,), "float32")
            _require(_shape_of(seen.state) == expected, "state", _shape_of(seen.state), expected)
        if not spec.camera_names:
            _require(seen.image is None, "image without cameras", _shape_of(seen.image), None)
            return
        expected = ((len(spec.camera_names), 3, spec.image_height, spec.image_width), "uint8")
        _require(_shape_of(seen.image) == expected, "image", _shape_of(seen.image), expected)

    def test_a_rendered_picture_is_rgb_in_bytes(self) -> None:
        simulator, _ = self._loaded()
        simulator.reset(seed=0)
        found = _shape_of(simulator.render())
        right = found is not None and found[0][2:] == (3,) and found[1] == "uint8"
        _require(right, "render", found, "((height, width, 3), 'uint8')")

    # -- episodes --------------------------------------------------------------------------------------

    def test_a_seed_gives_the_same_episode_whatever_ran_before(self) -> None:
        first = self._episode(seed=11)
        self._episode(seed=12)
        np.random.random(5)  # some simulators draw from numpy's global generator
        _require_same(first, self._episode(seed=11), "the episode of a seed, run twice")

    def test_a_seed_gives_the_same_episode_in_another_process(self) -> None:
        here = self._episode(seed=11)
        _require_same(here, self._in_another_process()["episode"], "the episode of a seed in another process")

    def test_another_seed_gives_another_episode(self) -> None:
        simulator, _ = self._loaded()
        one, other = (digests(dict(simulator.reset(seed=seed))) for seed in (1, 2))
        _require(one != other or not self.seeds_differ, "seeds 1 and 2", "one episode", "two")

    def test_without_a_seed_one_is_drawn(self) -> None:
        simulator, _ = self._loaded()
        one, other = (digests(dict(simulator.reset())) for _ in range(2))
        _require(one != other or not self.seeds_differ, "resets without a seed", "one episode", "two")

    def test_rendering_changes_nothing(self) -> None:
        unrendered = self._episode(seed=5)
        _require_same(unrendered, self._episode(seed=5, render=True), "an episode that is rendered")

    def test_a_step_says_how_it_went(self) -> None:
        simulator, spec = self._loaded()
        simulator.reset(seed=0)
        for action in self.actions(spec, 5):
            result = simulator.step(action)
            _require(isinstance(result, StepResult), "step", type(result).__name__, "a StepResult")
            number = isinstance(result.reward, (int, float)) and np.isfinite(result.reward)
            _require(number, "the reward", repr(result.reward), "a finite number")
            for name in ("terminated", "truncated"):
                value = getattr(result, name)
                _require(isinstance(value, (bool, np.bool_)), name, repr(value), "a bool")
            success = result.info.get("success")
            _require(isinstance(success, (bool, np.bool_)), "info['success']", repr(success), "a bool")
            _require(result.terminated or not success, "terminated at success", False, True)
            if result.terminated or result.truncated:
                return

    # -- actions of policies ---------------------------------------------------------------------------

    def test_an_action_of_a_policy_becomes_the_simulators_own(self) -> None:
        simulator, spec = self._loaded()
        own = simulator.from_meta_action(_meta_action(spec))
        right = isinstance(own, np.ndarray) and own.shape == (spec.action_dim,) and own.dtype.kind in "fiu"
        _require(right, "from_meta_action", _shape_of(own), f"numbers of shape ({spec.action_dim},)")

    def test_an_action_of_another_body_is_refused(self) -> None:
        simulator, spec = self._loaded()
        good = _meta_action(spec)
        others = [
            replace(good, action=np.zeros((spec.action_dim or 0) + 1, np.float32)),
            replace(good, action=None),
        ]
        if spec.ctrl_space is not None:
            others.append(replace(good, ctrl_space="joint" if spec.ctrl_space == "ee" else "ee"))
        if spec.ctrl_type is not None:
            others.append(replace(good, ctrl_type="delta" if spec.ctrl_type == "absolute" else "absolute"))
        for other in others:
            _require_error(SpecMismatch, partial(simulator.from_meta_action, other), repr(other))

    # -- chunks ----------------------------------------------------------------------------------------

    def test_a_chunk_is_its_steps(self) -> None:
        simulator, spec = self._loaded()
        if not isinstance(simulator, Chunked):
            return
        actions = self.actions(spec, 4)
        simulator.reset(seed=3)
        rewards, trace = [], []
        for action in actions:
            result = simulator.step(action)
            rewards.append(float(result.reward))
            trace = [_outcome(result)]
            if result.terminated or result.truncated:
                break
        simulator.reset(seed=3)
        chunk_rewards, last = simulator.step_chunk(list(actions))
        found = [float(reward) for reward in chunk_rewards]
        _require(found == rewards, "the rewards of a chunk", found, rewards)
        _require_same(trace, [_outcome(last)], "the last step of a chunk")

    # -- snapshots -------------------------------------------------------------------------------------

    def test_a_fingerprint_is_short_text(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        for name, value in simulator.fingerprint().items():
            short = type(name) is str and type(value) is str and len(value) < 100
            _require(short, f"{name!r} of the fingerprint", repr(value)[:150], "less than 100 letters")

    def test_a_saved_state_does_not_change_when_the_simulation_goes_on(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        simulator.restore_state(self._saved().state())
        saved = simulator.save_state()
        before = digests(saved)
        self._steps(1, with_state=False)
        _require_same([before], [digests(saved)], "a saved state")

    def test_a_restored_state_is_the_saved_one(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        saved = self._saved()
        self._episode(seed=8)
        simulator.restore_state(saved.state())
        _require_same([digests(saved.state())], [digests(simulator.save_state())], "a restored state")

    def test_a_restore_gives_the_observation_of_that_instant(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        saved = self._saved()
        self._episode(seed=8)
        now = digests(dict(simulator.restore_state(saved.state())))
        _require_same([saved.observation], [now], "the observation of a restore")

    def test_an_episode_goes_on_bit_for_bit_after_a_restore(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        saved = self._saved()
        simulator.restore_state(saved.state())
        _require_same(saved.following, self._steps(self.num_steps), "what follows a restore")

    def test_an_episode_goes_on_bit_for_bit_after_other_episodes(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        saved = self._saved()
        self._episode(seed=8)
        simulator.restore_state(saved.state())
        what = "what follows a restore after another episode"
        _require_same(saved.following, self._steps(self.num_steps), what)

    def test_an_episode_goes_on_bit_for_bit_in_another_process(self) -> None:
        if self._restorable() is None:
            return
        following = self._saved().following
        what = "what follows a restore in another process"
        _require_same(following, self._in_another_process()["following"], what)

    def test_a_state_of_something_else_is_refused_and_changes_nothing(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        simulator.restore_state(self._saved().state())
        before = digests(simulator.save_state())
        _require_error(SnapshotMismatch, lambda: simulator.restore_state({_NOWHERE: 3}), "a foreign state")
        _require_same([before], [digests(simulator.save_state())], "the state after refusing a foreign one")

    def test_an_episode_goes_on_bit_for_bit_from_its_first_instant(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        simulator.reset(seed=4)
        payload = b"".join(bytes(buffer) for buffer in encode(simulator.save_state()))
        following = self._steps(4)  # of the run itself: two restored ones may agree with each other
        self._episode(seed=8)
        simulator.restore_state(loads(bytearray(payload)))
        _require_same(following, self._steps(4), "what follows a restore right after a reset")

    def test_a_reset_after_a_restore_is_the_reset_it_was(self) -> None:
        simulator = self._restorable()
        if simulator is None:
            return
        saved = self._saved()
        before = self._episode(seed=4)
        simulator.restore_state(saved.state())
        _require_same(before, self._episode(seed=4), "the episode of a seed after a restore")

    # -- at the end of an episode; last, for they load the task in another way -------------------------

    def test_the_horizon_truncates_an_episode(self) -> None:
        simulator, spec = self._loaded(horizon=3)
        _require(spec.max_episode_steps == 3, "max_episode_steps", spec.max_episode_steps, 3)
        simulator.reset(seed=0)
        truncated = []
        for action in self.actions(spec, 3):
            result = simulator.step(action)
            truncated.append(bool(result.truncated))
            if result.terminated:
                return  # before there was anything to truncate
        expected = [False, False, True]
        _require(truncated == expected, "truncated with a horizon of 3", truncated, expected)

    def test_a_chunk_ends_with_its_episode(self) -> None:
        simulator, spec = self._loaded(horizon=3)
        if not isinstance(simulator, Chunked):
            return
        simulator.reset(seed=0)
        rewards, last = simulator.step_chunk(list(self.actions(spec, 5)))
        right = len(rewards) <= 3 and (last.terminated or last.truncated)
        _require(right, "steps of a chunk with a horizon of 3", len(rewards), "3, the last one truncated")

    # -- what the tests share --------------------------------------------------------------------------

    @classmethod
    def _make(cls) -> Simulator:
        # By the class: a function that is its attribute would be bound to an instance.
        simulator: Simulator = cls.make_simulator()
        return simulator

    @classmethod
    def _loaded(cls, **changes: Any) -> tuple[Simulator, SimulatorSpec]:
        """Return the simulator with its task loaded with these options."""
        options = replace(cls.options, **changes)
        if cls._held is None:
            cls._held = _Held(cls._make())
        held = cls._held
        if held.spec is None or held.options != options:
            held.options = held.spec = None
            held.spec, held.options = held.simulator.load_task(cls.task_name, options), options
        return held.simulator, held.spec

    def _restorable(self) -> Any:
        """Return the simulator with its task loaded; ``None`` if it offers no snapshots."""
        simulator, _ = self._loaded()
        return simulator if isinstance(simulator, Restorable) else None

    def _refuses_to_load(self, task_name: str, options: TaskOptions, error: type[Exception]) -> None:
        simulator = self._make()  # another one: this may cost it its task
        try:
            load = partial(simulator.load_task, task_name, options)
            _require_error(error, load, f"load_task of {task_name!r} with {options}")
        finally:
            simulator.close()

    def _episode(self, *, seed: int, render: bool = False) -> Trace:
        simulator, spec = self._loaded()
        return _episode(simulator, self.actions(spec, 4), seed=seed, render=render)

    def _steps(self, count: int, *, with_state: bool = True) -> Trace:
        simulator, spec = self._loaded()
        return _steps(simulator, self.actions(spec, count), with_state=with_state)

    def _saved(self) -> _Instant:
        """Return an instant in the middle of an episode, and what followed it."""
        cls = type(self)
        simulator, spec = self._loaded()
        if cls._instant is None:
            assert isinstance(simulator, Restorable)
            for count in (20, 5, 1):  # as far into the episode as it goes without ending
                simulator.reset(seed=4)
                for action in self.actions(spec, count)[::-1]:
                    last = simulator.step(action)
                    if last.terminated or last.truncated:
                        break
                else:
                    break
            payload = b"".join(bytes(buffer) for buffer in encode(simulator.save_state()))
            observation = digests(dict(last.observation))
            cls._instant = _Instant(payload, observation, self._steps(self.num_steps))
        return cls._instant

    def _in_another_process(self) -> dict[str, Trace]:
        """Return what a new process saw of an episode, and of what followed a restore."""
        cls = type(self)
        if cls._elsewhere is None:
            _, spec = self._loaded()
            make = cls.make_simulator
            address = f"{make.__module__}:{make.__qualname__}"
            _require("<" not in address, "make_simulator", address, "a function or class of a module")
            saved = self._saved() if self._restorable() is not None else None
            task = {
                "make_simulator": address,
                "task_name": self.task_name,
                "options": asdict(self.options),
                "episode": self.actions(spec, 4).tolist(),
                "following": self.actions(spec, self.num_steps).tolist(),
                "payload": None if saved is None else base64.b64encode(saved.payload).decode(),
            }
            cls._elsewhere = _ask_another_process(task, timeout_s=self.timeout_s)
        return cls._elsewhere


def _require(fact: Any, what: str, found: Any, expected: Any) -> None:
    """Raise where a fact is none. Not ``assert``: what pytest makes of that is for test files."""
    if not fact:
        raise AssertionError(f"{what}: found {found}, expected {expected}")


def _require_same(expected: Trace, found: Trace, what: str) -> None:
    for index, (then, now) in enumerate(zip(expected, found)):
        different = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if different:
            raise AssertionError(f"{what}: moment {index} differs in {', '.join(different[:9])}")
    _require(len(expected) == len(found), f"{what}, its length", len(found), len(expected))


def _require_error(error: type[Exception], call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except error:
        return
    except Exception as exc:
        found = f"{type(exc).__name__}: {exc}"
        raise AssertionError(f"{what}: found {found}, expected {error.__name__}") from exc
    raise AssertionError(f"{what}: found no error, expected {error.__name__}")


def _shape(observation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _shape_of(value) for name, value in observation.items()}


def _shape_of(value: Any) -> Any:
    return (value.shape, str(value.dtype)) if isinstance(value, np.ndarray) else None


def _meta_action(spec: SimulatorSpec) -> MetaAction:
    zeros = np.zeros(spec.action_dim or 0, np.float32)
    return MetaAction(spec.ctrl_space or "ee", spec.ctrl_type or "delta", zeros)


def _outcome(result: StepResult) -> dict[str, bytes]:
    """Return digests of all that repeats; an ``info`` may tell of times."""
    return digests(
        {
            "observation": dict(result.observation),
            "reward": float(result.reward),
            "terminated": bool(result.terminated),
            "truncated": bool(result.truncated),
            "success": bool(result.info.get("success")),
        }
    )


def _episode(simulator: Simulator, actions: Any, *, seed: int, render: bool = False) -> Trace:
    first = digests({"observation": dict(simulator.reset(seed=seed))})
    return [first, *_steps(simulator, actions, render=render)]


def _steps(simulator: Any, actions: Any, *, with_state: bool = False, render: bool = False) -> Trace:
    trace = []
    for action in np.asarray(actions, dtype=np.float64):
        if render:
            simulator.render()
        result = simulator.step(action)
        seen = _outcome(result)
        if with_state:
            seen.update(digests(simulator.save_state(), "state"))
        trace.append(seen)
        if result.terminated or result.truncated:
            break
    return trace


def _ask_another_process(task: Mapping[str, Any], *, timeout_s: float) -> dict[str, Trace]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        file.write_text(json.dumps(task))
        run = subprocess.run(
            [sys.executable, "-m", __name__, str(file)],
            # The modules that are found here are found there.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        words = " | ".join(run.stderr.splitlines()[-3:])
        _require(run.returncode == 0, "another process", f"code {run.returncode}: {words}", "an answer")
        answer = json.loads(file.read_text())
    return {
        name: [{key: bytes.fromhex(digest) for key, digest in seen.items()} for seen in trace]
        for name, trace in answer.items()
    }


def main(argv: Sequence[str]) -> None:
    """Be the other process: read a task from a file, and write what was seen in its place."""
    file = Path(argv[0])
    task = json.loads(file.read_text())
    module, _, name = task["make_simulator"].partition(":")
    make: Any = importlib.import_module(module)
    for part in name.split("."):
        make = getattr(make, part)
    simulator = make()
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in task["options"].items()
    }
    simulator.load_task(task["task_name"], TaskOptions(**options))
    answer = {"episode": _episode(simulator, task["episode"], seed=11)}
    if task["payload"] is not None:
        simulator.restore_state(loads(bytearray(base64.b64decode(task["payload"]))))
        answer["following"] = _steps(simulator, task["following"], with_state=True)
    simulator.close()
    written = {
        name: [{key: digest.hex() for key, digest in seen.items()} for seen in trace]
        for name, trace in answer.items()
    }
    file.write_text(json.dumps(written))


if __name__ == "__main__":
    main(sys.argv[1:])
