from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from robowire.errors import BackendError, InvalidParams, SpecMismatch, TaskNotFound
from robowire.images import decode_images
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import Entry
from robowire.specs import SimulatorSpec
from robowire.testing.fake_simulator import FakeSimulator
from robowire.wire.messages import Request
from robowire.wire.methods import check_params
from robowire.worker.simulator_worker import SimulatorWorker


def make_worker(
    task: str = "reach", simulator: FakeSimulator | None = None, **options: Any
) -> SimulatorWorker:
    entry = Entry("somewhere:else", environ={"PATH": "unused"})
    worker = SimulatorWorker("fake", entry, simulator or FakeSimulator())
    worker.call("load_task", check_params(Request("load_task", {"task_name": task, **options})))
    return worker


def reset(worker: SimulatorWorker, seed: int = 0) -> Any:
    return worker.call("reset", {"seed": seed, "init_state": None})["observation"]


def test_raw_observations_keep_the_simulators_names() -> None:
    assert sorted(reset(make_worker())) == ["front_image", "goal", "position"]


def test_names_that_the_simulator_does_not_offer_are_refused() -> None:
    make_worker(names="raw")
    with pytest.raises(InvalidParams, match=r"^names is 'center', but fake offers 'raw'$"):
        make_worker(names="center")


def test_names_that_the_simulator_offers_are_passed_to_it() -> None:
    class Renamed(FakeSimulator):
        names = ("raw", "center")
        asked: TaskOptions

        def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
            self.asked = options
            return super().load_task(task_name, options)

    simulator = Renamed()
    make_worker(simulator=simulator, names="center")
    assert simulator.asked.names == "center"
    with pytest.raises(InvalidParams, match=r"^names is 'cetner', but fake offers 'raw' or 'center'$"):
        make_worker(simulator=simulator, names="cetner")


def test_only_the_keys_that_were_asked_for_leave_in_their_order() -> None:
    assert list(reset(make_worker(observation_keys=["goal", "position"]))) == ["goal", "position"]


def test_a_key_that_is_not_observed_is_refused_when_the_task_is_loaded() -> None:
    message = (
        "observation_keys names 'positon', which this task does not observe. Did you mean 'position'? "
        "Known: front_image, goal, position"
    )
    with pytest.raises(InvalidParams, match=f"^{re.escape(message)}$"):
        make_worker(observation_keys=["goal", "positon"])


@pytest.mark.parametrize(
    "options", [{"observation_keys": ["goal"]}, {"image_encoding": "png"}], ids=["keys", "encoding"]
)
def test_options_of_raw_observations_are_refused_for_a_meta_obs(options: dict[str, Any]) -> None:
    message = (
        f"{next(iter(options))} is for observation_format 'raw': a MetaObs has its own fields and one array "
        "of images, which camera_names, image_height and image_width make smaller"
    )
    with pytest.raises(InvalidParams, match=f"^{re.escape(message)}$"):
        make_worker(observation_format="meta", **options)


def test_images_are_encoded_as_requested() -> None:
    raw, encoded = reset(make_worker()), reset(make_worker(image_encoding="png"))
    assert (encoded["front_image"]["encoding"], encoded["front_image"]["shape"]) == ("png", (64, 64, 3))
    assert np.array_equal(decode_images(encoded)["front_image"], raw["front_image"])


def test_the_quality_of_jpeg_is_the_one_asked_for() -> None:
    sizes = [
        len(reset(make_worker(image_encoding="jpeg", jpeg_quality=quality))["front_image"]["data"])
        for quality in (20, 95)
    ]
    assert sizes[0] < sizes[1]


def test_a_snapshot_does_not_tell_how_observations_leave() -> None:
    saved = []
    for options in ({}, {"image_encoding": "png", "observation_keys": ["front_image"]}):
        worker = make_worker(**options)
        reset(worker)
        saved.append(worker.call("snapshot", {})["payload"])
    assert saved[0] == saved[1]


class Rounding(FakeSimulator):
    """Copies a matrix into another memory order, by which its products round otherwise."""

    _matrix = np.eye(2)

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        self._matrix = np.asfortranarray(np.arange(4.0).reshape(2, 2))
        return super().reset(seed=seed, init_state=init_state)

    def step(self, action: np.ndarray) -> StepResult:
        return super().step(action + (1e-3 if self._matrix.flags.fnc else 0.0))

    def save_state(self) -> dict[str, Any]:
        return {**super().save_state(), "matrix": np.array(self._matrix, order="C")}

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        own = dict(state)
        self._matrix = own.pop("matrix")
        return super().restore_state(own)


def test_verify_compares_with_the_run_that_was_saved() -> None:
    worker = make_worker(simulator=Rounding())
    reset(worker)
    payload = worker.call("snapshot", {})["payload"]
    reply = worker.call("verify", {"payload": payload, "steps": 5})
    assert (reply["exact"], reply["steps"]) == (False, 1)
    assert reply["difference"] == "after step 1: info.distance, observation.position, state.position"


