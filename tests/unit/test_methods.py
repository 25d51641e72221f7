from __future__ import annotations

import inspect
import re
import time
import tracemalloc
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from robowire.client import resumable_session
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import InvalidParams, RequestError, SpecMismatch, UnknownMethod
from robowire.fleet.engine import CannotStart, RunningService, ServiceSpec
from robowire.fleet.fleet_server import FleetService
from robowire.fleet.options import FleetOptions
from robowire.fleet.supervisor import Supervisor
from robowire.interfaces import TaskOptions
from robowire.meta import MetaAction
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.simulator.session import SimulatorSession
from robowire.wire.messages import Request
from robowire.wire.methods import (
    FLEET_METHODS,
    METHODS,
    NUMBERED,
    LoadTask,
    Method,
    check_action,
    check_actions,
    check_params,
    methods_of_scope,
    take_number,
    worker_parameters,
)
from robowire.worker.simulator_worker import SimulatorWorker


def refused(error: type[RequestError], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_an_unknown_method_is_refused_with_the_nearest_one() -> None:
    with refused(
        UnknownMethod,
        "no method is called 'load_tasks'. Did you mean 'load_task'? Known: hello, list_simulators, "
        "select_simulator, list_tasks, load_task, reset, step, step_chunk, render, snapshot, restore, "
        "verify, list_snapshots, delete_snapshot, fork, resume, renew, get_info, ping, stats, get_status, "
        "end_session, disconnect",
    ):
        check_params(Request("load_tasks"))


def test_an_unknown_parameter_is_refused_with_the_nearest_one() -> None:
    with refused(
        InvalidParams, "reset has no parameter 'sede'. Did you mean 'seed'? It takes: seed, init_state"
    ):
        check_params(Request("reset", {"sede": 1}))


def test_a_method_without_parameters_takes_nothing() -> None:
    with refused(InvalidParams, "ping has no parameter 'seed'. It takes: nothing"):
        check_params(Request("ping", {"seed": 1}))


@pytest.mark.parametrize("params", [{}, {"simulator": None}])
def test_a_missing_parameter_is_named(params: dict[str, Any]) -> None:
    with refused(InvalidParams, "select_simulator needs 'simulator'"):
        check_params(Request("select_simulator", params))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("task_name", 3, "task_name is 3, expected text"),
        ("robot", ["Panda"], "robot is ['Panda'], expected text"),
        ("camera_names", "front", "camera_names is 'front', expected a list of at most 64 names"),
        ("camera_names", ["front", 1], "camera_names is ['front', 1], expected a list of at most 64 names"),
        ("image_height", 0, "image_height is 0, expected a whole number, 1 or more"),
        ("image_height", 128.0, "image_height is 128.0, expected a whole number, 1 or more"),
        ("image_width", 100000, "image_width is 100000, expected 1 to 4096 pixels"),
        ("horizon", True, "horizon is True, expected a whole number, 1 or more"),
        ("reward_shaping", 1, "reward_shaping is 1, expected true or false"),
        ("control_hz", float("nan"), "control_hz is nan, expected a number above 0"),
        ("names", 3, "names is 3, expected text"),
        ("observation_format", "pixels", "observation_format is 'pixels', expected 'raw' or 'meta'"),
        ("observation_keys", [1], "observation_keys is [1], expected a list of at most 64 names"),
        ("image_encoding", "gif", "image_encoding is 'gif', expected 'raw', 'jpeg' or 'png'"),
        ("jpeg_quality", 101, "jpeg_quality is 101, expected 1 to 100"),
        ("jpeg_quality", 0, "jpeg_quality is 0, expected a whole number, 1 or more"),
    ],
)
def test_a_parameter_of_the_wrong_type_or_value_is_refused(name: str, value: Any, expected: str) -> None:
    with refused(InvalidParams, expected):
        check_params(Request("load_task", {"task_name": "reach", name: value}))


