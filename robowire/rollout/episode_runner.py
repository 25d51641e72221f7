"""Episodes one after the other, in one session with the policy server and one with the simulator server.

Decides what each failure costs: an episode (the simulator failed), a wait (the policy server is away), or the
evaluation (a server does not come back).
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Callable, Sequence, TypeVar

import numpy as np

from robowire.client.async_controller import AsyncOptions, require_declared_hold
from robowire.contract import Bridge, bridge
from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    EvaluationStopped,
    InvalidParams,
    RobowireError,
    VideoFailed,
)
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import (
    EpisodeLog,
    EpisodeResult,
    Rollout,
    RolloutPolicy,
    RolloutSimulator,
    record_video,
    run_episode,
)
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.outages import Outages
from robowire.rollout.real_clock import AsyncPolicySession, RealClock, run_real_episode
from robowire.rollout.results import ResultFolder, finite
from robowire.rollout.seeds import episode_seed
from robowire.rollout.video import Mp4Writer
from robowire.rollout.virtual_clock import AsyncClock, VirtualClock, run_virtual_episode
from robowire.specs import PolicySpec, SimulatorSpec, declared_hold
from robowire.tracing.spans import work

__all__ = ["POLICY_FIELDS", "EpisodeRunner", "OpenAsyncPolicy", "RunnerContext", "plain", "select"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Makes robowire.AsyncPolicyClient from the rules and the seconds added to each reply.
OpenAsyncPolicy = Callable[[AsyncOptions, Callable[[int], float]], AsyncPolicySession]

# Videos of a simulator that does not report its rate play at this one, robosuite's default.
_DEFAULT_FPS = 20.0

# The last image of a video stays this long, in seconds.
_HOLD_S = 1.0

# A server that is lost at each attempt at one episode is lost because of it, or is not worth waiting for.
_RUNS_OF_ONE_EPISODE = 3

# A simulator that cannot be started again costs an episode each time. One bad start happens (memory is short
# for a moment); after three in a row the rest of the episodes would go the same way.
_FAILED_LOADS = 3

# What a policy server reports and an episode depends on.
POLICY_FIELDS = {field.name for field in fields(PolicySpec)} | {
    *("temporal_agg", "stateful", "device", "versions")
}


@dataclass(frozen=True)
class RunnerContext:
    """What the runners of one evaluation share.

    Attributes:
        options: Options of the evaluation.
        folder: Folder of the results.
        open_policy: Opens a session with the policy server.
        open_simulator: Opens a session with the simulator server.
        open_async_policy: Opens a session for one episode in real time.
        policy_wait_s: Seconds that the policy server may be away, each time.
        ffmpeg: Program that encodes videos; ``None`` records none.
        clock: Seconds, monotonic.
        log: Takes the episodes whose videos are recorded; ``None`` for nothing.
        stopping: Set when the evaluation ends; every wait ends with it.
        one_inference: Held during an inference: the module ``evaluation`` says why.
    """

    options: EvaluateOptions
    folder: ResultFolder
    open_policy: Callable[[], RolloutPolicy]
    open_simulator: Callable[[], RolloutSimulator]
    open_async_policy: OpenAsyncPolicy | None
    policy_wait_s: float
    ffmpeg: str | None
    clock: Callable[[], float]
    log: EpisodeLog | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    one_inference: threading.Lock = field(default_factory=threading.Lock)


class _PolicyStateLost(Exception):
    """The policy's session ended in the middle of an episode, and its state with it."""