class Unlike(FakeSimulator):
    """Goes on otherwise than the run that was saved, and always in the same way."""

    _slower = False

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        self._slower = False
        return super().reset(seed=seed, init_state=init_state)

    def step(self, action: np.ndarray) -> StepResult:
        return super().step(action * 0.5 if self._slower else action)

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self._slower = True
        return super().restore_state(state)


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_verify_compares_with_what_the_saved_run_gave_after_it_went_on(steps: int) -> None:
    for simulator, difference in (
        (FakeSimulator(), None),
        (Unlike(), "after step 1 of the run that was saved: info.distance, observation.position"),
    ):
        worker = make_worker(simulator=simulator)
        reset(worker)
        payload = worker.call("snapshot", {})["payload"]
        for _ in range(steps):
            worker.call("step", {"action": np.array([0.1, -0.2, 0.0])})
        position = simulator.save_state()["position"]
        reply = worker.call("verify", {"payload": payload, "steps": 5})
        assert reply["difference"] == difference
        np.testing.assert_array_equal(simulator.save_state()["position"], position)  # it goes on from there


def test_what_follows_a_reset_does_not_follow_from_the_snapshot() -> None:
    worker = make_worker()
    reset(worker)
    payload = worker.call("snapshot", {})["payload"]
    worker.call("step", {"action": np.zeros(3)})
    reset(worker)
    worker.call("step", {"action": np.ones(3)})
    assert worker.call("verify", {"payload": payload, "steps": 5})["exact"]


def test_meta_observations_are_in_the_format_of_policies() -> None:
    observation = reset(make_worker(observation_format="meta", camera_names=["front", "side"]))
    assert isinstance(observation, MetaObs)
    assert observation.image is not None
    assert observation.image.shape == (2, 3, 64, 64)
    assert observation.raw_lang == "move the point to the goal"


def test_meta_observations_count_the_steps_of_the_episode() -> None:
    worker = make_worker(observation_format="meta")
    steps = [reset(worker).timestep]
    steps += [worker.call("step", {"action": np.zeros(3)})["observation"].timestep for _ in range(2)]
    steps.append(reset(worker).timestep)
    assert steps == [0, 1, 2, 0]


def test_a_meta_action_is_converted_by_the_simulator() -> None:
    worker = make_worker()
    reset(worker)
    with pytest.raises(SpecMismatch, match=r"^ctrl_type is 'absolute', expected 'delta'$"):
        worker.call("step", {"action": MetaAction("ee", "absolute", np.zeros(3))})


def test_a_meta_action_may_say_abs() -> None:
    worker = make_worker()
    reset(worker)
    with pytest.raises(SpecMismatch, match=r"^ctrl_type is 'absolute', expected 'delta'$"):
        worker.call("step", {"action": MetaAction("ee", "abs", np.zeros(3))})


def test_a_chunk_returns_the_results_of_its_steps() -> None:
    actions = np.linspace(-1, 1, 12).reshape(4, 3)
    one_by_one, at_once = make_worker(), make_worker()
    reset(one_by_one)
    reset(at_once)
    for action in actions:
        last = one_by_one.call("step", {"action": action})
    chunk = at_once.call("step_chunk", {"actions": list(actions)})
    assert chunk["observation"]["position"].tolist() == last["observation"]["position"].tolist()
    assert (chunk["steps"], chunk["rewards"], chunk["info"]) == (4, [0.0] * 4, last["info"])


def test_a_chunk_ends_with_the_episode() -> None:
    worker = make_worker(horizon=3)
    reset(worker)
    chunk = worker.call("step_chunk", {"actions": [np.zeros(3)] * 5})
    assert (chunk["steps"], chunk["terminated"], chunk["truncated"]) == (3, False, True)


class ChunkedFake(FakeSimulator):
    """Executes a chunk at once, and shows that it did."""

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        results = [self.step(action) for action in actions]
        return [7.0 for _ in results], results[-1]


def test_a_simulator_that_can_is_given_the_chunk_as_a_whole() -> None:
    worker = make_worker(simulator=ChunkedFake(), observation_format="meta")
    reset(worker)
    chunk = worker.call("step_chunk", {"actions": [np.zeros(3), MetaAction("ee", "delta", np.zeros(3))]})
    assert (chunk["rewards"], chunk["steps"], chunk["observation"].timestep) == ([7.0, 7.0], 2, 2)


def test_a_chunk_that_does_not_fit_is_refused_before_its_first_step() -> None:
    worker = make_worker(observation_format="meta")
    reset(worker)
    with pytest.raises(SpecMismatch):
        worker.call("step_chunk", {"actions": [np.zeros(3), MetaAction("joint", "delta", np.zeros(3))]})
    assert worker.call("step", {"action": np.zeros(3)})["observation"].timestep == 1


def test_an_exception_of_the_simulator_is_a_backend_error_with_its_class() -> None:
    worker = make_worker("raise_in_step")
    reset(worker)
    message = "step failed in fake: RuntimeError: the fake fails in step"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        worker.call("step", {"action": np.zeros(3)})


def test_the_simulators_own_errors_pass_as_they_are() -> None:
    with pytest.raises(TaskNotFound, match=r"^no task is called 'fly'\. Known: "):
        make_worker("fly")


def test_info_says_which_versions_are_at_work() -> None:
    info = make_worker().call("get_info", {})
    assert info["python"] == platform.python_version()
    assert info["versions"]["numpy"] == info["fingerprint"]["numpy"] == np.__version__
    assert info["environ"] == {"PATH": os.environ["PATH"]}
