"""The contract is kept by the fake simulator, and each of its tests finds what it is there to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec
from robowire.testing.fake_simulator import FakeSimulator
from robowire.testing.simulator_contract import SimulatorContract
from robowire.worker.simulator_input import advance_chunk

ROOT = Path(__file__).resolve().parents[2]
SMALL = TaskOptions(image_height=8, image_width=8)
Observation = dict[str, Any]


class Chunked(FakeSimulator):
    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        return advance_chunk(self.step, actions)


class TestTheFake(SimulatorContract):
    make_simulator = FakeSimulator
    task_name = "reach"


class TestTheFakeInChunks(SimulatorContract):
    make_simulator = Chunked
    task_name = "reach"
    options = SMALL


# -- simulators that are broken in one place each ------------------------------------------------------------


class Unsorted(FakeSimulator):
    def list_tasks(self, suite: str | None = None) -> list[str]:
        return super().list_tasks(suite)[::-1]


class Guessing(FakeSimulator):
    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        return super().load_task("reach", options)


class Careless(FakeSimulator):
    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        return super().load_task(task_name, replace(options, camera_names=None))


class Crashing(FakeSimulator):
    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        return super().load_task({"reach": "reach"}[task_name], options)


class Silent(FakeSimulator):
    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        return replace(super().load_task(task_name, options), simulator="", max_episode_steps=0)


class Unclosable(FakeSimulator):
    def close(self) -> None:
        assert self._loaded


class Listing(FakeSimulator):
    def _observe(self) -> Observation:
        return {**super()._observe(), "goal": self._goal.tolist()}


class Growing(FakeSimulator):
    def _observe(self) -> Observation:
        return {**super()._observe(), **({"speed": np.zeros(2)} if self._steps > 1 else {})}


class Lending(FakeSimulator):
    def __init__(self) -> None:
        super().__init__()
        self._lent = np.zeros(2)

    def _observe(self) -> Observation:
        self._lent[:] = self._position
        return {**super()._observe(), "position": self._lent}


class Wide(FakeSimulator):
    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        seen = super().to_meta_obs(observation)
        seen.state = observation["position"]
        return seen


class Sideways(FakeSimulator):
    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        seen = super().to_meta_obs(observation)
        assert seen.image is not None
        seen.image = seen.image.transpose(0, 2, 3, 1)
        return seen


class Grey(FakeSimulator):
    def render(self, camera_name: str | None = None) -> np.ndarray:
        return super().render(camera_name)[..., 0]


class Unseeded(FakeSimulator):
    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> Observation:
        observation = super().reset(seed=seed, init_state=init_state)
        self._rng = np.random.default_rng()
        return observation


class Local(FakeSimulator):
    def step(self, action: np.ndarray) -> StepResult:
        return super().step(action + os.getpid() * 1e-9)


class Deaf(FakeSimulator):
    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> Observation:
        return super().reset(seed=0, init_state=init_state)


class Rendered(FakeSimulator):
    def render(self, camera_name: str | None = None) -> np.ndarray:
        self._rng.normal()
        return super().render(camera_name)


class Boastful(FakeSimulator):
    def step(self, action: np.ndarray) -> StepResult:
        return replace(super().step(action), info={"success": True})


class Taciturn(FakeSimulator):
    def step(self, action: np.ndarray) -> StepResult:
        return replace(super().step(action), info={})


class Boundless(FakeSimulator):
    def step(self, action: np.ndarray) -> StepResult:
        return replace(super().step(action), reward=float("inf"))


class Endless(FakeSimulator):
    def step(self, action: np.ndarray) -> StepResult:
        return replace(super().step(action), truncated=False)


class Verbatim(FakeSimulator):
    def from_meta_action(self, action: MetaAction) -> Any:
        return super().from_meta_action(action).tolist()


class Lenient(FakeSimulator):
    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        return np.zeros(3)


class Generous(Chunked):
    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        rewards, last = super().step_chunk(actions)
        return [reward + 1 for reward in rewards], last


class Hasty(Chunked):
    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        return super().step_chunk(actions[:-1])


class Overrunning(Chunked):
    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        results = [self.step(action) for action in actions]
        return [result.reward for result in results], results[-1]


class Counting(FakeSimulator):
    def fingerprint(self) -> dict[str, str]:
        return {"version": 3}  # type: ignore[dict-item]


class Sharing(FakeSimulator):
    def __init__(self) -> None:
        super().__init__()
        self._shared: dict[str, Any] = {}

    def save_state(self) -> dict[str, Any]:
        self._shared.update(super().save_state())
        return self._shared

    def step(self, action: np.ndarray) -> StepResult:
        result = super().step(action)
        self.save_state()
        return result


class Miscounting(FakeSimulator):
    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        return super().restore_state({**state, "steps": 0} if "steps" in state else state)


class Late(FakeSimulator):
    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        observation = self._observe()
        super().restore_state(state)
        return observation


class Forgetful(FakeSimulator):
    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        return super().restore_state({**state, "random": self._rng.bit_generator.state})


class Leaning(FakeSimulator):
    """What a reset draws besides is no part of what it saves."""

    def __init__(self) -> None:
        super().__init__()
        self._lean = 0.0

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> Observation:
        self._lean = (seed or 0) * 1e-3
        return super().reset(seed=seed, init_state=init_state)

    def step(self, action: np.ndarray) -> StepResult:
        return super().step(action + self._lean)


class Gullible(FakeSimulator):
    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        return super().restore_state({**self.save_state(), **{k: v for k, v in state.items() if k[0] != "n"}})


class Yielding(FakeSimulator):
    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        self._steps = 0
        return super().restore_state(state)


class Rounding(FakeSimulator):
    """Copies a matrix into another memory order, by which its products round otherwise."""

    _matrix = np.eye(2)

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> Observation:
        self._matrix = np.asfortranarray(np.arange(4.0).reshape(2, 2))
        return super().reset(seed=seed, init_state=init_state)

    def step(self, action: np.ndarray) -> StepResult:
        return super().step(action + (1e-3 if self._matrix.flags.fnc else 0.0))

    def save_state(self) -> dict[str, Any]:
        return {**super().save_state(), "matrix": np.array(self._matrix, order="C")}

    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        own = dict(state)
        self._matrix = own.pop("matrix")
        return super().restore_state(own)


class Marked(FakeSimulator):
    _mark = 0.0

    def restore_state(self, state: Mapping[str, Any]) -> Observation:
        self._mark = 0.1
        return super().restore_state(state)

    def step(self, action: np.ndarray) -> StepResult:
        return super().step(action + self._mark)


TABLE = [
    (
        "tasks_are_listed_in_order_and_the_loaded_one_is_among_them",
        Unsorted,
        "list_tasks: found ['segfault_in_step', ",
    ),
    ("an_unknown_task_is_not_found", Guessing, "found no error, expected TaskNotFound"),
    ("an_unknown_task_is_not_found", Crashing, "found KeyError: 'no such thing as this', expected TaskNotF"),
    ("an_unknown_camera_is_refused", Careless, "found no error, expected InvalidParams"),
    (
        "the_spec_says_what_a_client_must_know",
        Silent,
        "the spec: found nothing in ['simulator', 'max_episode_steps'], expected all of them",
    ),
    ("a_simulator_without_a_task_can_be_closed", Unclosable, "load_task comes first"),
    (
        "an_observation_is_arrays_of_numbers_by_name",
        Listing,
        "'goal' of the observation: found list, expected an array of numbers or bools",
    ),
    ("names_types_and_shapes_of_observations_stay_the_same", Growing, "'speed': ((2,), 'float64')"),
    (
        "an_observation_does_not_change_when_the_simulation_goes_on",
        Lending,
        "an observation that was given out: moment 0 differs in position",
    ),
    (
        "a_policy_sees_what_the_spec_says",
        Wide,
        "state: found ((2,), 'float64'), expected ((2,), 'float32')",
    ),
    (
        "a_policy_sees_what_the_spec_says",
        Sideways,
        "image: found ((1, 8, 8, 3), 'uint8'), expected ((1, 3, 8, 8), 'uint8')",
    ),
    (
        "a_rendered_picture_is_rgb_in_bytes",
        Grey,
        "render: found ((8, 8), 'uint8'), expected ((height, width, 3), 'uint8')",
    ),
    (
        "a_seed_gives_the_same_episode_whatever_ran_before",
        Unseeded,
        "the episode of a seed, run twice: moment 1 differs in observation.position",
    ),
    (
        "a_seed_gives_the_same_episode_in_another_process",
        Local,
        "the episode of a seed in another process: moment 1 differs in observation.position",
    ),
    ("another_seed_gives_another_episode", Deaf, "seeds 1 and 2: found one episode, expected two"),
    ("without_a_seed_one_is_drawn", Deaf, "resets without a seed: found one episode, expected two"),
    (
        "rendering_changes_nothing",
        Rendered,
        "an episode that is rendered: moment 1 differs in observation.position",
    ),
    ("a_step_says_how_it_went", Boastful, "terminated at success: found False, expected True"),
    ("a_step_says_how_it_went", Taciturn, "info['success']: found None, expected a bool"),
    ("a_step_says_how_it_went", Boundless, "the reward: found inf, expected a finite number"),
    (
        "the_horizon_truncates_an_episode",
        Endless,
        "truncated with a horizon of 3: found [False, False, False], expected [False, False, True]",
    ),
    (
        "an_action_of_a_policy_becomes_the_simulators_own",
        Verbatim,
        "from_meta_action: found None, expected numbers of shape (3,)",
    ),
    ("an_action_of_another_body_is_refused", Lenient, "found no error, expected SpecMismatch"),
    ("a_chunk_is_its_steps", Generous, "the rewards of a chunk: found [1.0, 1.0, 1.0, 1.0], expected [0.0,"),
    (
        "a_chunk_is_its_steps",
        Hasty,
        "the rewards of a chunk: found [0.0, 0.0, 0.0], expected [0.0, 0.0, 0.0,",
    ),
    (
        "a_chunk_ends_with_its_episode",
        Overrunning,
        "steps of a chunk with a horizon of 3: found 5, expected 3",
    ),
    (
        "a_fingerprint_is_short_text",
        Counting,
        "'version' of the fingerprint: found 3, expected less than 100 letters",
    ),
    (
        "a_saved_state_does_not_change_when_the_simulation_goes_on",
        Sharing,
        "a saved state: moment 0 differs in position, random.state.state, steps",
    ),
    ("a_restored_state_is_the_saved_one", Miscounting, "a restored state: moment 0 differs in steps"),
    (
        "a_restore_gives_the_observation_of_that_instant",
        Late,
        "the observation of a restore: moment 0 differs in front_image, goal, position",
    ),
    (
        "an_episode_goes_on_bit_for_bit_after_a_restore",
        Forgetful,
        "what follows a restore: moment 0 differs in observation.position, state.position, state.random",
    ),
    (
        "an_episode_goes_on_bit_for_bit_after_other_episodes",
        Leaning,
        "what follows a restore after another episode: moment 0 differs in observation.position",
    ),
    (
        "an_episode_goes_on_bit_for_bit_in_another_process",
        Local,
        "what follows a restore in another process: moment 0 differs in observation.position",
    ),
    (
        "a_state_of_something_else_is_refused_and_changes_nothing",
        Gullible,
        "a foreign state: found no error, expected SnapshotMismatch",
    ),
    (
        "a_state_of_something_else_is_refused_and_changes_nothing",
        Yielding,
        "the state after refusing a foreign one: moment 0 differs in steps",
    ),
    (
        "an_episode_goes_on_bit_for_bit_from_its_first_instant",
        Rounding,
        "what follows a restore right after a reset: moment 0 differs in observation.position",
    ),
    (
        "a_reset_after_a_restore_is_the_reset_it_was",
        Marked,
        "the episode of a seed after a restore: moment 1 differs in observation.position",
    ),
]


@pytest.mark.parametrize(
    ("test", "broken", "message"), TABLE, ids=[broken.__name__ for _, broken, _ in TABLE]
)
def test_each_test_finds_what_it_is_there_for(test: str, broken: type[FakeSimulator], message: str) -> None:
    case = type(
        "Case", (SimulatorContract,), {"make_simulator": broken, "task_name": "reach", "options": SMALL}
    )
    with pytest.raises(AssertionError, match=re.escape(message)):
        getattr(case(), f"test_{test}")()
    case.teardown_class()


def test_the_five_lines_of_the_page_are_enough(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your_own_simulator.md").read_text()
    (lines,) = re.findall(r"^```python\n(from my\.module .*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert lines.count("\n") == 5
    lines = lines.replace("my.module", "robowire.testing.fake_simulator").replace("lift the cube", "reach")
    (tmp_path / "test_mine.py").write_text(lines)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    tests = len([name for name in dir(SimulatorContract) if name.startswith("test_")])
    assert run.stdout.splitlines()[-1].startswith(f"{tests} passed"), run.stdout


def test_each_test_of_the_contract_has_found_something() -> None:
    tests = {name for name in dir(SimulatorContract) if name.startswith("test_")}
    assert {f"test_{test}" for test, _, _ in TABLE} == tests


class TestOneThatStartsTheSameAlways(SimulatorContract):
    """Where seeds are said not to differ, equal episodes are no failure."""

    make_simulator = Deaf
    task_name = "reach"
    options = SMALL
    seeds_differ = False


class Homebound(FakeSimulator):
    """Works in the process of the tests alone."""

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        if sys.argv[0].endswith("simulator_contract.py"):
            raise RuntimeError("nothing works here")
        return super().load_task(task_name, options)


def test_another_process_that_fails_is_quoted() -> None:
    class Case(SimulatorContract):
        make_simulator = Homebound
        task_name = "reach"
        options = SMALL

    with pytest.raises(
        AssertionError, match=r"^another process: found code 1: .*RuntimeError: nothing works here"
    ):
        Case().test_a_seed_gives_the_same_episode_in_another_process()
    Case.teardown_class()


def test_a_function_that_another_process_cannot_find_is_named() -> None:
    class Case(SimulatorContract):
        make_simulator = lambda: FakeSimulator()  # noqa: E731
        task_name = "reach"
        options = SMALL

    with pytest.raises(
        AssertionError, match=r"^make_simulator: found .*<lambda>, expected a function or class of"
    ):
        Case().test_a_seed_gives_the_same_episode_in_another_process()
    Case.teardown_class()
