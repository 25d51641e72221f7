"""LeRobot's client for an evaluation in a simulator.

For scripts written against LeRobot's ``async_inference``: the import changes, the rest stays. ::

    config = SimClientConfig(
        env=LiberoEnv(task="libero_10"), policy_type="act", pretrained_name_or_path="lerobot/act_libero_10",
        actions_per_chunk=50, server_address="localhost:5000", n_episodes=10,
    )
    client = SimClient(config)
    if client.start():
        threading.Thread(target=client.receive_actions, daemon=True).start()
        client.control_loop(task="")
        client.stop()

The loop is :func:`robowire.rollout.evaluation.evaluate`, so results, errors and seeds are the same as there.
``docs/lerobot.md`` has the table of names, and what has no effect here. Needs Python 3.10 and numpy.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from robowire.address import split_address
from robowire.client.async_controller import AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import ChunkResult, SimulatorClient
from robowire.errors import (
    ConfigurationError,
    EvaluationStopped,
    InvalidParams,
    LocalProtocolError,
    TaskNotFound,
    TransportError,
)
from robowire.integrations.lerobot_config import Env, EnvConfig, LiberoEnv, RobosuiteEnv, SimClientConfig
from robowire.integrations.lerobot_observations import from_lerobot, to_lerobot
from robowire.interfaces import StepResult
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.evaluation import evaluate

if TYPE_CHECKING:
    import ssl

__all__ = [
    "Env",
    "EnvConfig",
    "LiberoEnv",
    "RobosuiteEnv",
    "SimClient",
    "SimClientConfig",
    "from_lerobot",
    "to_lerobot",
]

_log = logging.getLogger(__name__)


class SimClient:
    """Evaluates a policy that a robowire policy server holds, in simulators of a robowire simulator server.

    Args:
        config: Configuration of the evaluation.
        ffmpeg: Path of the program that makes videos; by default the one on ``PATH``.
        command_line: Command line written into the summaries.
        on_episode: Called after each episode, from the thread of :meth:`control_loop`, with its task, itself,
            and that task's summary so far.

    Attributes:
        tasks: Names of the tasks, known after :meth:`start`.
        results: Summaries of the tasks that were run, by task.
    """

    def __init__(
        self,
        config: SimClientConfig,
        *,
        ffmpeg: str | None = None,
        command_line: tuple[str, ...] = (),
        on_episode: Callable[[str, EpisodeResult, dict[str, Any]], None] = lambda task, episode, summary: (
            None
        ),
    ) -> None:
        self.config = config
        self.tasks: list[str] = []
        self.results: dict[str, dict[str, Any]] = {}
        self._ffmpeg = ffmpeg
        self._command_line = command_line
        self._on_episode = on_episode
        self._stopped = threading.Event()
        self._stopped.set()

    def start(self) -> bool:
        """Query both servers and find the tasks; return whether both answer, the log says which does not.

        Raises:
            ConfigurationError: The policy server holds another policy.
            RequestError: A server refuses: there is no such simulator, task or suite, or no capacity left.
        """
        try:
            self._check_policy()
            self.tasks = self._find_tasks()
        except TransportError as exc:
            _log.error("cannot start: %s", exc)
            return False
        self.results = {}
        self._stopped.clear()
        return True

    def receive_actions(self, verbose: bool = False) -> None:
        """Return when the client is stopped. Actions are received by a thread that each episode has."""
        self._stopped.wait()

    def control_loop(self, task: str = "", verbose: bool = False) -> dict[str, dict[str, Any]]:
        """Run every episode of every task, and return the summaries by task.

        Args:
            task: Instruction for the policy; empty means the configuration's, or else each task's own.
            verbose: Without effect; the logging level says how much is logged.

        Raises:
            LocalProtocolError: :meth:`start` was not called, or returned ``False``.
            EvaluationStopped: A server is gone and no further episode can run.
            SpecMismatch: The policy does not fit a task.
        """
        if self._stopped.is_set():
            raise LocalProtocolError("this SimClient does not run: call start first, and look at its result")
        for number, name in enumerate(self.tasks):
            folder = "" if len(self.tasks) == 1 else f"{number:03d}-{name.replace('/', '-')}"
            try:
                self._evaluate(name, folder, task or self.config.task)
            except _StopRequested:
                break
        return self.results

    def stop(self) -> None:
        """End the loop after the episode that runs. May be called twice, and from any thread."""
        self._stopped.set()

    def _evaluate(self, name: str, folder: str, instruction: str) -> None:
        config = self.config
        host, port = split_address(config.server_address)
        simulator = split_address(config.simulator_address)
        policy_tls, simulator_tls = config.policy_context(), config.simulator_context()

        def on_episode(episode: EpisodeResult, summary: dict[str, Any]) -> None:
            self.results[name] = summary
            self._on_episode(name, episode, summary)
            if self._stopped.is_set():
                raise _StopRequested("stop was called")

        def open_async(rules: AsyncOptions, added_s: Callable[[int], float]) -> AsyncPolicyClient:
            return AsyncPolicyClient(
                host,
                port,
                rules,
                patience_s=max(config.policy_wait_s, 1e-3),
                token=config.token,
                tls=policy_tls or False,
                added_latency_s=added_s,
            )

        summary = evaluate(
            config.options(name, folder),
            open_policy=lambda: PolicyClient(
                host, port, retries=0, token=config.token, tls=policy_tls or False
            ),
            open_simulator=lambda: _Instructed(
                *simulator, instruction, token=config.simulator_token, tls=simulator_tls
            ),
            open_async_policy=open_async,
            policy_wait_s=config.policy_wait_s,
            ffmpeg=self._ffmpeg or shutil.which("ffmpeg"),
            command_line=self._command_line,
            on_episode=on_episode,
        )
        self.results[name] = summary
        _log.info("%s: %d of %d succeeded", name, summary["successes"], summary["episodes"])

    def _check_policy(self) -> None:
        """Compare the policy that was asked for with the one that the server holds."""
        config = self.config
        host, port = split_address(config.server_address)
        tls = config.policy_context() or False
        with PolicyClient(host, port, retries=0, token=config.token, tls=tls, wait_s=config.wait_s) as client:
            info = client.get_info()
        if info["policy"] != config.policy_type:
            raise ConfigurationError(
                f"policy_type is {config.policy_type!r}, but the server at {config.server_address} holds "
                f"{info['policy']!r}: the policy is set when that server is started"
            )
        wanted, held = Path(config.pretrained_name_or_path).name, info.get("model_name")
        if held is None:
            _log.warning(
                "the server at %s does not name its checkpoint, so whether it is %s is not checked",
                config.server_address,
                config.pretrained_name_or_path,
            )
        elif wanted != held:
            raise ConfigurationError(
                f"pretrained_name_or_path is {config.pretrained_name_or_path!r}, but the server at "
                f"{config.server_address} holds {held!r}: the checkpoint is set when that server is started"
            )
        asked, chunk_size = config.actions_per_chunk, info["chunk_size"]
        if asked is not None and asked > chunk_size:
            _log.warning("actions_per_chunk is %d, but this policy's chunks have %d", asked, chunk_size)

    def _find_tasks(self) -> list[str]:
        env = self.config.env
        host, port = split_address(self.config.simulator_address)
        # Its session ends with it: the evaluation opens its own, and there may be no capacity for one more.
        with SimulatorClient(
            host,
            port,
            token=self.config.simulator_token,
            reconnect_s=0,
            tls=self.config.simulator_context() or False,
            wait_s=self.config.wait_s,
        ) as client:
            client.select_simulator(env.type)
            found: list[str] = []
            for name in str(env.task).split(","):
                found += self._tasks_of(client, name.strip())
        return found

    def _tasks_of(self, client: SimulatorClient, name: str) -> list[str]:
        """Return the task of this name, or those of the suite of this name."""
        try:
            tasks = client.list_tasks(name)
        except InvalidParams:  # no suite of this name, or no suites at all
            return [name]
        if self.config.env.type == "libero":
            # In the order of publications, which its numbers have and its names do not.
            tasks = [f"{name}/{number}" for number in range(len(tasks))]
        ids: tuple[int, ...] | None = getattr(self.config.env, "task_ids", None)
        if ids is None:
            return tasks
        for number in ids:
            if not 0 <= number < len(tasks):
                raise TaskNotFound(f"{name} has no task {number}, expected 0 to {len(tasks) - 1}")
        return [tasks[number] for number in ids]


class _StopRequested(EvaluationStopped):
    """The user called stop."""


class _Instructed(SimulatorClient):
    """A session whose observations have the user's instruction, where there is one."""

    def __init__(
        self, host: str, port: int, instruction: str, *, token: str | None, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, port, token=token, tls=tls or False)
        self._instruction = instruction

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode."""
        return self._instructed(super().reset(seed, init_state))

    def step(self, action: Any) -> StepResult:
        """Execute one action."""
        result = super().step(action)
        self._instructed(result.observation)
        return result

    def step_chunk(self, actions: Any) -> ChunkResult:
        """Execute actions up to the episode's end."""
        result = super().step_chunk(actions)
        self._instructed(result.observation)
        return result

    def _instructed(self, observation: Any) -> Any:
        if self._instruction:
            observation.raw_lang = self._instruction
        return observation
