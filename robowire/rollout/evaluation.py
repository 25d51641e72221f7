"""Many episodes, each counted once: environments in threads, results gathered by the caller's thread.

An environment is a session with the policy server and one with the simulator server, and runs one episode
after the other. The same seed gives the same successes however many environments there are: an episode's seed
depends on its number alone, and this process asks for one inference at a time. A policy server that has two
observations waiting batches them; a batch's matrix products round otherwise than a single one's, and where
things touch, the last bit decides. The time goes into simulators, so little is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import queue
import threading
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence, TypeVar

import numpy as np

from robowire.client.async_controller import AsyncOptions
from robowire.errors import ConfigurationError, ConnectFailed, EvaluationStopped, RobowireError, VideoFailed
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import Episode, PolicySession, Rollout, SimulatorSession, film, run_episode
from robowire.rollout.outages import Outages
from robowire.rollout.real_clock import AsyncPolicySession, RealClock, run_real_episode
from robowire.rollout.results import ResultFolder, episode_of_row
from robowire.rollout.seeds import EPISODES_PER_SEED, episode_seed
from robowire.rollout.statistics import summarise
from robowire.rollout.video import Mp4Writer
from robowire.rollout.virtual_clock import AsyncClock, VirtualClock, run_virtual_episode
from robowire.specs import PolicySpec, SimulatorSpec, require_match
from robowire.version import __version__

__all__ = ["EvaluateOptions", "evaluate"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# What robowire.AsyncPolicyClient is made from: the rules, and the seconds added to each reply.
OpenAsyncPolicy = Callable[[AsyncOptions, Callable[[int], float]], AsyncPolicySession]

# Films of a simulator that does not say how fast it acts play at this rate, robosuite's default.
_DEFAULT_FPS = 20.0

# An environment sees a stop between two chunks, which take a second or two on slow renderers.
_STOP_S = 10.0

# A server that is lost at each attempt at one episode is lost because of it, or is not worth waiting for.
_RUNS_OF_ONE_EPISODE = 3

# A simulator that cannot be started again costs an episode each time. One bad start happens (memory is short
# for a moment); after three in a row the rest of the episodes would go the same way.
_FAILED_LOADS = 3


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated.

    Attributes:
        output_dir: Folder for the results.
        simulator: A name in the simulator server's table.
        task: One of its tasks.
        num_episodes: Episodes, 1 to 1000.
        num_envs: Environments at the same time, each with a simulator process of its own.
        seed: Evaluation seed, 0 or more; :func:`episode_seed` says which episodes it means.
        n_action_steps: Actions executed of each chunk before the policy is asked again; ``None`` means what
            the policy server says, else the whole chunk, and 1 where that server ensembles chunks.
        record_video: ``"off"``, ``"failures"``, ``"all"``, or how many of the first episodes.
        max_episode_steps: Steps after which an episode is over; ``None`` means the task's own limit.
        robot: ``None`` means the simulator's default, as for the next.
        controller: For example ``"OSC_POSE"``.
        camera_names: The simulator's cameras, in the policy's order; ``None`` means the policy's names.
        overwrite: Whether results that ``output_dir`` holds may be replaced.
        resume: Whether to add to results that ``output_dir`` holds: an episode is run where it is missing, or
            ended with an error. They must be of the same fingerprint, which ``summary.json`` has: policy,
            simulator, versions, and all options but those that change no episode.
        asynchronous: Act while the policy is at work, on a virtual clock or in real time; ``None`` means that
            the simulator waits for each chunk.
    """

    output_dir: Path
    simulator: str = "robosuite"
    task: str = "Lift"
    num_episodes: int = 50
    num_envs: int = 2
    seed: int = 0
    n_action_steps: int | None = None
    record_video: str = "5"
    max_episode_steps: int | None = None
    robot: str | None = None
    controller: str | None = None
    camera_names: tuple[str, ...] | None = None
    overwrite: bool = False
    resume: bool = False
    asynchronous: AsyncClock | None = None

    def __post_init__(self) -> None:
        for name in ("num_episodes", "num_envs", "n_action_steps", "max_episode_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}, expected at least 1")
        if self.num_episodes > EPISODES_PER_SEED:
            raise ConfigurationError(
                f"num_episodes is {self.num_episodes}, expected at most {EPISODES_PER_SEED}: "
                "run more with another seed"
            )
        if self.record_video not in ("off", "failures", "all") and not self.record_video.isdecimal():
            raise ConfigurationError(
                f"record_video is {self.record_video!r}, expected off, failures, all, or a number of episodes"
            )
        if self.overwrite and self.resume:
            raise ConfigurationError("overwrite and resume are both given: results can be replaced or kept")
        if self.asynchronous is not None and self.n_action_steps is not None:
            raise ConfigurationError(
                "n_action_steps is for the mode sync: in the mode async, actions_per_chunk and "
                "chunk_size_threshold say how much of a chunk is executed"
            )
        episode_seed(self.seed, 0)

    def wants_video(self, episode: int, *, success: bool) -> bool:
        """Return whether this episode is to be filmed."""
        if self.record_video == "failures":
            return not success
        if self.record_video in ("off", "all"):
            return self.record_video == "all"
        return episode < int(self.record_video)


