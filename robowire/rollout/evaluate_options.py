"""Options of an evaluation, and the checks that need no server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from robowire.contract import check_adapters
from robowire.errors import ConfigurationError
from robowire.rollout.seeds import EPISODES_PER_SEED, episode_seed
from robowire.rollout.sequential import Claim
from robowire.rollout.virtual_clock import AsyncClock

__all__ = ["EvaluateOptions"]


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation.

    Attributes:
        output_dir: Folder for the results.
        simulator: Name in the simulator server's table.
        task: Task of the simulator.
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
        image_size: Height and width in pixels that the simulator renders; ``None`` means the policy's. Others
            are for a policy client that resizes.
        overwrite: Whether results that ``output_dir`` holds may be replaced.
        resume: Whether to add to results that ``output_dir`` holds: an episode is run where it is missing, or
            ended with an error. They must be of the same fingerprint, which ``summary.json`` has: policy,
            simulator, versions, and all options but those that change no episode.
        asynchronous: Act while the policy is at work, on a virtual clock or in real time; ``None`` means that
            the simulator waits for each chunk.
        stop_when: Claim, such as ``"rate > 0.8"``; the evaluation ends when it is decided, true or not.
        shard: Part of the episodes to run, such as ``"1/4"``: every fourth, from the first on.
        adapters: Names of :data:`robowire.contract.ADAPTERS`: which mismatches of policy and task are
            bridged; all others are refused.
        images: How images reach the policy server, such as ``"jpeg 90, resized"``: part of the fingerprint.
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
    image_size: tuple[int, int] | None = None
    overwrite: bool = False
    resume: bool = False
    asynchronous: AsyncClock | None = None
    stop_when: str | None = None
    shard: str | None = None
    images: str = "raw"
    adapters: tuple[str, ...] = ()

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
        check_adapters(self.adapters)
        episode_seed(self.seed, 0)
        self.claim()
        self.numbers()

    def claim(self) -> Claim | None:
        """Return the claim of ``stop_when``."""
        return None if self.stop_when is None else Claim.parse(self.stop_when)

    def numbers(self) -> range:
        """Return the numbers of the episodes to run: all, or those of the shard."""
        if self.shard is None:
            return range(self.num_episodes)
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.shard)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigurationError(f"shard is {self.shard!r}, expected 1/4, the first of four parts")
        return range(int(match[1]) - 1, self.num_episodes, int(match[2]))

    def wants_video(self, episode: int, *, success: bool) -> bool:
        """Return whether a video of this episode is recorded."""
        if self.record_video == "failures":
            return not success
        if self.record_video in ("off", "all"):
            return self.record_video == "all"
        return episode < int(self.record_video)