def test_a_negative_seed_is_refused() -> None:
    with refused(InvalidParams, "seed is -1, expected a whole number, 0 or more"):
        check_params(Request("reset", {"seed": -1}))


def test_numbers_of_numpy_are_numbers() -> None:
    params = check_params(Request("reset", {"seed": np.int64(3), "init_state": np.uint8(1)}))
    assert params == {"seed": 3, "init_state": 1}
    assert type(params["seed"]) is int


def test_a_parameter_that_is_left_out_gets_its_default() -> None:
    params = check_params(Request("load_task", {"task_name": "reach", "camera_names": ["front", "side"]}))
    assert params == {
        "task_name": "reach",
        "robot": None,
        "controller": None,
        "camera_names": ("front", "side"),
        "image_height": None,
        "image_width": None,
        "horizon": None,
        "reward_shaping": None,
        "control_hz": None,
        "names": None,
        "observation_format": "raw",
        "observation_keys": None,
        "image_encoding": "raw",
        "jpeg_quality": 95,
    }


@pytest.mark.parametrize(
    "action", [[0.5, 1, 0], np.array([0.5, 1, 0], np.float32), {"action": np.array([0.5, 1, 0])}]
)
def test_an_action_may_be_an_array_a_list_or_a_dict(action: Any) -> None:
    checked = check_action(action, 3)
    assert isinstance(checked, np.ndarray)
    assert checked.dtype == np.float64
    assert checked.tolist() == [0.5, 1.0, 0.0]


def test_a_meta_action_stays_one() -> None:
    action = MetaAction(action=np.zeros(3))
    assert check_action(action, 3) is action


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (np.zeros(4), SpecMismatch, "action has shape (4,), expected (3,)"),
        (np.zeros((1, 3)), SpecMismatch, "action has shape (1, 3), expected (3,)"),
        (1.0, SpecMismatch, "action has shape (), expected (3,)"),
        ({"action": [0, 0]}, SpecMismatch, "action has shape (2,), expected (3,)"),
        (np.array([0, np.nan, 0]), InvalidParams, "action is nan at index 1, expected finite numbers"),
        ([0, 0, float("-inf")], InvalidParams, "action is -inf at index 2, expected finite numbers"),
        ("left", InvalidParams, "action is a str, expected (action_dim,) numbers"),
        ([[0], [0, 1]], InvalidParams, "action is a list, expected (action_dim,) numbers"),
        (np.array(["a"]), InvalidParams, "action is a <U1 array, expected (action_dim,) numbers"),
        ({"qpos": 1}, InvalidParams, "action is a dict of ['qpos'], expected {'action': array}"),
        (
            MetaAction(action=np.zeros(2)),
            SpecMismatch,
            "the action of a MetaAction has shape (2,), expected (3,)",
        ),
        (
            MetaAction(action=None),
            InvalidParams,
            "the action of a MetaAction is a NoneType, expected (action_dim,) numbers",
        ),
    ],
)
def test_an_action_that_does_not_fit_is_refused(action: Any, error: type[RequestError], message: str) -> None:
    with refused(error, message):
        check_action(action, 3)


def test_a_chunk_is_checked_action_by_action() -> None:
    with refused(InvalidParams, "action is nan at index 0, expected finite numbers"):
        check_actions(np.array([[0.0], [np.nan]]), 1)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([], "actions is empty, expected at least one"),
        (np.float64(1), "actions is a float64, expected (n, action_dim) numbers or a list"),
        (np.array(1.0), "actions is a ndarray, expected (n, action_dim) numbers or a list"),
    ],
)
def test_a_value_that_is_not_a_chunk_is_refused(actions: Any, message: str) -> None:
    with refused(InvalidParams, message):
        check_actions(actions, 1)


def test_a_chunk_may_mix_arrays_and_meta_actions() -> None:
    meta = MetaAction(action=np.ones(2))
    first, second = check_actions([np.zeros(2), meta], 2)
    assert isinstance(first, np.ndarray)
    assert second is meta