def evaluate(
    options: EvaluateOptions,
    *,
    open_policy: Callable[[], PolicySession],
    open_simulator: Callable[[], SimulatorSession],
    open_async_policy: OpenAsyncPolicy | None = None,
    policy_wait_s: float = 0.0,
    ffmpeg: str | None = None,
    command_line: Sequence[str] = (),
    on_start: Callable[[dict[str, Any]], None] = lambda summary: None,
    on_episode: Callable[[Episode, dict[str, Any]], None] = lambda episode, summary: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Run the episodes, write the folder of results, and return what ``summary.json`` holds.

    Its ``status`` is ``"complete"``; ``"running"`` while episodes run, ``"interrupted"`` after Ctrl-C,
    ``"stopped: ..."`` where a server failed. Whichever it is, it tells of every episode that ended.

    Args:
        options: What is evaluated.
        open_policy: Opens a session with the policy server; called once for each environment.
        open_simulator: Opens a session with the simulator server; called again after a simulator failed.
        open_async_policy: Opens a session of :class:`robowire.AsyncPolicyClient`'s kind for one episode, not
            started; needed for a :class:`RealClock`. Its argument says what to add to each reply, seconds by
            the number of the request.
        policy_wait_s: Seconds that the policy server may be away, each time, once the evaluation has begun. A
            question that got no answer is asked again, so that nothing changes for a policy that is a pure
            function; where the lost session kept something (temporal ensembling), its episode begins again.
        ffmpeg: The program that makes mp4 files; needed unless ``record_video`` is off.
        command_line: Written into the summary.
        on_start: Called with the first summary, once policy and simulator were found to fit.
        on_episode: Called after each episode, from this thread, with it and the summary so far.
        clock: Seconds.

    Raises:
        RobowireError: Before the first episode, with nothing written: there are results already, or such of
            another fingerprint, a server does not answer, policy and simulator do not fit (``SpecMismatch``
            names the fields).
        EvaluationStopped: A server is gone and no further episode can run.
        KeyboardInterrupt: Ctrl-C.
    """
    if ffmpeg is None and options.record_video != "off":
        raise ConfigurationError(
            "no ffmpeg was found to record videos with: pip install imageio-ffmpeg, or use --record_video off"
        )
    if policy_wait_s < 0:
        raise ConfigurationError(f"policy_wait_s is {policy_wait_s:g}, expected 0 or more seconds")
    folder = ResultFolder(options.output_dir, overwrite=options.overwrite, resume=options.resume)
    evaluation = _Evaluation(
        options, folder, open_policy, open_simulator, open_async_policy, policy_wait_s, ffmpeg, clock
    )
    first = _Environment(evaluation)
    try:
        first.open_policy()
        first.load_task()
        report = _Report(options, folder, first, command_line, clock)
        on_start(report.summary)
    except BaseException:
        first.close()
        folder.close()
        raise
    status = "stopped"
    try:
        for episode in evaluation.run(first, report.missing):
            report.add(episode)
            on_episode(episode, report.summary)
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except EvaluationStopped as exc:
        status = f"stopped: {exc}"
        raise
    finally:
        for episode in evaluation.stop():
            report.add(episode)
        report.write(status)
        folder.close()
    return report.summary


class _SessionLost(Exception):
    """The policy's session ended in the middle of an episode, with what it kept."""


class _Report:
    """The summary, up to date on disk at all times: whatever ends this process, it tells of every episode.

    Attributes:
        summary: As it is on disk.
        missing: The numbers of the episodes to run: all, or those that a resumed folder does not have.
    """

    def __init__(
        self,
        options: EvaluateOptions,
        folder: ResultFolder,
        environment: _Environment,
        command_line: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._clock = clock
        policy, simulator = environment.policy_info, environment.simulator_info
        client = {
            "robowire": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
        }
        told = _told(options, environment)
        fingerprint = _fingerprint(told, client, environment)
        rows, earlier_s = folder.create(fingerprint)
        self._begun = clock() - earlier_s
        self._episodes = {row["episode"]: episode_of_row(row) for row in rows}
        beyond = max(self._episodes, default=-1) + 1
        if beyond > options.num_episodes:
            raise ConfigurationError(
                f"num_episodes is {options.num_episodes}, but {folder.path} holds episode {beyond - 1}: "
                f"resume with at least {beyond}"
            )
        self.missing = [n for n in range(options.num_episodes) if n not in self._episodes]
        self._facts = {
            "options": _plain(told),
            "fingerprint": fingerprint,
            "seeds": [episode_seed(options.seed, episode) for episode in range(options.num_episodes)],
            # What the servers say holds their versions. Published scores moved with a simulator's version.
            "client": client,
            "policy": _plain(policy),
            "simulator": _plain(simulator),
            "command_line": list(command_line),
        }
        self.summary: dict[str, Any] = {}
        self.write("running")

    def add(self, episode: Episode) -> None:
        self._episodes[episode.episode] = episode
        self._folder.append(episode)
        self.write("running")

    def write(self, status: str) -> None:
        wall_s = round(self._clock() - self._begun, 3)
        # In the order of their numbers: sums round alike, whichever ended first.
        episodes = [self._episodes[number] for number in sorted(self._episodes)]
        self.summary = {"status": status, **summarise(episodes), "wall_s": wall_s, **self._facts}
        self._folder.write_summary(self.summary)


class _Evaluation:
    """The threads of one evaluation, and what they share."""

    def __init__(
        self,
        options: EvaluateOptions,
        folder: ResultFolder,
        open_policy: Callable[[], PolicySession],
        open_simulator: Callable[[], SimulatorSession],
        open_async_policy: OpenAsyncPolicy | None,
        policy_wait_s: float,
        ffmpeg: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.options = options
        self.folder = folder
        self.open_policy = open_policy
        self.open_simulator = open_simulator
        self.open_async_policy = open_async_policy
        self.policy_wait_s = policy_wait_s
        self.ffmpeg = ffmpeg
        self.clock = clock
        self.stopping = threading.Event()
        self.sleep: Callable[[float], object] = self.stopping.wait  # ends with the evaluation
        self.one_inference = threading.Lock()  # the module says why
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        # From the environments: an episode, what ended an environment, or None where no episode was left.
        self._reports: queue.SimpleQueue[Episode | BaseException | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, first: _Environment, numbers: Sequence[int]) -> Iterator[Episode]:
        """Yield each episode of these numbers as it ends; the first environment is loaded already."""
        if not numbers:
            first.close()
        for number in numbers:
            self._todo.put(number)
        for index in range(min(self.options.num_envs, len(numbers))):
            environment = first if index == 0 else _Environment(self)
            # A daemon: after a second Ctrl-C nothing waits for a simulator that hangs.
            thread = threading.Thread(
                target=self._work, args=(environment,), name=f"environment-{index}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        working = len(self._threads)
        while working:
            report = self._reports.get()
            if isinstance(report, Episode):
                yield report
            elif report is None:
                working -= 1
            else:
                raise report

    def stop(self) -> list[Episode]:
        """End the threads and return the episodes that :meth:`run` did not yield."""
        self.stopping.set()
        deadline = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                _log.warning("%s did not end in %g s: its simulator does not answer", thread.name, _STOP_S)
        left = []
        while not self._reports.empty():
            report = self._reports.get()
            if isinstance(report, Episode):
                left.append(report)
        return left

    def _work(self, environment: _Environment) -> None:
        try:
            while not self.stopping.is_set():
                episode = environment.run(self._todo.get_nowait())
                if episode is not None:
                    self._reports.put(episode)
        except queue.Empty:
            self._reports.put(None)
        except BaseException as exc:  # the top of the thread: the caller's thread raises it
            self._reports.put(exc)
        finally:
            environment.close()


class _Environment:
    """One session with each server, used by one thread at a time."""

    def __init__(self, evaluation: _Evaluation) -> None:
        self._evaluation = evaluation
        self._options = evaluation.options
        self._policy: PolicySession | None = None
        self._outages = Outages(evaluation.policy_wait_s, evaluation.stopping, clock=evaluation.clock)
        self._policy_spec = PolicySpec()
        self._simulator: SimulatorSession | None = None
        self._failed_loads = _FAILED_LOADS - 1  # the very first load has to work
        self.policy_info: dict[str, Any] = {}
        self.simulator_info: dict[str, Any] = {}
        self.simulator_spec = SimulatorSpec()
        self.n_action_steps = 1
        self.asynchronous: AsyncClock | None = None

    def open_policy(self) -> None:
        """Open the session with the policy server."""
        options = self._options
        self._policy = self._evaluation.open_policy()
        self.policy_info = self._policy.get_info()
        spec = PolicySpec.from_wire(self.policy_info)
        self.n_action_steps = _action_steps(options.n_action_steps, spec.chunk_size, self.policy_info)
        if options.camera_names is not None:
            spec = replace(spec, camera_names=options.camera_names)
        self._policy_spec = spec

    def load_task(self) -> None:
        """Open a session with the simulator server and load the task as the policy wants it.

        Raises:
            SpecMismatch: The task does not fit the policy.
        """
        options, wanted = self._options, self._policy_spec
        self._simulator = self._evaluation.open_simulator()
        self._simulator.select_simulator(options.simulator)
        self.simulator_spec = self._simulator.load_task(
            options.task,
            robot=options.robot,
            controller=options.controller,
            camera_names=wanted.camera_names,
            image_height=wanted.image_height,
            image_width=wanted.image_width,
            horizon=options.max_episode_steps,
            control_hz=wanted.control_hz,
            observation_format="meta",
        )
        require_match(wanted, self.simulator_spec)
        if options.asynchronous is not None:
            self.asynchronous = options.asynchronous.at(self.simulator_spec.control_hz)
        self.simulator_info = self._simulator.get_info()
        self._failed_loads = 0

    def run(self, number: int) -> Episode | None:
        """Return one episode, run to its end; ``None`` where the evaluation was stopped in the middle.

        Raises:
            EvaluationStopped: The policy server failed, or no simulator can be had.
        """
        rollout = Rollout(episode_seed(self._options.seed, number))
        begun = self._evaluation.clock()
        error: str | None = None
        try:
            if self._policy is None:
                self._ask(self.open_policy)
            if self._simulator is None:
                self._reload_task()
                begun = self._evaluation.clock()  # a load is not the episode's
            if self.simulator_spec.init_states:
                # In turn, as published evaluations of LIBERO take them: episode 0 is the same one everywhere.
                rollout.init_state = number % self.simulator_spec.init_states
            self._run_episode(rollout)
            if rollout.success is None:
                return None
        except EvaluationStopped:
            raise
        except RobowireError as exc:
            error = f"{type(exc).__name__}: {exc}"
            _log.warning("episode %d was lost and is not counted: %s", number, error)
            self._drop_simulator()
        seconds = self._evaluation.clock() - begun
        return Episode(
            episode=number,
            seed=rollout.seed,
            success=rollout.success,
            steps=len(rollout.actions),
            total_reward=sum(rollout.rewards),
            error=error,
            infer_ms=tuple(rollout.infer_ms),
            seconds=seconds,
            video=self._film(number, rollout) if error is None else None,
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

    def _reload_task(self) -> None:
        try:
            self.load_task()
        except ConnectFailed as exc:
            raise EvaluationStopped(f"the simulator server is gone: {exc}") from exc
        except RobowireError as exc:
            self._failed_loads += 1
            if self._failed_loads >= _FAILED_LOADS:
                raise EvaluationStopped(f"{self._options.task!r} can't be loaded: {exc}") from exc
            raise

    def _run_episode(self, rollout: Rollout) -> None:
        """Run it, again from its start where the policy's session was lost with what it kept.

        Raises:
            EvaluationStopped: The policy server failed, or was lost too often.
            RobowireError: The simulator failed.
        """
        for _ in range(_RUNS_OF_ONE_EPISODE):
            try:
                if isinstance(self.asynchronous, RealClock):
                    self._run_in_real_time(rollout, self.asynchronous)
                else:
                    self._run_on_demand(rollout)
            except _SessionLost:
                _log.warning(
                    "the episode of seed %d begins again: its policy session is lost, with what it kept of "
                    "earlier observations",
                    rollout.seed,
                )
                rollout.begin_again()
            else:
                return
        self._evaluation.stopping.set()
        raise EvaluationStopped(
            f"the policy server was lost {_RUNS_OF_ONE_EPISODE} times in the episode of seed {rollout.seed}"
        )

    def _run_on_demand(self, rollout: Rollout) -> None:
        """Run an episode in which the simulator waits while the policy is at work."""
        policy, simulator = self._policy, self._simulator
        assert policy is not None
        assert simulator is not None

        def timed(observation: MetaObs) -> tuple[list[MetaAction], float]:
            begun = self._evaluation.clock()  # of the attempt that was answered: waiting is no inference
            return policy.send_meta_obs(observation), round((self._evaluation.clock() - begun) * 1000, 3)

        def infer(observation: MetaObs) -> list[MetaAction]:
            with self._evaluation.one_inference:
                if self._evaluation.stopping.is_set():
                    return []
                outages = self._outages.survived
                actions, took_ms = self._ask(lambda: timed(observation))
            if (
                self._outages.survived != outages
                and rollout.infer_ms
                and self.policy_info.get("temporal_agg")
            ):
                raise _SessionLost
            rollout.infer_ms.append(took_ms)
            return actions

        self._ask(policy.reset)
        if isinstance(self.asynchronous, VirtualClock):
            run_virtual_episode(infer, simulator, rollout, self.asynchronous)
        else:
            run_episode(lambda observation: infer(observation)[: self.n_action_steps], simulator, rollout)

    def _run_in_real_time(self, rollout: Rollout, clock: RealClock) -> None:
        """Run an episode in which the simulator goes on while the policy is at work."""
        evaluation, simulator = self._evaluation, self._simulator
        assert evaluation.open_async_policy is not None, "a RealClock needs open_async_policy"
        assert simulator is not None
        # One for each episode: what a client remembers of earlier ones would make their order count.
        client = evaluation.open_async_policy(
            clock.rules, lambda request: clock.latency.milliseconds(rollout.seed, request) / 1000
        )
        try:
            self._ask(client.start)
            run_real_episode(
                client,
                simulator,
                rollout,
                clock,
                ask=self._ask,
                returned=self._require_same_policy,
                stopped=evaluation.stopping.is_set,
                now=evaluation.clock,
                sleep=evaluation.sleep,
            )
        finally:
            client.stop()

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the policy server; that it cannot answer is no one episode's fault and ends the evaluation."""
        outages = self._outages.survived
        try:
            answer = self._outages.ask(question)
            if self._outages.survived != outages:
                self._require_same_policy()
        except RobowireError as exc:
            self._evaluation.stopping.set()  # at once: the others would find it out with waits of their own
            raise EvaluationStopped(f"the policy server failed: {exc}") from exc
        return answer

    def _require_same_policy(self) -> None:
        """Refuse a server that came back with something else: the folder is of one policy."""
        if self._policy is None:
            return
        before = _plain(_only(_POLICY_FACTS, self.policy_info))
        now = _plain(_only(_POLICY_FACTS, self._outages.ask(self._policy.get_info)))
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ConfigurationError(f"it came back with another policy: {'; '.join(changed)}")

    def _film(self, number: int, rollout: Rollout) -> str | None:
        """Return the name of an episode's film, or ``None``: the count stands whatever becomes of it."""
        ffmpeg, success = self._evaluation.ffmpeg, bool(rollout.success)
        if ffmpeg is None or not self._options.wants_video(number, success=success):
            return None
        assert self._simulator is not None
        path = self._evaluation.folder.video(number, success=success)
        try:
            with Mp4Writer(path, ffmpeg=ffmpeg, fps=self.simulator_spec.control_hz or _DEFAULT_FPS) as writer:
                film(self._simulator, rollout, writer, stopped=self._evaluation.stopping.is_set)
        except RobowireError as exc:
            _log.warning("no film of episode %d: %s", number, exc)
            if not isinstance(exc, VideoFailed):
                self._drop_simulator()
            return None
        return path.relative_to(self._evaluation.folder.path).as_posix()

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


def _told(options: EvaluateOptions, environment: _Environment) -> dict[str, Any]:
    """Return the options as the summary has them: the flags' names, with what was found out for defaults."""
    told = asdict(options)
    del told["asynchronous"]
    asynchronous = environment.asynchronous
    if asynchronous is None:
        return {**told, "n_action_steps": environment.n_action_steps}
    return {
        **told,
        "mode": "async",
        "clock": asynchronous.name,
        "latency_ms": asynchronous.latency.text,
        # Results keep the older name, so that they can be compared with and added to earlier ones.
        **{
            "when_dry" if name == "on_empty_queue" else name: value
            for name, value in asdict(asynchronous.rules).items()
        },
    }


# Whatever else a server says of itself changes no episode.
_POLICY_FACTS = {field.name for field in fields(PolicySpec)} | {"temporal_agg", "device", "versions"}
_SIMULATOR_FACTS = {field.name for field in fields(SimulatorSpec)}

# These options say where, how many and how fast, and not what an episode is.
_NO_EPISODE = {"output_dir", "num_episodes", "num_envs", "record_video", "overwrite", "resume"}


def _fingerprint(told: dict[str, Any], client: dict[str, str], environment: _Environment) -> dict[str, Any]:
    """Return all that decides what an episode of a given number is, by name: JSON values in one level."""
    options = {name: value for name, value in told.items() if name not in _NO_EPISODE}
    asynchronous = environment.asynchronous
    if asynchronous is not None and asynchronous.latency.recorded:
        # What was recorded counts, not where the file lies.
        content = np.array(asynchronous.latency.recorded).tobytes()
        options["latency_ms"] = f"recorded, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"
    simulator = environment.simulator_info
    # A fingerprint has the versions too; a server of an older release has those only.
    process = simulator.get("process") or {}
    process = process.get("fingerprint") or process.get("versions") or {}
    facts = {
        **options,
        "client": {name: text for name, text in client.items() if name != "platform"},
        "policy": _only(_POLICY_FACTS, environment.policy_info),
        "simulator": {**_only(_SIMULATOR_FACTS, simulator), "process": process},
    }
    return dict(_flat(_plain(facts)))


def _only(names: set[str], facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name in names}


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """Return what a server said in a form that JSON holds: arrays as lists, anything strange as text."""
    return json.loads(
        json.dumps(value, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item))
    )
