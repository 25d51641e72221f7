"""Report of an evaluation: the figures of ``summary.json``, and the fingerprint of its episodes."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, fields
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from robowire.errors import ConfigurationError
from robowire.rollout.episode_runner import POLICY_FIELDS, EpisodeRunner, plain, select
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.results import ResultFolder, episode_of_row
from robowire.rollout.seeds import episode_seed
from robowire.rollout.sequential import Decision
from robowire.rollout.statistics import summarise
from robowire.specs import SimulatorSpec
from robowire.version import __version__

__all__ = ["EvaluationReport"]


class EvaluationReport:
    """The summary, up to date on disk at all times: whatever ends this process, it holds every episode.

    Attributes:
        summary: As it is on disk.
        decision: Decision of ``stop_when``, once there is one.
        missing: The numbers of the episodes to run: all, or those that a resumed folder does not have.
    """

    def __init__(
        self,
        options: EvaluateOptions,
        folder: ResultFolder,
        runner: EpisodeRunner,
        command_line: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._clock = clock
        policy, simulator = runner.policy_info, runner.simulator_info
        client = {
            "robowire": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
        }
        shown = _shown(options, runner)
        fingerprint = _fingerprint(shown, client, runner)
        rows, earlier_s = folder.create(fingerprint)
        self._begun = clock() - earlier_s
        self._episodes = {row["episode"]: episode_of_row(row) for row in rows}
        beyond = max(self._episodes, default=-1) + 1
        if beyond > options.num_episodes:
            raise ConfigurationError(
                f"num_episodes is {options.num_episodes}, but {folder.path} holds episode {beyond - 1}: "
                f"resume with at least {beyond}"
            )
        self.missing = [n for n in options.numbers() if n not in self._episodes]
        self._info = {
            "options": plain(shown),
            "fingerprint": fingerprint,
            "seeds": [episode_seed(options.seed, episode) for episode in range(options.num_episodes)],
            # What the servers say holds their versions. Published scores moved with a simulator's version.
            "client": client,
            "policy": plain(policy),
            "simulator": plain(simulator),
            "command_line": list(command_line),
        }
        self.summary: dict[str, Any] = {}
        self._claim = options.claim()
        self._numbers = options.numbers()
        self.decision = self._decide()
        self.write("running")

    def add(self, episode: EpisodeResult) -> None:
        """Write the row of an episode, and the summary with it."""
        self._folder.append(episode)
        self._episodes[episode.episode] = episode
        self.decision = self.decision or self._decide()
        self.write("running")

    def write(self, status: str) -> None:
        """Replace the summary on disk.

        Raises:
            ResultsNotWritten: The disk is full or failed.
        """
        self._folder.write_summary(self._summarise(status))

    def finish(self, status: str) -> None:
        """Write the last status, on a full disk too.

        Raises:
            ResultsNotWritten: Nothing can be written.
        """
        self._folder.write_last_summary(self._summarise(status))

    def _decide(self) -> Decision | None:
        """Decide the claim from the episodes up to the first that is missing, in the order of their numbers.

        Those beyond may be there because they were short, which successes are.
        """
        if self._claim is None:
            return None
        outcomes = []
        for number in self._numbers:
            episode = self._episodes.get(number)
            if episode is None:
                break
            if episode.error is None:
                outcomes.append(bool(episode.success))
        return self._claim.decide(outcomes)

    def _summarise(self, status: str) -> dict[str, Any]:
        wall_s = round(self._clock() - self._begun, 3)
        # In the order of their numbers: sums round alike, whichever ended first.
        episodes = [self._episodes[number] for number in sorted(self._episodes)]
        self.summary = {"status": status, **summarise(episodes), "wall_s": wall_s, **self._info}
        if self._claim is not None:
            self.summary["decision"] = None if self.decision is None else asdict(self.decision)
        return self.summary


def _shown(options: EvaluateOptions, runner: EpisodeRunner) -> dict[str, Any]:
    """Return the options as the summary has them: the flags' names, with what was found out for defaults."""
    shown = asdict(options)
    del shown["asynchronous"]
    asynchronous = runner.asynchronous
    if asynchronous is None:
        return {**shown, "n_action_steps": runner.n_action_steps}
    left_out = {"action_hold", "rtc_max_delay_steps"}  # the specs have them
    if asynchronous.rules.rtc == "none":  # as results from before there was real-time chunking
        left_out |= {"rtc", "rtc_delay_error"}
    if asynchronous.rules.max_action_age_s is None:  # as earlier results, which do not have these
        left_out |= {"max_action_age_s", "on_stale_action"}
    return {
        **shown,
        "mode": "async",
        "clock": asynchronous.name,
        "latency_ms": asynchronous.latency.text,
        # Results keep the older name, so that they can be compared with and added to earlier ones.
        **{
            "when_dry" if name == "on_empty_queue" else name: value
            for name, value in asdict(asynchronous.rules).items()
            if name not in left_out
        },
    }


_SIMULATOR_FIELDS = {field.name for field in fields(SimulatorSpec)}

# These options say where, how many and how fast, and not what an episode is.
_NO_EPISODE = {
    "output_dir",
    "num_episodes",
    "num_envs",
    "record_video",
    "overwrite",
    "resume",
    "stop_when",
    "shard",
}


def _fingerprint(shown: dict[str, Any], client: dict[str, str], runner: EpisodeRunner) -> dict[str, Any]:
    """Return all that decides what an episode of a given number is, by name: JSON values in one level."""
    options = {name: value for name, value in shown.items() if name not in _NO_EPISODE}
    if options.get("images") == "raw":  # as in results from before there was another way
        del options["images"]
    if not options.get("adapters"):
        options.pop("adapters", None)
    if options.get("image_size") is None:
        options.pop("image_size", None)
    asynchronous = runner.asynchronous
    if asynchronous is not None and asynchronous.latency.recorded:
        # What was recorded counts, not where the file lies.
        content = np.array(asynchronous.latency.recorded).tobytes()
        options["latency_ms"] = f"recorded, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"
    simulator = runner.simulator_info
    # A fingerprint has the versions too; a server of an older release has those only.
    process = simulator.get("process") or {}
    process = process.get("fingerprint") or process.get("versions") or {}
    info = {
        **options,
        "client": {name: text for name, text in client.items() if name != "platform"},
        "policy": select(POLICY_FIELDS, runner.policy_info),
        "simulator": {**select(_SIMULATOR_FIELDS, simulator), "process": process},
    }
    return dict(_flat(plain(info)))


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