def test_a_number_is_taken_from_a_request_that_may_have_one() -> None:
    call, number = take_number(Request("step", {"action": [0], "number": np.int64(4)}))
    assert (dict(call.params), number) == ({"action": [0]}, 4)


def test_a_number_of_another_method_is_left_alone() -> None:
    call = Request("render", {"number": 4})
    assert take_number(call) == (call, None)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "4"])
def test_a_number_counts_from_one(number: Any) -> None:
    with refused(InvalidParams, f"number is {number!r}, expected a whole number, 1 or more"):
        take_number(Request("step", {"number": number}))


def test_a_chunk_longer_than_any_episode_is_refused_before_memory_is_set_aside() -> None:
    with refused(InvalidParams, "actions are 10001, expected at most 10000: send several chunks"):
        check_actions(np.zeros((10_001, 3), np.uint8), 3)


# Types that are looked at before anything is converted: np.asarray made 955 MB of 203 KB of such texts.
HOSTILE_ACTIONS: dict[str, Any] = {
    "text": "x" * 200_000,
    "bytes": b"x" * 200_000,
    "texts": ["x" * 100_000, *["y"] * 1000],
    "digits": ["1", "2", "3"],
    "bools": [True, False, True],
    "a bool and numbers": [True, 0.5, 0.5],
    "none": [None, 0, 0],
    "nested": [[[[0.0] * 3]]] * 3,
    "array of texts": np.array(["x" * 100_000, "y"]),
    "array of bools": np.zeros(3, bool),
    "complex": [1j, 0, 0],
    "dicts": [{"a": "x" * 1000}] * 3,
    "set": {1.0, 2.0, 3.0},
}


@pytest.mark.parametrize("wrap", ["bare", "dict", "meta", "chunk"])
@pytest.mark.parametrize("action", HOSTILE_ACTIONS.values(), ids=HOSTILE_ACTIONS)
def test_an_action_of_another_type_costs_nothing(action: Any, wrap: str) -> None:
    sent = {
        "bare": action,
        "dict": {"action": action},
        "meta": MetaAction(action=action),
        "chunk": [MetaAction(action=action)] * 10_000,
    }[wrap]
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(InvalidParams, match=r"is an? .*, expected \(action_dim,\) numbers$") as caught:
            check_actions(sent, 3) if wrap == "chunk" else check_action(sent, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert time.process_time() - began < 0.25  # 50 ms, on a machine that does other work, traced
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**10_000], ids=["+", "-", "long"])
def test_an_int_too_large_for_a_float_is_not_finite(value: int) -> None:
    with refused(InvalidParams, f"action is {'-' * (value < 0)}inf at index 1, expected finite numbers"):
        check_action([0, value, 0], 3)


def test_an_action_longer_than_any_robots_is_refused_without_a_copy() -> None:
    with refused(SpecMismatch, "action has shape (200000,), expected at most 4096 numbers"):
        check_action([0.5] * 200_000, None)


def test_a_list_in_a_meta_action_becomes_an_array() -> None:
    checked = check_action(MetaAction(action=[0.5, 1, 0]), 3)  # type: ignore[arg-type]
    assert isinstance(checked, MetaAction)
    assert isinstance(checked.action, np.ndarray)
    assert checked.action.tolist() == [0.5, 1, 0]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"horizon": 10**5000}, "horizon is an int of 16610 bits, expected a whole number, 1 or more"),
        ({"robot": ["\n"]}, r"robot is ['\n'], expected text"),
        ({"robot": np.array(["x" * 9999])}, "robot is a <U9999 array of shape (1,), expected text"),
        (
            {"image_height": "x" * 99999},
            "image_height is '" + "x" * 146 + "..., expected a whole number, 1 or more",
        ),
    ],
)
def test_a_parameter_is_quoted_in_a_bounded_line(params: dict[str, Any], message: str) -> None:
    with refused(InvalidParams, message):
        check_params(Request("load_task", {"task_name": "reach", **params}))


