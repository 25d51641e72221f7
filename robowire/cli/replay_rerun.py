"""Recordings as a file for rerun.io's viewer: images, states, actions and chunks, an episode in a tab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robowire.meta import MetaAction, MetaObs
from robowire.progress import Progress
from robowire.recording.format import GAP, Recording
from robowire.registry import Entry, load

__all__ = ["write_rerun"]

# Recordings of servers that do not report their rate are shown at this one, robosuite's default.
_FPS = 20.0


def write_rerun(recordings: Sequence[Recording], path: Path) -> int:
    """Write the episodes of recordings, and return how many there are.

    Of a policy's session each observation is a step, with the chunk that answered it. Of a simulator's each
    action is one; observations of its own format, which are no ``MetaObs``, are left out.

    Raises:
        ConfigurationError: The file can't be written, or a recording is damaged.
        MissingDependency: rerun-sdk is not installed.
    """
    table = {"rerun": Entry("robowire.integrations.rerun_log:RerunLog", extra="rerun")}
    log = load("log", "rerun", table)(path)
    episodes = 0
    try:
        with Progress("writing for rerun", sum(map(len, recordings)), unit="request") as progress:
            for recording in recordings:
                episode = _Episode(log, recording)
                for record in _records(recording, progress):
                    episode.take(record)
                episode.close()
                episodes += episode.count
    finally:
        log.close()
    return episodes


def _records(recording: Recording, progress: Progress) -> Iterator[Mapping[str, Any]]:
    for index, kind in enumerate(recording.kinds()):
        if kind != GAP:
            yield recording[index]
        progress.update()


class _Episode:
    """Where a session is in its episodes.

    Args:
        log: The file.
        recording: The session.

    Attributes:
        count: Episodes so far.
    """

    def __init__(self, log: Any, recording: Recording) -> None:
        self.count = 0
        self._log, self._name = log, recording.path.stem
        info = recording.header["info"]
        self._cameras: Sequence[str] = info.get("camera_names") or ()
        self._fps = float(info.get("control_hz") or _FPS)
        self._steps: Any = None  # takes the steps of this episode
        self._step = 0
        self._before: MetaObs | None = None  # the simulator's last observation

    def take(self, record: Mapping[str, Any]) -> None:
        """Write one request with its reply; those without an observation are left out."""
        request, reply = record.get("request"), record.get("reply")
        if not isinstance(request, Mapping) or not isinstance(reply, Mapping):
            if record.get("method") == "reset":
                self._end()
            return
        method = record.get("method")
        if method == "load_task":
            self._cameras = reply.get("camera_names") or ()
            self._fps = float(reply.get("control_hz") or _FPS)
        elif method == "infer":
            self._take_inference(request, reply)
        elif method in ("reset", "restore"):
            self._end()
            self._before = _meta(reply.get("observation"))
        elif method in ("step", "step_chunk"):
            self._take_step(request, reply)

    def _end(self) -> None:
        if self._steps is not None and self._before is not None:
            self._steps(self._step, self._before, None, None)
        self._steps, self._before, self._step = None, None, 0

    def _begin(self) -> Any:
        if self._steps is None:
            root = f"{self._name}/episode_{self.count:04d}"
            self._steps = self._log.begin(root, f"{self._name} {self.count}", self._fps, self._cameras)
            self._steps.describe(f"recording {self._name}, episode {self.count}")
            self.count += 1
        return self._steps

    def _take_inference(self, request: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
        rows = request.get("observations")
        actions = reply.get("actions")
        if not isinstance(rows, list) or not rows or not isinstance(rows[0], MetaObs) or actions is None:
            return
        step = max(int(rows[0].timestep), self._step)
        chunk = np.asarray(actions, np.float32)
        chunk = chunk.reshape(-1, *chunk.shape[-2:])[0]  # of the first row
        steps = self._begin()
        steps(step, rows[0], MetaAction("", "", chunk[0]), None)
        steps.chunk(step, chunk)
        self._step = step + 1

    def _take_step(self, request: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
        actions = request["actions"] if "actions" in request else [request.get("action")]
        rewards = reply["rewards"] if "rewards" in reply else [reply.get("reward")]
        if self._before is None:
            return
        steps = self._begin()
        # Between the actions of a chunk the simulator sends no observation: the one before it stands.
        for action, reward in zip(actions, rewards):
            if not isinstance(action, MetaAction):
                action = MetaAction("", "", np.asarray(action, np.float32))
            steps(self._step, self._before, action, None if reward is None else float(reward))
            self._step += 1
        self._before = _meta(reply.get("observation"))

    def close(self) -> None:
        """Write the last observation."""
        self._end()


def _meta(observation: Any) -> MetaObs | None:
    return observation if isinstance(observation, MetaObs) else None
