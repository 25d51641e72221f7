"""The asynchronous rules on a clock that is a number."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.chunking import ActionChunk
from robowire.client import async_controller
from robowire.client.async_controller import AsyncController, AsyncOptions, ChunkRequest
from robowire.errors import SpecMismatch, UnknownName
from robowire.meta import MetaAction, MetaObs

SEEN = MetaObs(state=np.zeros(2))


def chunk(*values: float, ctrl_type: str = "absolute") -> ActionChunk:
    """Return a chunk whose action i is (values[i], gripper 1)."""
    return ActionChunk(np.array([[value, 1] for value in values], np.float32), "joint", ctrl_type)


def asked(controller: AsyncController, step: int, observation: MetaObs = SEEN) -> ChunkRequest:
    request = controller.next_request(step, observation)
    assert request is not None
    return request


def value(action: MetaAction | None) -> float | None:
    return None if action is None or action.action is None else float(action.action[0])


def begun(n: int = 4, **options: Any) -> AsyncController:
    """Return a controller at step 0, with the chunk 0, 1, ... n - 1 in its queue."""
    controller = AsyncController(AsyncOptions(**options))
    controller.deliver(asked(controller, 0), chunk(*range(n)), 0)
    return controller


def run(controller: AsyncController, steps: range) -> list[float | None]:
    return [value(controller.next_action(step)) for step in steps]


# -- when an observation is sent


def test_the_first_step_wants_an_observation_and_it_must_go() -> None:
    request = asked(AsyncController(), 0)
    assert (request.step, request.timestep, request.must_go) == (0, 0, True)


def test_one_request_is_in_flight_at_a_time() -> None:
    controller = AsyncController()
    asked(controller, 0)
    assert [controller.next_request(step, SEEN) for step in range(1, 5)] == [None] * 4


@pytest.mark.parametrize(("threshold", "first"), [(0.0, 9), (0.25, 7), (0.5, 4), (0.8, 1), (0.9, 0)])
def test_an_observation_is_sent_when_a_share_of_the_chunk_is_left(threshold: float, first: int) -> None:
    controller = begun(10, chunk_size_threshold=threshold)
    for step in range(10):
        # 10 - 1 - step are left when this step's one is taken.
        assert controller.wants_observation(step) is (step >= first)
        controller.next_action(step)


def test_the_share_is_of_the_longest_chunk_so_far() -> None:
    controller = begun(10, aggregate_fn_name="latest_only")
    run(controller, range(9))
    controller.deliver(asked(controller, 9), chunk(9, 10, 11, 12), 9)
    assert controller.wants_observation(9)  # 3 of 10 are left, though 3 of 4


def test_actions_per_chunk_cuts_a_chunk() -> None:
    controller = begun(10, actions_per_chunk=3, on_empty_queue="wait")
    assert run(controller, range(4)) == [0, 1, 2, None]


def test_an_observation_must_go_when_the_step_leaves_the_queue_empty() -> None:
    controller = begun(3, chunk_size_threshold=1.0)
    must_go = []
    for step in range(3):
        request = asked(controller, step)
        must_go.append(request.must_go)
        controller.lost(request)
        controller.next_action(step)
    assert must_go == [False, False, True]


def test_an_observation_is_numbered_for_the_action_of_its_step() -> None:
    controller = begun(4)
    run(controller, range(2))
    assert asked(controller, 2).timestep == 2


def test_a_robot_that_stood_still_loses_no_action_of_its_next_chunk() -> None:
    controller = begun(2, on_empty_queue="wait")
    run(controller, range(5))
    request = asked(controller, 5)
    assert run(controller, range(5, 9)) == [None] * 4
    controller.deliver(request, chunk(2, 3), 9)
    assert run(controller, range(9, 11)) == [2, 3]


def test_a_request_that_is_lost_is_followed_by_another() -> None:
    controller = AsyncController()
    controller.lost(asked(controller, 0))
    assert asked(controller, 1).number == 1
    assert controller.statistics.lost == 1


def test_giving_up_an_old_request_leaves_the_one_in_flight() -> None:
    controller = AsyncController()
    old = asked(controller, 0)
    controller.lost(old)
    asked(controller, 1)
    controller.lost(old)
    assert not controller.wants_observation(2)


def test_a_request_without_an_answer_is_given_up_in_time() -> None:
    controller = AsyncController(AsyncOptions(reply_timeout_steps=3))
    asked(controller, 0)
    assert [controller.next_request(step, SEEN) is None for step in range(1, 4)] == [True, True, False]
    assert controller.statistics.lost == 1


def test_a_late_reply_is_used_if_none_came_for_a_later_observation() -> None:
    controller = AsyncController(AsyncOptions(reply_timeout_steps=2))
    late, later = asked(controller, 0), asked(controller, 2)
    assert controller.deliver(late, chunk(0, 1), 3) is not None
    assert controller.deliver(later, chunk(0, 1), 3) is not None


def test_a_late_reply_leaves_the_later_request_in_flight() -> None:
    controller = AsyncController(AsyncOptions(reply_timeout_steps=2, chunk_size_threshold=1.0))
    late, _ = asked(controller, 0), asked(controller, 2)
    controller.deliver(late, chunk(0, 1), 3)
    assert not controller.wants_observation(3)


def test_a_reply_older_than_one_that_came_is_ignored() -> None:
    controller = AsyncController(AsyncOptions(reply_timeout_steps=2))
    late, later = asked(controller, 0), asked(controller, 2)
    controller.deliver(later, chunk(5, 6), 3)
    assert controller.deliver(late, chunk(0, 1), 3) is None
    assert run(controller, range(3, 5)) == [5, 6]
    assert controller.statistics.ignored == 1


def test_a_reply_is_used_once() -> None:
    controller = AsyncController()
    request = asked(controller, 0)
    controller.deliver(request, chunk(0), 0)
    assert controller.deliver(request, chunk(0), 0) is None


def test_a_reply_to_another_episode_is_ignored() -> None:
    controller = AsyncController(AsyncOptions(on_empty_queue="wait"))
    request = asked(controller, 0)
    controller.reset()
    assert controller.deliver(request, chunk(0), 0) is None
    assert controller.next_action(0) is None


def test_a_new_episode_asks_at_once() -> None:
    controller = AsyncController()
    asked(controller, 7)
    controller.reset()
    request = asked(controller, 0)
    assert (request.episode, request.step, request.timestep, request.must_go) == (1, 0, 0, True)


# -- the filter


def test_no_observation_is_filtered_unless_asked_for() -> None:
    controller = begun(4, chunk_size_threshold=1.0)
    assert asked(controller, 0).must_go is False


@pytest.mark.parametrize(("state", "sent"), [([0.0, 0.5], False), ([0.6, 0.9], True), (None, True)])
def test_an_observation_like_the_last_one_is_skipped(state: list[float] | None, sent: bool) -> None:
    controller = begun(4, chunk_size_threshold=1.0, similar_atol=1.0)
    observation = MetaObs(state=None if state is None else np.array(state))
    assert (controller.next_request(0, observation) is not None) is sent
    assert controller.statistics.filtered == (not sent)


def test_a_must_go_is_never_filtered() -> None:
    controller = begun(1, similar_atol=1.0)
    assert asked(controller, 0).must_go is True


def test_an_observation_is_compared_with_what_was_sent_even_if_its_array_is_used_again() -> None:
    controller = AsyncController(AsyncOptions(chunk_size_threshold=1.0, similar_atol=1.0))
    observation = MetaObs(state=np.zeros(2))
    controller.deliver(asked(controller, 0, observation), chunk(0, 1, 2), 0)
    assert observation.state is not None
    observation.state += 5
    assert controller.next_request(0, observation) is not None


def test_an_observation_is_not_compared_with_one_that_was_lost() -> None:
    controller = begun(4, chunk_size_threshold=1.0, similar_atol=1.0)
    moved = MetaObs(state=np.array([5.0, 0.0]))
    controller.lost(asked(controller, 0, moved))
    assert controller.next_request(1, moved) is not None


# -- what is executed


def test_chunks_are_aggregated_by_name() -> None:
    controller = begun(4, chunk_size_threshold=1.0, aggregate_fn_name="conservative")
    controller.deliver(asked(controller, 0), chunk(10, 11, 12, 13, 14), 0)
    assert run(controller, range(5)) == pytest.approx([3, 4, 5, 6, 14])


def test_a_users_function_aggregates() -> None:
    controller = begun(2, chunk_size_threshold=1.0, aggregate_fn_name="numpy:minimum")
    controller.deliver(asked(controller, 0), chunk(-1, 5), 0)
    assert run(controller, range(2)) == [-1, 1]


def test_an_unknown_aggregate_function_is_refused_at_once() -> None:
    with pytest.raises(UnknownName, match=r"^no aggregate_fn is called 'newest'\."):
        AsyncController(AsyncOptions(aggregate_fn_name="newest"))


def test_asking_at_every_step_without_latency_executes_every_first_action() -> None:
    controller = AsyncController(AsyncOptions(chunk_size_threshold=1.0, aggregate_fn_name="latest_only"))
    executed = []
    for step in range(6):
        controller.deliver(asked(controller, step), chunk(100 * step, 100 * step + 1), step)
        executed.append(value(controller.next_action(step)))
    assert executed == [0, 100, 200, 300, 400, 500]


def test_actions_say_what_they_are() -> None:
    action = begun(1).next_action(0)
    assert action is not None
    assert (action.ctrl_space, action.ctrl_type) == ("joint", "absolute")


def test_changing_an_action_changes_no_other() -> None:
    controller = begun(1, action_hold=("last", "last"))
    for step in range(2):
        action = controller.next_action(step)
        assert action is not None
        assert action.action is not None
        action.action += 5
    assert value(controller.next_action(2)) == 0


@pytest.mark.parametrize(
    ("on_empty_queue", "ctrl_type", "expected"),
    [
        ("hold", "absolute", [7, 1]),
        ("hold", "relative", [7, 1]),
        ("hold", "delta", [0, 1]),
        ("zero", "absolute", [0, 1]),
        ("zero", "delta", [0, 1]),
    ],
)
def test_an_empty_queue_moves_nothing_and_keeps_the_gripper(
    on_empty_queue: str, ctrl_type: str, expected: list[float]
) -> None:
    hold = ("zero" if ctrl_type == "delta" else "last", "last")
    controller = AsyncController(AsyncOptions(on_empty_queue=on_empty_queue, action_hold=hold))
    controller.deliver(asked(controller, 0), chunk(7, ctrl_type=ctrl_type), 0)
    controller.next_action(0)
    for step in (1, 2):
        action = controller.next_action(step)
        assert action is not None
        np.testing.assert_array_equal(action.action, expected)


TWO_ARMS = ("zero", "zero", "last") * 2


@pytest.mark.parametrize("on_empty_queue", ["hold", "zero"])
@pytest.mark.parametrize(
    ("hold", "last", "expected"),
    [
        (TWO_ARMS, [0.3, 0.3, 1, 0.3, 0.3, 1], [0, 0, 1, 0, 0, 1]),
        (("zero", "zero"), [0.3, 0.3], [0, 0]),  # no gripper, as in Wipe
        (("choice",), [3], [3]),
    ],
)
def test_every_arm_stands_still_as_the_body_declares(
    on_empty_queue: str, hold: tuple[str, ...], last: list[float], expected: list[float]
) -> None:
    controller = AsyncController(AsyncOptions(on_empty_queue=on_empty_queue, action_hold=hold))
    # Joint velocities are called absolute as well: the label is no declaration.
    row = ActionChunk(np.array([last], np.float32), "joint", "absolute")
    controller.deliver(asked(controller, 0), row, 0)
    controller.next_action(0)
    action = controller.next_action(1)
    assert action is not None
    np.testing.assert_array_equal(action.action, np.array(expected, np.float32))


@pytest.mark.parametrize("hold", [None, ("unknown", "last")])
@pytest.mark.parametrize("ctrl_type", ["absolute", "delta"])
def test_where_nothing_is_declared_nothing_is_repeated(hold: tuple[str, ...] | None, ctrl_type: str) -> None:
    controller = AsyncController(AsyncOptions(action_hold=hold))
    controller.deliver(asked(controller, 0), chunk(7, ctrl_type=ctrl_type), 0)
    assert run(controller, range(4)) == [7, None, None, None]
    assert controller.hold_problem == (
        "on_empty_queue is 'hold', but what stands still is not declared: set action_hold ('zero' or 'last' "
        "for each entry of the action) in the spec of the simulator or of the policy, or in AsyncOptions, or "
        "choose on_empty_queue 'wait' or 'zero'"
    )
    assert AsyncController(AsyncOptions(action_hold=("zero", "last"))).hold_problem is None


def test_choices_are_not_averaged() -> None:
    controller = begun(
        4, chunk_size_threshold=1.0, aggregate_fn_name="average", action_hold=("choice", "last")
    )
    controller.deliver(asked(controller, 0), chunk(1, 0, 1, 0), 0)
    assert run(controller, range(4)) == [1, 0, 1, 0]


def test_a_declaration_of_another_body_is_refused() -> None:
    controller = AsyncController(AsyncOptions(action_hold=("last",) * 7))
    with pytest.raises(SpecMismatch, match=r"^the chunk's actions have 2 numbers, action_hold has 7$"):
        controller.deliver(asked(controller, 0), chunk(1), 0)


def test_waiting_executes_nothing() -> None:
    assert run(begun(1, on_empty_queue="wait"), range(3)) == [0, None, None]


def test_the_older_name_of_on_empty_queue_is_accepted() -> None:
    options = AsyncOptions(when_dry="wait")
    assert options == AsyncOptions(on_empty_queue="wait")
    assert replace(options, fps=10) == AsyncOptions(on_empty_queue="wait", fps=10)
    with pytest.raises(
        ValueError, match=r"^on_empty_queue is 'holds', expected one of hold, zero, wait\. Did "
    ):
        AsyncOptions(when_dry="holds")


@pytest.mark.parametrize("on_empty_queue", ["hold", "zero", "wait"])
def test_before_the_first_action_there_is_nothing_to_hold(on_empty_queue: str) -> None:
    assert AsyncController(AsyncOptions(on_empty_queue=on_empty_queue)).next_action(0) is None


def test_a_new_episode_holds_nothing_of_the_old_one() -> None:
    controller = begun(1)
    controller.next_action(0)
    controller.reset()
    assert controller.next_action(0) is None


# -- mistakes of the caller


def test_time_does_not_run_backwards() -> None:
    controller = begun(4)
    controller.next_action(3)
    with pytest.raises(ValueError, match=r"^step 2 comes after step 3: reset begins an episode$"):
        controller.next_action(2)


def test_a_step_has_one_action() -> None:
    controller = begun(4)
    controller.next_action(0)
    with pytest.raises(ValueError, match=r"^step 0 has its action already$"):
        controller.next_action(0)


def test_a_held_action_is_the_steps_action_too() -> None:
    controller = begun(1, action_hold=("last", "last"))
    run(controller, range(2))
    with pytest.raises(ValueError, match=r"^step 1 has its action already$"):
        controller.next_action(1)


def test_the_observation_comes_before_the_action() -> None:
    controller = begun(4)
    controller.next_action(0)
    with pytest.raises(ValueError, match=r"^step 0 has its action already: call next_request"):
        controller.next_request(0, SEEN)


def test_a_step_without_an_action_may_be_asked_again() -> None:
    controller = AsyncController()
    request = asked(controller, 0)
    assert [controller.next_action(0), controller.next_action(0)] == [None, None]
    controller.deliver(request, chunk(3), 0)
    assert value(controller.next_action(0)) == 3
    assert controller.statistics.starved_steps == 1


def test_a_chunk_of_another_policy_is_refused() -> None:
    controller = begun(4, chunk_size_threshold=1.0)
    with pytest.raises(SpecMismatch):
        controller.deliver(asked(controller, 0), ActionChunk(np.zeros((4, 9), np.float32), "ee", "delta"), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size_threshold": 1.5}, "chunk_size_threshold is 1.5, expected 0 to 1"),
        ({"chunk_size_threshold": float("nan")}, "chunk_size_threshold is nan, expected 0 to 1"),
        ({"actions_per_chunk": 0}, "actions_per_chunk is 0, expected at least 1 or None"),
        ({"fps": 0}, "fps is 0, expected a positive number"),
        ({"reply_timeout_steps": 0}, "reply_timeout_steps is 0, expected at least 1 or None"),
        ({"similar_atol": -1}, "similar_atol is -1, expected 0 or more, or None"),
        (
            {"on_empty_queue": "holds"},
            "on_empty_queue is 'holds', expected one of hold, zero, wait. Did you mean 'hold'?",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AsyncOptions(**options)


# -- what real-time chunking needs


def test_a_delivery_tells_the_delay_and_the_raw_chunk_and_what_will_be_executed() -> None:
    controller = begun(4, aggregate_fn_name="average")
    controller.next_action(0)
    request = asked(controller, 1)
    run(controller, range(1, 3))
    arrived = chunk(11, 12, 13, 14, 15)
    delivery = controller.deliver(request, arrived, 3)
    assert delivery is not None
    assert (delivery.request, delivery.delay, delivery.raw) == (request, 2, arrived.actions)
    assert [float(action[0]) for action in delivery.processed] == [8, 14, 15]


def test_a_request_tells_what_will_be_executed() -> None:
    controller = begun(4, aggregate_fn_name="average", actions_per_chunk=4)
    run(controller, range(2))
    controller.deliver(asked(controller, 2), chunk(20, 30, 40, 50), 2)
    run(controller, range(2, 4))
    request = asked(controller, 4)
    assert request.prefix is not None
    np.testing.assert_array_equal(request.prefix[:, 0], [40, 50])


def rtc_controller(rtc: str = "trained", **rules: Any) -> AsyncController:
    """A controller that executes 0 to 7, whose replies took 2 steps so far."""
    options = AsyncOptions(chunk_size_threshold=1.0, rtc=rtc, rtc_max_delay_steps=4, **rules)
    controller = AsyncController(options)
    request = asked(controller, 0)
    assert controller.fill(SEEN, request).delay is None  # nothing is executed before the first reply
    controller.deliver(request, chunk(*range(8)), 2)
    return controller


def test_real_time_chunking_sends_what_is_executed_before_the_reply() -> None:
    controller = rtc_controller()
    request = asked(controller, 2)
    sent = controller.fill(SEEN, request)
    assert (sent.timestep, sent.delay) == (2, 2)
    assert sent.prefix is not None
    np.testing.assert_array_equal(sent.prefix[:, 0], [0, 1, 2, 3])
    assert run(controller, range(2, 4)) == [0, 1]


@pytest.mark.parametrize(("error", "delay"), [(1, 3), (-1, 1), (-2, None), (9, 4)])
def test_a_wrong_delay_is_sent_where_one_is_asked_for(error: int, delay: int | None) -> None:
    controller = rtc_controller(rtc_delay_error=error)
    assert controller.fill(SEEN, asked(controller, 2)).delay == delay


def prefix_behind_a_late_chunk(controller: AsyncController) -> np.ndarray:
    """Return the prefix (4, 2) of a request behind a chunk that leaves one action in the queue."""
    request = asked(controller, 2)
    run(controller, range(2, 9))
    controller.deliver(request, chunk(*range(8)), 9)  # seven steps late
    sent = controller.fill(SEEN, asked(controller, 9))
    assert (sent.delay, sent.prefix is not None and sent.prefix.shape) == (1, (4, 2))
    assert sent.prefix is not None
    return sent.prefix


def test_a_delay_counts_no_more_actions_than_there_are() -> None:
    prefix = prefix_behind_a_late_chunk(rtc_controller())
    np.testing.assert_array_equal(prefix[1:], np.zeros((3, 2)))


def test_a_guided_policy_is_told_where_the_queue_ends() -> None:
    prefix = prefix_behind_a_late_chunk(rtc_controller("guided"))
    assert np.isnan(prefix[1:]).all()


def test_a_guided_policy_gets_what_is_queued_without_a_delay_too() -> None:
    controller = rtc_controller("guided", rtc_delay_error=-2)
    sent = controller.fill(SEEN, asked(controller, 2))
    assert sent.delay == 0
    assert sent.prefix is not None
    np.testing.assert_array_equal(sent.prefix[:, 0], [0, 1, 2, 3])


def test_real_time_chunking_is_off_by_default() -> None:
    controller = AsyncController(AsyncOptions(chunk_size_threshold=1.0))
    controller.deliver(asked(controller, 0), chunk(*range(8)), 2)
    sent = controller.fill(SEEN, asked(controller, 2))
    assert (sent.prefix, sent.delay, sent.timestep) == (None, None, 2)


def test_the_jump_at_borders_of_chunks_is_told_from_that_within() -> None:
    controller = AsyncController(AsyncOptions(chunk_size_threshold=1.0, aggregate_fn_name="latest_only"))
    controller.deliver(asked(controller, 0), chunk(0, 1, 2, 3), 0)
    run(controller, range(2))  # 0, 1
    controller.deliver(asked(controller, 2), chunk(6, 7, 8), 2)
    run(controller, range(2, 4))  # 6, 7
    summary = controller.statistics.summary()
    assert (summary["jump_at_borders"], summary["jump_within_chunks"]) == (5.0, 1.0)


def test_a_request_expects_the_longest_of_the_latest_delays() -> None:
    controller = AsyncController(AsyncOptions(chunk_size_threshold=1.0))
    expected = []
    for step in range(0, 130, 10):
        request = asked(controller, step)
        expected.append(request.delay)
        controller.deliver(request, chunk(0), step + (5 if step == 10 else step // 100))
    assert expected == [None, 0, *[5] * 10, 1]


# -- statistics


def test_statistics_tell_of_the_episode() -> None:
    controller = begun(4, fps=20.0, aggregate_fn_name="average")
    run(controller, range(2))
    request = asked(controller, 2)
    run(controller, range(2, 5))
    controller.deliver(request, chunk(12, 13, 14, 15), 5)
    run(controller, range(5, 6))
    statistics = controller.statistics
    assert statistics.queue_sizes == [4, 3, 2, 1, 0, 2]
    assert statistics.observation_ages == [0, 1, 2, 3, 3]
    assert statistics.summary() == {
        "starved_steps": 1,
        "aggregated_actions": 0,
        "aggregated_steps": 0,
        "dropped_actions": 2,
        "stale_actions": 0,
        "requests": 2,
        "must_go_requests": 1,
        "filtered": 0,
        "lost": 0,
        "ignored": 0,
        "steps": 6,
        "queue_size_mean": 2.0,
        "observation_age_ms_p50": 100.0,
        "observation_age_ms_p95": 150.0,
        "jump_at_borders": 11.0,
        "jump_within_chunks": 1.0,
        "delay_steps_max": 3,
    }


def test_aggregated_steps_are_executed_ones() -> None:
    controller = begun(4, chunk_size_threshold=1.0)
    controller.deliver(asked(controller, 0), chunk(5, 6, 7), 0)
    run(controller, range(2))
    assert (controller.statistics.aggregated_actions, controller.statistics.aggregated_steps) == (3, 2)


def test_statistics_of_nothing_are_nothing() -> None:
    summary = AsyncController().statistics.summary()
    assert (summary["steps"], summary["observation_age_ms_p50"], summary["queue_size_mean"]) == (
        0,
        None,
        None,
    )


def test_a_new_episode_has_statistics_of_its_own() -> None:
    controller = begun(4)
    before = controller.statistics
    controller.reset()
    assert (before.requests, controller.statistics.requests) == (1, 0)


# -- every schedule


class Schedule:
    """A policy whose reply to each request takes so many steps, or never comes; then at once, for ever."""

    def __init__(self, fates: list[int | None], sizes: list[int]) -> None:
        self._fates, self._sizes = iter(fates), iter(sizes)
        self._travelling: list[tuple[int, ChunkRequest, ActionChunk]] = []
        self.lost = 0

    def ask(self, request: ChunkRequest) -> None:
        fate = next(self._fates, 0)
        # With latest_only, an action's value tells its timestep and its observation's episode.
        timesteps = range(request.timestep, request.timestep + next(self._sizes, 3))
        reply = chunk(*(1000 * request.episode + timestep for timestep in timesteps))
        if fate is None:
            self.lost += 1
        else:
            self._travelling.append((request.step + fate, request, reply))

    def arrivals(self, step: int) -> Iterator[tuple[ChunkRequest, ActionChunk]]:
        arrived = [item for item in self._travelling if item[0] <= step]
        self._travelling = [item for item in self._travelling if item[0] > step]
        return iter([item[1:] for item in arrived])

    def delay_all(self, steps: int) -> None:
        self._travelling = [(due - steps, request, reply) for due, request, reply in self._travelling]


LONGEST_DELAY, TIMEOUT = 6, 4


@given(
    fates=st.lists(st.none() | st.integers(0, LONGEST_DELAY), max_size=12),
    sizes=st.lists(st.integers(1, 7), max_size=12),
    resets=st.lists(st.integers(1, 25), max_size=3),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    similar_atol=st.sampled_from([None, 1.0]),
)
def test_under_every_schedule_actions_come_in_order_once_and_soon(
    fates: list[int | None],
    sizes: list[int],
    resets: list[int],
    threshold: float,
    similar_atol: float | None,
) -> None:
    controller = AsyncController(
        AsyncOptions(
            chunk_size_threshold=threshold,
            aggregate_fn_name="latest_only",
            on_empty_queue="wait",
            similar_atol=similar_atol,
            reply_timeout_steps=TIMEOUT,
        )
    )
    schedule = Schedule(fates, sizes)
    for episode, steps in enumerate([*resets, 60]):
        if episode:
            controller.reset()
            schedule.delay_all(resets[episode - 1])  # what is on its way arrives in the next episode's time
        executed, starved, lost_before = 0, 0, schedule.lost
        for step in range(steps):
            request = controller.next_request(step, SEEN)
            if request is not None:
                schedule.ask(request)
            for answered, reply in schedule.arrivals(step):
                controller.deliver(answered, reply, step)
            action = controller.next_action(step)
            if action is None:
                starved += 1
                # Each loss costs one timeout. One reply may be of the last action alone, and so too late.
                assert starved <= (schedule.lost - lost_before) * TIMEOUT + 2 * (LONGEST_DELAY + 1)
            else:
                assert value(action) == 1000 * episode + executed  # none twice, none left out, none of before
                executed += 1
                starved, lost_before = 0, schedule.lost
            assert controller.queue_size <= 7 + LONGEST_DELAY + TIMEOUT
        assert executed > 0 or steps < 60


def test_the_loop_in_the_modules_docstring_runs_an_episode() -> None:
    documented = async_controller.__doc__
    assert documented is not None
    (loop,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", documented)
    executed: list[float | None] = []

    def simulate(action: MetaAction) -> MetaObs:
        executed.append(value(action))
        return MetaObs(state=np.array([float(len(executed))]))

    def policy(observation: MetaObs) -> ActionChunk:
        assert observation.state is not None
        return chunk(*(observation.state[0] + row for row in range(8)))

    names = {
        "AsyncController": AsyncController,
        "AsyncOptions": AsyncOptions,
        "max_steps": 40,
        "latency_steps": 3,
        "observation": MetaObs(state=np.zeros(1)),
        "policy": policy,
        "simulate": simulate,
    }
    exec(textwrap.dedent(loop), names)
    # The first chunk is waited for; after it the latency is hidden, and all predictions of a step are equal.
    assert executed == pytest.approx([float(step) for step in range(37)])


# -- actions that are too old


def test_an_action_that_is_too_old_is_not_executed_and_the_next_observation_must_go() -> None:
    controller = begun(8, fps=10, max_action_age_s=0.3, on_empty_queue="wait", chunk_size_threshold=0)
    assert run(controller, range(6)) == [0, 1, 2, 3, None, None]
    assert controller.statistics.stale_actions == 4
    request = asked(controller, 6)
    assert (request.must_go, request.timestep) == (True, 4)
    controller.deliver(request, chunk(40, 41), 7)
    assert run(controller, range(7, 9)) == [40, 41]


def test_the_age_of_an_action_is_read_off_the_clock_where_there_is_one() -> None:
    controller = AsyncController(AsyncOptions(fps=10, max_action_age_s=0.3, on_empty_queue="wait"))
    request = controller.next_request(0, SEEN, 100.0)
    assert request is not None
    controller.deliver(request, chunk(0, 1, 2, 3), 0)
    # The robot's loop runs at a fifth of its rate.
    taken = [value(controller.next_action(step, 100.0 + 0.5 * step)) for step in range(2)]
    assert taken == [0, None]


@pytest.mark.parametrize(
    ("on_stale_action", "executed"),
    [("hold", [1.0, 1.0]), ("zero", [0.0, 1.0]), ("wait", None), ("as_empty", [1.0, 1.0])],
)
def test_what_is_done_instead_of_an_old_action_is_chosen_by_name(
    on_stale_action: str, executed: list[float] | None
) -> None:
    controller = AsyncController(
        AsyncOptions(
            fps=10, max_action_age_s=0.1, on_stale_action=on_stale_action, action_hold=("last", "last")
        )
    )
    controller.deliver(asked(controller, 0), chunk(0, 1, 2), 0)
    assert run(controller, range(2)) == [0, 1]
    action = controller.next_action(2)
    assert (None if action is None or action.action is None else action.action.tolist()) == executed


def test_a_chunk_that_arrives_too_old_is_never_executed() -> None:
    controller = AsyncController(AsyncOptions(fps=10, max_action_age_s=0.2, on_empty_queue="wait"))
    request = asked(controller, 0)
    assert run(controller, range(3)) == [None] * 3
    controller.deliver(request, chunk(0, 1, 2, 3), 3)
    assert run(controller, range(3, 5)) == [None] * 2
    assert controller.statistics.stale_actions == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_action_age_s": 0.0}, "max_action_age_s is 0.0, expected a positive number or None"),
        (
            {"on_stale_action": "holt"},
            "on_stale_action is 'holt', expected one of as_empty, hold, zero, wait. Did you mean 'hold'?",
        ),
    ],
)
def test_rules_for_old_actions_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AsyncOptions(**options)
