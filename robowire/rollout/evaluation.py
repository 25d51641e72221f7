"""Many episodes, each counted once: environments in threads, results gathered by the caller's thread.

An environment is a session with the policy server and one with the simulator server, and runs one episode
after the other. The same seed gives the same successes however many environments there are: an episode's seed
depends on its number alone, and this process asks for one inference at a time. A policy server that has two
observations waiting batches them; a batch's matrix products round otherwise than a single one's, and where
things touch, the last bit decides. The time goes into simulators, so little is lost.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

from robowire.errors import ConfigurationError, EvaluationStopped, ResultsNotWritten
from robowire.rollout.episode_runner import EpisodeRunner, OpenAsyncPolicy, RunnerContext
from robowire.rollout.episodes import EpisodeLog, EpisodeResult, RolloutPolicy, RolloutSimulator
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation_report import EvaluationReport
from robowire.rollout.results import ResultFolder

__all__ = ["evaluate"]

_log = logging.getLogger(__name__)

# An environment sees a stop between two chunks, which take a second or two on slow renderers.
_STOP_S = 10.0


def evaluate(
    options: EvaluateOptions,
    *,
    open_policy: Callable[[], RolloutPolicy],
    open_simulator: Callable[[], RolloutSimulator],
    open_async_policy: OpenAsyncPolicy | None = None,
    policy_wait_s: float = 0.0,
    ffmpeg: str | None = None,
    command_line: Sequence[str] = (),
    on_start: Callable[[dict[str, Any]], None] = lambda summary: None,
    on_episode: Callable[[EpisodeResult, dict[str, Any]], None] = lambda episode, summary: None,
    clock: Callable[[], float] = time.perf_counter,
    log: EpisodeLog | None = None,
) -> dict[str, Any]:
    """Run the episodes, write the folder of results, and return what ``summary.json`` holds.

    Its ``status`` is ``"complete"``, or ``"decided"`` where ``stop_when`` ended it early; ``"running"`` while
    episodes run, ``"interrupted"`` after Ctrl-C, ``"stopped: ..."`` where a server or the disk failed. It
    holds every episode that ended.

    Args:
        options: What is evaluated.
        open_policy: Opens a session with the policy server; called once for each environment.
        open_simulator: Opens a session with the simulator server; called again after a simulator failed.
        open_async_policy: Opens a session of :class:`robowire.AsyncPolicyClient`'s kind for one episode, not
            started; needed for a :class:`RealClock`. Its argument says what to add to each reply, seconds by
            the number of the request.
        policy_wait_s: Seconds that a server may be away, each time. A request without a reply is repeated,
            so that nothing changes for a policy that is a pure function; where the lost session had state
            (temporal ensembling), its episode begins again.
        ffmpeg: The program that makes mp4 files; needed unless ``record_video`` is off.
        command_line: Written into the summary.
        on_start: Called with the first summary, once policy and simulator were found to fit.
        on_episode: Called after each episode, from this thread, with it and the summary so far.
        clock: Seconds.
        log: Takes the episodes whose videos are recorded, as these are: once more step by step.

    Raises:
        RobowireError: Before the first episode, with nothing written: there are results already, or such of
            another fingerprint, a server does not answer, policy and simulator do not fit (``SpecMismatch``
            names the fields).
        EvaluationStopped: A server is gone and no further episode can run.
        ResultsNotWritten: The disk is full or failed.
        KeyboardInterrupt: Ctrl-C.
    """
    if ffmpeg is None and options.record_video != "off":
        raise ConfigurationError(
            "no ffmpeg was found to record videos with: pip install imageio-ffmpeg, or use --record_video off"
        )
    if policy_wait_s < 0:
        raise ConfigurationError(f"policy_wait_s is {policy_wait_s:g}, expected 0 or more seconds")
    folder = ResultFolder(options.output_dir, overwrite=options.overwrite, resume=options.resume)
    context = RunnerContext(
        options, folder, open_policy, open_simulator, open_async_policy, policy_wait_s, ffmpeg, clock, log
    )
    threads = _EpisodeThreads(context)
    first = EpisodeRunner(context)
    try:
        first.begin()
        report = EvaluationReport(options, folder, first, command_line, clock)
        on_start(report.summary)
    except BaseException:
        first.close()
        folder.close()
        raise
    status = "stopped"
    try:
        with threads.ctrl_c_between_episodes():
            for episode in threads.run(first, [] if report.decision else report.missing):
                report.add(episode)
                on_episode(episode, report.summary)
                if report.decision is not None:
                    break
        status = "complete" if report.decision is None else "decided"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except (EvaluationStopped, ResultsNotWritten) as exc:
        status = f"stopped: {exc}"
        raise
    finally:
        try:
            for episode in threads.stop():
                report.add(episode)
        except ResultsNotWritten as exc:
            status = f"stopped: {exc}"
            raise
        finally:
            report.finish(status)
            folder.close()
    return report.summary


class _EpisodeThreads:
    """The threads of one evaluation, and what they share."""

    def __init__(self, context: RunnerContext) -> None:
        self.context = context
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        # From the environments: an episode, what ended an environment, or None where no episode was left.
        self._reports: queue.SimpleQueue[EpisodeResult | BaseException | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._interrupted = False

    def run(self, first: EpisodeRunner, numbers: Sequence[int]) -> Iterator[EpisodeResult]:
        """Yield each episode of these numbers as it ends; the first environment is loaded already."""
        if not numbers:
            first.close()
        for number in numbers:
            self._todo.put(number)
        for index in range(min(self.context.options.num_envs, len(numbers))):
            environment = first if index == 0 else EpisodeRunner(self.context)
            # A daemon: after a second Ctrl-C nothing waits for a simulator that hangs.
            thread = threading.Thread(
                target=self._work, args=(environment,), name=f"environment-{index}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        working = len(self._threads)
        while working:
            report = self._reports.get()
            if isinstance(report, EpisodeResult):
                yield report
            elif report is None:
                working -= 1
            else:
                raise report
            if self._interrupted:
                raise KeyboardInterrupt

    @contextmanager
    def ctrl_c_between_episodes(self) -> Iterator[None]:
        """Let :meth:`run` raise ``KeyboardInterrupt`` in place of a further episode, and nothing else.

        Raised anywhere, it could fall between the row of an episode and the count of it. A second Ctrl-C is
        raised where the program is.
        """
        handler = signal.getsignal(signal.SIGINT)
        if handler is not signal.default_int_handler or not _in_main_thread():
            yield
            return

        def interrupt(signum: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, handler)
            self._interrupted = True
            self._reports.put(KeyboardInterrupt())  # wakes run() where it waits

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)

    def stop(self) -> list[EpisodeResult]:
        """End the threads and return the episodes that :meth:`run` did not yield."""
        self.context.stopping.set()
        deadline = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                _log.warning("%s did not end in %g s: its simulator does not answer", thread.name, _STOP_S)
        left = []
        while not self._reports.empty():
            report = self._reports.get()
            if isinstance(report, EpisodeResult):
                left.append(report)
        return left

    def _work(self, environment: EpisodeRunner) -> None:
        try:
            while not self.context.stopping.is_set():
                episode = environment.run(self._todo.get_nowait())
                if episode is not None:
                    self._reports.put(episode)
        except queue.Empty:
            self._reports.put(None)
        except BaseException as exc:  # the top of the thread: the caller's thread raises it
            self._reports.put(exc)
        finally:
            environment.close()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