def test_an_unknown_method_is_quoted_without_control_characters() -> None:
    with pytest.raises(UnknownMethod) as caught:
        check_params(Request("ping\nINFO forged\x1b[2J" + "x" * 10_000))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def parameters_of(function: Any) -> dict[str, Any]:
    """Return a method's parameters and defaults, as callers see them."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


@pytest.mark.parametrize("method", [*METHODS.values(), *FLEET_METHODS.values()], ids=lambda row: row.name)
def test_a_row_has_a_known_scope_and_deadline(method: Method) -> None:
    assert method.scope in ("server", "connection", "session")
    assert method.deadline in ("call", "load", None)


def test_numbered_methods_are_executed_by_a_session() -> None:
    assert NUMBERED == ("reset", "step", "step_chunk", "restore", "fork")
    assert set(NUMBERED) < set(methods_of_scope("session"))


def test_the_client_numbers_what_the_server_executes_once() -> None:
    assert resumable_session.NUMBERED is NUMBERED


def test_replies_that_say_where_the_episode_is() -> None:
    assert [name for name, method in METHODS.items() if method.observing] == [
        *("reset", "step", "step_chunk", "restore")
    ]


@pytest.mark.parametrize("method", [name for name in methods_of_scope("session") if name != "load_task"])
def test_a_session_takes_the_parameters_of_the_table(method: str) -> None:
    assert list(parameters_of(getattr(SimulatorSession, f"_{method}"))) == list(METHODS[method].parameters)


@pytest.mark.parametrize("method", [name for name in worker_parameters() if name != "load_task"])
def test_a_worker_takes_the_parameters_of_the_table(method: str) -> None:
    assert tuple(parameters_of(getattr(SimulatorWorker, f"_{method}"))) == worker_parameters()[method]


def test_the_client_documents_the_parameters_of_load_task() -> None:
    documented = inspect.getdoc(SimulatorClient.load_task) or ""
    assert [name for name in LoadTask().params() if name not in documented] == []


@pytest.mark.parametrize(
    "method", ["reset", "render", "restore", "verify", "fork", "list_tasks", "step_chunk"]
)
def test_the_client_offers_the_parameters_of_the_table(method: str) -> None:
    assert list(parameters_of(getattr(SimulatorClient, method))) == list(METHODS[method].parameters)


def test_the_table_has_the_fields_and_defaults_of_load_task() -> None:
    parameters = METHODS["load_task"].parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == LoadTask().params()


def test_a_request_to_load_a_task_takes_the_servers_defaults_where_it_says_nothing() -> None:
    task = LoadTask(task_name="Lift", robot="Panda").with_defaults(TaskOptions(robot="Sawyer", horizon=9))
    assert task == LoadTask(task_name="Lift", robot="Panda", horizon=9)
    assert task.options() == TaskOptions(robot="Panda", horizon=9)
    assert [option.name for option in fields(TaskOptions)] == list(vars(task.options()))


def test_the_simulator_service_answers_the_methods_of_each_scope() -> None:
    service = SimulatorService({}, SimulatorServerOptions())
    try:
        assert sorted(service._server_methods) == sorted(methods_of_scope("server"))
        assert sorted(service._client_methods) == sorted(methods_of_scope("connection"))
    finally:
        service.close()


def test_a_fleet_answers_the_methods_of_its_table() -> None:
    supervisor = Supervisor(NoEngine(), FleetOptions(num_services=0), [], drain_s=0.0)
    service = FleetService(FleetOptions(), supervisor, token=None, stop=lambda: None)
    assert {*service._server_methods, *service._client_methods} == set(FLEET_METHODS)


class NoEngine:
    def start(self, spec: ServiceSpec) -> RunningService:
        raise CannotStart("there is none")

    def close(self) -> None:
        pass