class EpisodeRunner:
    """One session with each server, used by one thread at a time."""

    def __init__(self, context: RunnerContext) -> None:
        self._context = context
        self._options = context.options
        self._policy: RolloutPolicy | None = None
        self._outages = Outages(context.policy_wait_s, context.stopping, clock=context.clock)
        self._simulator_outages = Outages(
            context.policy_wait_s, context.stopping, clock=context.clock, server="simulator server"
        )
        self._policy_spec = PolicySpec()
        self._bridge: Bridge | None = None
        self._simulator: RolloutSimulator | None = None
        self._loaded = False
        self._failed_loads = _FAILED_LOADS - 1  # the very first load has to work, after its own attempts
        self.policy_info: dict[str, Any] = {}
        self.simulator_info: dict[str, Any] = {}
        self.simulator_spec = SimulatorSpec()
        self.n_action_steps = 1
        self.asynchronous: AsyncClock | None = None

    def begin(self) -> None:
        """Open both sessions and load the task, before the first episode.

        A server that is busy or restarts is waited for, as later, and a simulator that fails is started
        again; a server that nobody can reach is an error at once, because its address may be wrong.

        Raises:
            RobowireError: A server cannot be used, or policy and simulator do not fit.
        """
        self._outages.ask(self.open_policy, must_be_reachable=True)
        self._load_first_task()

    def open_policy(self) -> None:
        """Open the session with the policy server."""
        options = self._options
        policy = self._context.open_policy()
        try:
            self.policy_info = policy.get_info()
        except RobowireError:
            policy.disconnect()
            raise
        self._policy = policy
        spec = PolicySpec.from_wire(self.policy_info)
        if options.camera_names is not None:
            spec = replace(spec, camera_names=options.camera_names)
        self._policy_spec = spec
        if self._loaded:  # a session after a lost one
            self._fit()
        else:
            self.n_action_steps = _action_steps(options.n_action_steps, spec.chunk_size, self.policy_info)

    def load_task(self) -> None:
        """Open a session with the simulator server and load the task as the policy wants it.

        Raises:
            SpecMismatch: The task does not fit the policy, and no adapter of the options bridges it.
        """
        options, wanted = self._options, self._wanted()
        self._simulator = self._context.open_simulator()
        self._simulator.select_simulator(options.simulator)
        load_task = partial(
            self._simulator.load_task,
            options.task,
            robot=options.robot,
            controller=options.controller,
            camera_names=wanted.camera_names,
            image_height=wanted.image_height,
            image_width=wanted.image_width,
            horizon=options.max_episode_steps,
            observation_format="meta",
        )
        # With the adapter the task keeps its own rate, for which its step limit was made.
        control_hz = None if "rate" in options.adapters else wanted.control_hz
        try:
            self.simulator_spec = load_task(control_hz=control_hz)
        except InvalidParams:
            if control_hz is None:
                raise
            # Not at the policy's rate, perhaps: the comparison names both rates, and every other mismatch.
            self.simulator_spec = load_task(control_hz=None)
        wanted = self._fit()
        if options.asynchronous is not None:
            self.asynchronous = options.asynchronous.at(
                self.simulator_spec.control_hz,
                action_hold=_hold(self.simulator_spec, wanted),
                rtc=wanted.rtc,
                rtc_max_delay_steps=wanted.rtc_max_delay_steps,
            )
            require_declared_hold(self.asynchronous.rules)
        if self.policy_info.get("temporal_agg") and "choice" in (self.simulator_spec.action_hold or ()):
            raise ConfigurationError(
                f"{options.task} takes choices, which must not be averaged: serve the policy without "
                "temporal_agg"
            )
        info = self._simulator.get_info()
        if "task" in info and info["task"] is None:
            # Results would be kept under the fingerprint of no task, and never be resumed.
            raise ConnectionLost("the simulator's process ended right after load_task")
        self.simulator_info = info
        self._loaded, self._failed_loads = True, 0

    def _wanted(self) -> PolicySpec:
        """Return what the task must give and take: the policy's spec with the images of the options."""
        size = self._options.image_size
        if size is None:
            return self._policy_spec
        return replace(self._policy_spec, image_height=size[0], image_width=size[1])

    def _fit(self) -> PolicySpec:
        """Compare policy and task, and return the policy's spec as the task sees it.

        Raises:
            SpecMismatch: They differ in what no adapter bridges.
            ConfigurationError: The rate is bridged, and the server averages over time.
        """
        options, wanted = self._options, self._wanted()
        self._bridge = bridge(wanted, self.simulator_spec, options.adapters)
        info = self.policy_info
        if self._bridge is not None:
            self._bridge.require_timeable(info)
            wanted = self._bridge.spec()
            info = {**info, "n_action_steps": wanted.n_action_steps}
        self.n_action_steps = _action_steps(options.n_action_steps, wanted.chunk_size, info)
        return wanted

    def run(self, number: int) -> EpisodeResult | None:
        """Return one episode, run to its end; ``None`` where the evaluation was stopped in the middle.

        Raises:
            EvaluationStopped: The policy server failed, or no simulator can be had.
        """
        rollout = Rollout(episode_seed(self._options.seed, number))
        begun = self._context.clock()
        error: str | None = None
        try:
            if self._policy is None:
                self._request(self.open_policy)
            if self._simulator is None:
                self._reload_task()
                begun = self._context.clock()  # a load is not the episode's
            if self.simulator_spec.init_states:
                # In turn, as published evaluations of LIBERO take them: episode 0 is the same one everywhere.
                rollout.init_state = number % self.simulator_spec.init_states
            with work("episode", episode=number, seed=rollout.seed, task=self._options.task) as span:
                self._run_episode(rollout)
                span.update(success=rollout.success, steps=len(rollout.actions))
            if rollout.success is None:
                return None
        except EvaluationStopped:
            raise
        except RobowireError as exc:
            error = f"{type(exc).__name__}: {exc}"
            _log.warning("episode %d was lost and is not counted: %s", number, error)
            self._drop_simulator()
        seconds = self._context.clock() - begun
        return EpisodeResult(
            episode=number,
            seed=rollout.seed,
            success=rollout.success,
            steps=len(rollout.actions),
            total_reward=sum(rollout.rewards),
            error=error,
            infer_ms=tuple(rollout.infer_ms),
            seconds=seconds,
            video=self._record_video(number, rollout) if error is None else None,
            init_state=rollout.init_state,
            mode="sync" if self._options.asynchronous is None else "async",
            statistics=rollout.statistics,
            late_steps=rollout.late_steps,
        )

    def close(self) -> None:
        """End both sessions."""
        self._drop_simulator()
        if self._policy is not None:
            self._policy.disconnect()
            self._policy = None

    def _load_first_task(self) -> None:
        """Load the task for the first time, in up to three simulators: one may be killed while it loads."""
        for attempt in range(1, _FAILED_LOADS + 1):
            try:
                self._load_task_patiently()
            except BackendError as exc:
                if attempt == _FAILED_LOADS or self._context.stopping.is_set():
                    raise
                _log.warning("attempt %d of %d to load the task failed: %s", attempt, _FAILED_LOADS, exc)
            else:
                return

    def _load_task_patiently(self) -> None:
        def load() -> None:
            try:
                self.load_task()
            except RobowireError:
                self._drop_simulator()
                raise

        self._simulator_outages.ask(load, must_be_reachable=True)

    def _reload_task(self) -> None:
        try:
            if self._loaded:
                self._load_task_patiently()
            else:
                self._load_first_task()
        except ConnectFailed as exc:
            raise EvaluationStopped(f"the simulator server is gone: {exc}") from exc
        except RobowireError as exc:
            self._failed_loads += 1
            if self._failed_loads >= _FAILED_LOADS:
                raise EvaluationStopped(f"{self._options.task!r} can't be loaded: {exc}") from exc
            raise

    def _run_episode(self, rollout: Rollout) -> None:
        """Run it, again from its start where the policy's session was lost with what it kept.

        A server that fails in the same words at the same observation would do so each time: it is not asked
        a third time.

        Raises:
            EvaluationStopped: The policy server failed, or was lost too often.
            RobowireError: The simulator failed.
        """
        reason, failures = "", set[tuple[int, str]]()
        for _ in range(_RUNS_OF_ONE_EPISODE):
            try:
                if isinstance(self.asynchronous, RealClock):
                    self._run_in_real_time(rollout, self.asynchronous)
                else:
                    self._run_on_demand(rollout)
            except _PolicyStateLost as exc:
                if isinstance(exc.__cause__, BackendError):
                    failure = (len(rollout.infer_ms), str(exc))
                    if failure in failures:
                        self._context.stopping.set()
                        raise EvaluationStopped(
                            f"the policy server failed twice at observation {failure[0]} of the episode of "
                            f"seed {rollout.seed}: {exc}"
                        ) from exc
                    failures.add(failure)
                _log.warning(
                    "the episode of seed %d begins again: its policy session is lost, with what it kept of "
                    "earlier observations%s",
                    rollout.seed,
                    f": {exc}" if str(exc) else "",
                )
                reason = f": {exc}" if str(exc) else ""
                rollout.begin_again()
            else:
                return
        self._context.stopping.set()
        raise EvaluationStopped(
            f"the policy server was lost {_RUNS_OF_ONE_EPISODE} times in the episode of seed "
            f"{rollout.seed}{reason}"
        )

    def _run_on_demand(self, rollout: Rollout) -> None:
        """Run an episode in which the simulator waits while the policy is at work."""
        policy, simulator = self._policy, self._simulator
        assert policy is not None
        assert simulator is not None

        def timed(observation: MetaObs) -> tuple[list[MetaAction], float]:
            begun = self._context.clock()  # of the attempt that was answered: waiting is no inference
            try:
                answer = policy.send_meta_obs(replace(self._bridged(observation), episode_seed=rollout.seed))
            except (ConnectionLost, BackendError) as exc:
                if self.policy_info.get("stateful"):  # asked again, it would answer something else
                    raise _PolicyStateLost(str(exc)) from exc
                raise
            actions = [self._labelled(action) for action in self._bridged_actions(answer)]
            return actions, round((self._context.clock() - begun) * 1000, 3)

        def infer(observation: MetaObs) -> list[MetaAction]:
            with self._context.one_inference:
                if self._context.stopping.is_set():
                    return []
                outages = self._outages.survived
                actions, took_ms = self._request(lambda: timed(observation))
            if (
                self._outages.survived != outages
                and rollout.infer_ms
                and self.policy_info.get("temporal_agg")
            ):
                raise _PolicyStateLost
            rollout.infer_ms.append(took_ms)
            if self._context.log is not None and actions:
                chunk = np.stack([np.asarray(action.action) for action in actions])
                rollout.chunks.append((observation.timestep, chunk))
            return actions

        self._request(policy.reset)
        if isinstance(self.asynchronous, VirtualClock):
            run_virtual_episode(infer, simulator, rollout, self.asynchronous)
        else:
            run_episode(lambda observation: infer(observation)[: self.n_action_steps], simulator, rollout)

    def _run_in_real_time(self, rollout: Rollout, clock: RealClock) -> None:
        """Run an episode in which the simulator goes on while the policy is at work."""
        context, simulator = self._context, self._simulator
        assert context.open_async_policy is not None, "a RealClock needs open_async_policy"
        assert simulator is not None
        # One for each episode: what a client remembers of earlier ones would make their order count.
        client = context.open_async_policy(
            clock.rules, lambda request: clock.latency.milliseconds(rollout.seed, request) / 1000
        )
        if self._bridge is not None:
            client.fit(self.simulator_spec, self._options.adapters)
        try:
            self._request(client.start)
            run_real_episode(
                client,
                simulator,
                rollout,
                clock,
                ask=lambda send: self._labelled(self._request(send)),
                returned=self._require_same_policy,
                stopped=context.stopping.is_set,
                now=context.clock,
                sleep=context.stopping.wait,
            )
        finally:
            client.stop()

    def _bridged(self, observation: MetaObs) -> MetaObs:
        return observation if self._bridge is None else self._bridge.observation(observation)

    def _bridged_actions(self, answer: Sequence[MetaAction]) -> Sequence[MetaAction]:
        if self._bridge is None or not answer:
            return answer
        rows = self._bridge.actions(np.stack([np.asarray(action.action) for action in answer]))
        return [replace(answer[0], action=row) for row in rows]

    def _labelled(self, answer: T) -> T:
        """Return an action under the simulator's names where the policy declares none.

        The wire has no word for "undeclared": such actions come under MetaAction's defaults, which are no
        declaration.
        """
        if isinstance(answer, MetaAction):
            for name in ("ctrl_space", "ctrl_type"):
                given = getattr(self.simulator_spec, name)
                if getattr(self._policy_spec, name) is None and given is not None:
                    setattr(answer, name, given)
        return answer

    def _request(self, send: Callable[[], T]) -> T:
        """Send a request to the policy server; a failure ends the evaluation, not only the episode."""
        outages = self._outages.survived
        try:
            answer = self._outages.ask(send)
            if self._outages.survived != outages:
                self._require_same_policy()
        except RobowireError as exc:
            self._context.stopping.set()  # at once: the others would find it out with waits of their own
            raise EvaluationStopped(f"the policy server failed: {exc}") from exc
        return answer

    def _require_same_policy(self) -> None:
        """Refuse a server that returned with another policy: a folder holds results of one."""
        if self._policy is None:
            return
        before = plain(select(POLICY_FIELDS, self.policy_info))
        now = plain(select(POLICY_FIELDS, self._outages.ask(self._policy.get_info)))
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigurationError(f"it came back with another policy: {'; '.join(changed)}")

    def _record_video(self, number: int, rollout: Rollout) -> str | None:
        """Return the file name of an episode's video, or ``None``; a failure changes no result."""
        ffmpeg, success = self._context.ffmpeg, bool(rollout.success)
        if ffmpeg is None or not self._options.wants_video(number, success=success):
            return None
        assert self._simulator is not None
        try:
            path = self._context.folder.video(number, success=success)
            fps = self.simulator_spec.control_hz or _DEFAULT_FPS
            log = self._context.log
            steps = None
            if log is not None:
                steps = log.begin_episode(
                    number,
                    seed=rollout.seed,
                    success=success,
                    fps=fps,
                    camera_names=self.simulator_spec.camera_names or (),
                    chunks=rollout.chunks,
                )
            with Mp4Writer(path, ffmpeg=ffmpeg, fps=fps) as writer:
                record_video(
                    self._simulator,
                    rollout,
                    writer,
                    stopped=self._context.stopping.is_set,
                    hold=round(_HOLD_S * fps),
                    log=steps,
                )
        except RobowireError as exc:
            _log.warning("no video of episode %d: %s", number, exc)
            if not isinstance(exc, VideoFailed):
                self._drop_simulator()
            return None
        return path.relative_to(self._context.folder.path).as_posix()

    def _drop_simulator(self) -> None:
        """End the simulator's session, so that the next episode begins with a new process."""
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            try:
                simulator.disconnect()
            except RobowireError as exc:
                _log.debug("the simulator's session ended before it was closed: %s", exc)


