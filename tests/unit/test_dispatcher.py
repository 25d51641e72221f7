"""The thread that owns the policy. Threads here meet at events; one policy sleeps as an accelerator would."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from robowire.chunking import ActionChunk
from robowire.errors import BackendError, ConfigurationError, Overloaded, ShuttingDown, SpecMismatch
from robowire.interfaces import Policy
from robowire.meta import MetaObs
from robowire.serving.metrics import Metrics
from robowire.serving.policy.dispatcher import Dispatcher, DispatchOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, FailingPolicy, SlowPolicy

# Far beyond any test: a batch that waits this long waits for its companion, not for the clock.
FOREVER_MS = 50_000.0


@contextmanager
def dispatching(
    policy: Policy, options: DispatchOptions | None = None, metrics: Metrics | None = None
) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(policy, options or DispatchOptions(), metrics or Metrics())
    try:
        yield dispatcher
    finally:
        dispatcher.close(timeout_s=5)


def rows(chunk: ActionChunk) -> np.ndarray:
    """Return (B, n, action_dim)."""
    return chunk.actions.swapaxes(0, 1)


def obs(*state: float, lang: str = "", timestep: int = -1) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32), raw_lang=lang, timestep=timestep)


def recording(policy: Policy) -> SlowPolicy:
    slow = SlowPolicy(policy)
    slow.release.set()
    return slow


def test_each_observation_gets_its_own_chunk() -> None:
    with dispatching(EchoPolicy(chunk_size=2)) as dispatcher:
        actions = rows(dispatcher.submit([obs(1, 2, 3), obs(4, 5, 6)]))
    np.testing.assert_array_equal(actions, [[[1, 2, 3], [2, 3, 4]], [[4, 5, 6], [5, 6, 7]]])


def test_what_waits_is_batched_up_to_the_limit() -> None:
    policy = recording(EchoPolicy())
    with dispatching(policy, DispatchOptions(max_batch_size=2)) as dispatcher:
        actions = rows(dispatcher.submit([obs(i, i, i) for i in range(5)]))
    assert policy.batch_sizes == [2, 2, 1]
    np.testing.assert_array_equal(actions[:, 0, 0], range(5))


def test_observations_of_two_clients_share_a_batch() -> None:
    policy, metrics = recording(EchoPolicy()), Metrics()
    options = DispatchOptions(max_batch_size=2, max_wait_ms=FOREVER_MS)
    with dispatching(policy, options, metrics) as dispatcher, ThreadPoolExecutor() as pool:
        first = pool.submit(dispatcher.submit, [obs(1, 1, 1)])
        second = pool.submit(dispatcher.submit, [obs(2, 2, 2)])
        assert (first.result().actions[0, 0, 0], second.result().actions[0, 0, 0]) == (1, 2)
    assert policy.batch_sizes == [2]
    assert metrics.snapshot()["batch_size_max"] == 2


def test_observations_of_different_shapes_are_not_batched_together() -> None:
    policy = recording(ConstantPolicy())
    with dispatching(policy) as dispatcher:
        dispatcher.submit([obs(1), obs(1, 2), obs(3), MetaObs(image=np.zeros((1, 3, 2, 2), np.uint8))])
    assert policy.batch_sizes == [2, 1, 1]


def test_one_bad_observation_does_not_fail_its_neighbour() -> None:
    policy = recording(FailingPolicy())
    options = DispatchOptions(max_batch_size=2, max_wait_ms=FOREVER_MS)
    with dispatching(policy, options) as dispatcher, ThreadPoolExecutor() as pool:
        bad = pool.submit(dispatcher.submit, [obs(1, 1, 1, lang="raise")])
        good = pool.submit(dispatcher.submit, [obs(2, 2, 2)])
        assert good.result().actions[0, 0, 0] == 2
        error = bad.exception()
    assert isinstance(error, BackendError)
    assert str(error) == "the policy failed: RuntimeError: the instruction says raise"
    assert policy.batch_sizes == [2, 1, 1]


@pytest.mark.parametrize(
    ("lang", "message"),
    [
        ("nan", "the policy answered with numbers that are not finite"),
        ("shape", "the policy answered with shape (1, 3, 3), its spec promises (1, 4, 3)"),
    ],
)
def test_an_answer_that_breaks_the_policys_promise_is_a_backend_error(lang: str, message: str) -> None:
    with dispatching(FailingPolicy()) as dispatcher, pytest.raises(BackendError) as raised:
        dispatcher.submit([obs(1, 1, 1, lang=lang)])
    assert str(raised.value) == message


def test_numbers_that_are_not_finite_fail_their_own_observation_only() -> None:
    options = DispatchOptions(max_batch_size=2, max_wait_ms=FOREVER_MS)
    with dispatching(FailingPolicy(), options) as dispatcher, ThreadPoolExecutor() as pool:
        bad = pool.submit(dispatcher.submit, [obs(1, 1, 1, lang="nan")])
        good = pool.submit(dispatcher.submit, [obs(2, 2, 2)])
        assert good.result().actions[0, 0, 0] == 2
        assert isinstance(bad.exception(), BackendError)


def test_a_policys_own_refusal_reaches_the_client_as_it_is() -> None:
    class Picky(ConstantPolicy):
        def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
            raise SpecMismatch("the instruction is empty")

    with dispatching(Picky()) as dispatcher, pytest.raises(SpecMismatch, match=r"^the instruction is empty$"):
        dispatcher.submit([obs(1)])


def test_an_observation_that_does_not_fit_never_reaches_the_policy() -> None:
    policy = recording(EchoPolicy())
    with dispatching(policy) as dispatcher, pytest.raises(SpecMismatch):
        dispatcher.submit([obs(1, 2, 3), obs(1, 2)])
    assert policy.batch_sizes == []


def test_observations_beyond_the_capacity_of_the_queue_are_refused() -> None:
    message = r"^0 observations wait already and 2 more came, 1 may: try again later$"
    options = DispatchOptions(max_waiting=1)
    with dispatching(EchoPolicy(), options) as dispatcher, pytest.raises(Overloaded, match=message):
        dispatcher.submit([obs(1, 1, 1), obs(2, 2, 2)])


def test_closing_finishes_what_waits_and_takes_nothing_new() -> None:
    policy = SlowPolicy()
    dispatcher = Dispatcher(policy, DispatchOptions(), Metrics())
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(dispatcher.submit, [obs(1, 1, 1)])
        policy.started.wait()
        policy.release.set()
        dispatcher.close(timeout_s=5)
        assert waiting.result().actions[0, 0, 0] == 1
    with pytest.raises(ShuttingDown, match=r"^the server shuts down and takes no new requests$"):
        dispatcher.submit([obs(1, 1, 1)])


def test_closing_gives_up_on_a_policy_that_hangs() -> None:
    policy = SlowPolicy()
    dispatcher = Dispatcher(policy, DispatchOptions(), Metrics())
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(dispatcher.submit, [obs(1, 1, 1)])
        policy.started.wait()
        dispatcher.close(timeout_s=0)
        error = waiting.exception()
    policy.release.set()
    dispatcher.close(timeout_s=5)
    assert isinstance(error, ShuttingDown)
    assert str(error) == "the server shut down before the policy answered"


def test_a_policy_may_leave_the_length_of_its_actions_open() -> None:
    spec = PolicySpec(policy="open", chunk_size=2)
    with dispatching(ConstantPolicy(spec)) as dispatcher:
        assert rows(dispatcher.submit([obs(1)])).shape == (1, 2, 1)


def reported(caplog: pytest.LogCaptureFixture, seconds: float, requests: int) -> list[str]:
    """Return the log of that many requests, one every so many seconds."""
    now = [0.0]
    dispatcher = Dispatcher(EchoPolicy(), DispatchOptions(), Metrics(), clock=lambda: now[0])
    with caplog.at_level("INFO"):
        for _ in range(requests):
            dispatcher.submit([obs(1, 1, 1)])
            now[0] += seconds
    dispatcher.close(timeout_s=5)
    return caplog.messages


def test_every_hundredth_inference_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert reported(caplog, seconds=1.0, requests=250) == [
        "100 inferences, the latest with p50 0.0 ms, p99 0.0 ms",
        "200 inferences, the latest with p50 0.0 ms, p99 0.0 ms",
    ]


def test_a_fast_client_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert reported(caplog, seconds=1 / 64, requests=450) == [
        "100 inferences, the latest with p50 0.0 ms, p99 0.0 ms",
        "420 inferences, the latest with p50 0.0 ms, p99 0.0 ms",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0, expected at least 1"),
        ({"max_batch_size": 0}, "max_batch_size is 0, expected at least 1"),
        ({"max_waiting": -1}, "max_waiting is -1, expected at least 1"),
        ({"max_wait_ms": -1.0}, "max_wait_ms is -1.0, expected 0 to 60000 milliseconds"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        DispatchOptions(**options)
    assert str(raised.value) == message


def test_rows_of_a_client_that_left_are_not_computed() -> None:
    now = [0.0]
    policy = SlowPolicy()
    dispatcher = Dispatcher(policy, DispatchOptions(max_batch_size=1), Metrics(), clock=lambda: now[0])
    with ThreadPoolExecutor() as pool:
        first = pool.submit(dispatcher.submit, [obs(1, 1, 1)])
        policy.started.wait()
        left = pool.submit(dispatcher.submit, [obs(2, 2, 2)], client="left", has_left=lambda: True)
        there = pool.submit(dispatcher.submit, [obs(3, 3, 3)], client="there")
        while len(dispatcher._queue) < 2:
            pass
        now[0] = 1.0
        policy.release.set()
        assert (first.result().actions[0, 0, 0], there.result().actions[0, 0, 0]) == (1, 3)
        assert str(left.exception()) == "the client left before the policy answered"
    dispatcher.close(timeout_s=5)
    assert policy.batch_sizes == [1, 1]


def test_clients_that_come_back_at_once_share_batches_and_all_are_answered() -> None:
    class Accelerator(EchoPolicy):
        def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
            time.sleep(0.01)
            return super().infer(observations)

    metrics = Metrics()
    with dispatching(Accelerator(), metrics=metrics) as dispatcher, ThreadPoolExecutor(4) as pool:

        def client(number: int) -> bool:
            answers = [dispatcher.submit([obs(number, i, 0)], client=number) for i in range(20)]
            return all((rows(answer)[0, 0] == [number, i, 0]).all() for i, answer in enumerate(answers))

        assert all(pool.map(client, range(4)))
    sizes = metrics.snapshot()["batch_sizes"]
    assert sum(size * count for size, count in sizes.items()) == 80
    assert max(sizes) == 4


def test_the_policy_says_how_large_a_batch_may_be() -> None:
    class Small(EchoPolicy):
        max_batch_size = 2

    metrics = Metrics()
    with dispatching(Small(), metrics=metrics) as dispatcher:
        dispatcher.submit([obs(i, i, i) for i in range(5)])
    assert max(metrics.snapshot()["batch_sizes"]) == 2


class Anywhere(EchoPolicy):
    """Any thread may call it; remembers which did."""

    any_thread = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.threads.append(threading.current_thread().name)
        return super().infer(observations)


def test_a_policy_that_any_thread_may_call_runs_on_the_callers_thread_where_nobody_waits() -> None:
    policy = Anywhere()
    with dispatching(policy) as dispatcher:
        dispatcher.submit([obs(1, 2, 3)], client=1)
        dispatcher.submit([obs(1, 2, 3), obs(4, 5, 6)], client=1)  # a batch is the dispatcher's
    assert policy.threads == [threading.current_thread().name, "dispatcher"]


def test_clients_of_such_a_policy_take_turns_and_all_are_answered() -> None:
    running = []

    class Checked(Anywhere):
        def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
            running.append(1)
            assert len(running) == 1  # one at a time
            time.sleep(0.001)
            running.pop()
            return super().infer(observations)

    with dispatching(Checked()) as dispatcher, ThreadPoolExecutor(8) as pool:

        def client(number: int) -> bool:
            answers = [dispatcher.submit([obs(number, i, 0)], client=number) for i in range(30)]
            return all((rows(answer)[0, 0] == [number, i, 0]).all() for i, answer in enumerate(answers))

        assert all(pool.map(client, range(8)))


def test_an_error_on_the_callers_thread_is_that_requests_own() -> None:
    class Broken(Anywhere):
        def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
            raise ValueError("no")

    with dispatching(Broken()) as dispatcher:
        for _ in range(2):
            with pytest.raises(BackendError, match="ValueError: no"):
                dispatcher.submit([obs(1, 2, 3)], client=1)


def test_a_client_that_leaves_without_an_answer_leaves_nothing() -> None:
    with dispatching(FailingPolicy()) as dispatcher:
        for client in range(3):
            with pytest.raises(BackendError):
                dispatcher.submit([obs(1, 2, 3, lang="raise")], client=client)
            dispatcher.end(client)
        assert dispatcher._arrivals._clients == {}


def test_an_observation_is_freed_once_it_is_answered() -> None:
    policy = ConstantPolicy(PolicySpec(chunk_size=2, action_dim=1))
    with dispatching(policy) as dispatcher:
        observation = obs(1)
        kept = weakref.ref(observation)
        dispatcher.submit([observation])
        del observation
        deadline = time.monotonic() + 5  # the policy's thread ends its turn after the answer
        while kept() is not None:
            assert time.monotonic() < deadline, "the thread that waits for the next holds the last one"
            time.sleep(0.001)


@pytest.mark.parametrize("first", [(1, 2, 1), (2, 1, 1), (1, 1, 2)])
@pytest.mark.parametrize("second", [(1, 2, 1), (2, 1, 1), (1, 1, 2)])
def test_requests_of_many_rows_in_several_batches_never_wait_for_each_other(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    policy = SlowPolicy(ConstantPolicy())
    with dispatching(policy) as dispatcher, ThreadPoolExecutor(4) as pool:
        pool.submit(dispatcher.submit, [obs(1, 2, 3)], client="holds")  # the others are queued meanwhile
        policy.started.wait()
        requests = []
        for client, kinds in enumerate((first, second)):
            waiting = len(dispatcher._queue)
            rows_of_it = [obs(*range(kind)) for kind in kinds]
            requests.append(pool.submit(dispatcher.submit, rows_of_it, client=client))
            while len(dispatcher._queue) == waiting:
                pass
        policy.release.set()
        assert [request.result(5).actions.shape[1] for request in requests] == [3, 3]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (obs(1, 2), r"^state is a float32 array of shape \(2,\), expected \(3,\) numbers$"),
        (MetaObs(), r"^state is a NoneType, expected \(3,\) numbers$"),
        (MetaObs(state=[1.0, 2.0, 3.0]), r"^state is a list, expected \(3,\) numbers$"),  # type: ignore[arg-type]
        (obs(1, float("nan"), 3), r"^state\[1\] is nan, expected finite numbers$"),
    ],
)
def test_what_was_compared_before_lets_nothing_else_pass(wrong: MetaObs, what: str) -> None:
    with dispatching(EchoPolicy()) as dispatcher:
        for _ in range(2):
            dispatcher.submit([obs(1, 2, 3)])
            with pytest.raises(SpecMismatch, match=what):
                dispatcher.submit([wrong])


def test_kinds_that_a_client_invents_are_not_kept() -> None:
    policy = ConstantPolicy(PolicySpec(policy="any", camera_names=None, chunk_size=2, action_dim=3))
    with dispatching(policy) as dispatcher:
        for length in range(1, 200):
            dispatcher.submit([obs(*range(length))])
        assert len(dispatcher._kinds) <= 64


class _TimedPolicy:
    """Takes the seconds that the state says, by a clock of the test."""

    any_thread = True

    def __init__(self) -> None:
        self.spec = PolicySpec(policy="timed", chunk_size=2, action_dim=1)
        self.now = 0.0

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        for observation in observations:
            assert observation.state is not None
            self.now += float(observation.state[0])
        return np.zeros((len(observations), 2, 1), np.float32)


def test_one_inference_that_the_machine_delayed_does_not_make_a_policy_slow() -> None:
    policy = _TimedPolicy()
    dispatcher = Dispatcher(policy, DispatchOptions(), Metrics(), clock=lambda: policy.now)
    try:
        assert dispatcher.latest_s == float("inf")
        for seconds in (2.0**-16, 0.5, 2.0**-16, 0.5):
            dispatcher.submit([obs(seconds)], client=1)
        assert dispatcher.latest_s == 2.0**-13
        for _ in range(2):
            dispatcher.submit([obs(0.5)], client=1)
        assert dispatcher.latest_s > 0.001  # it is slow
        for _ in range(5):
            dispatcher.submit([obs(0.5)], client=1)
        assert dispatcher.latest_s == 0.5
    finally:
        dispatcher.close(timeout_s=5)