def _action_steps(asked: int | None, chunk_size: int, info: dict[str, Any]) -> int:
    """Return how many actions of a chunk are executed.

    Raises:
        ConfigurationError: More were asked for than there are, or than ensembling allows.
    """
    if info.get("temporal_agg"):
        if asked not in (None, 1):
            raise ConfigurationError(
                f"n_action_steps is {asked}, but the policy server ensembles chunks (--temporal_agg), "
                "which needs a new one at each step: leave --n_action_steps out"
            )
        return 1
    if asked is not None and asked > chunk_size:
        raise ConfigurationError(
            f"n_action_steps is {asked}, but the policy server's chunks have {chunk_size} actions"
        )
    return asked or int(info.get("n_action_steps") or chunk_size)


def select(names: set[str], info: dict[str, Any]) -> dict[str, Any]:
    """Return the entries with these names."""
    return {name: value for name, value in info.items() if name in names}


def plain(value: Any) -> Any:
    """Return what a server reported as JSON values: arrays as lists, other types as text."""
    return finite(
        json.loads(
            json.dumps(value, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item))
        )
    )


def _hold(simulator: SimulatorSpec, policy: PolicySpec) -> tuple[str, ...] | None:
    """Return what stands still: the simulator's declaration, else the policy's, else what is known of it."""
    return declared_hold(simulator) or declared_hold(policy) or simulator.action_hold or policy.action_hold
