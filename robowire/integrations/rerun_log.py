"""Episodes as a file that the viewer of rerun.io opens: images, states, actions and chunks on one timeline.

Needs ``rerun-sdk``: the extra ``rerun``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from robowire.errors import ConfigurationError
from robowire.meta import MetaAction, MetaObs

__all__ = ["RerunLog", "StepLog"]

# Rerun's own default for camera images; a 256x256 image takes about 10 KB.
_JPEG_QUALITY = 75


class RerunLog:
    """Write episodes into one file; any thread may call it.

    Args:
        path: File, ``.rrd``; it is replaced.

    Raises:
        ConfigurationError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._recording = rr.RecordingStream("robowire")
        self._lock = threading.Lock()  # guards what follows
        self._tabs: list[Any] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("wb").close()  # rerun's own message does not name the reason
            self._recording.save(path)
        except OSError as exc:
            raise ConfigurationError(
                f"rerun file {str(path)!r} cannot be written: {exc.strerror or exc}"
            ) from exc

    def task(self, task: str) -> TaskLog:
        """Return what takes the episodes of one task."""
        return TaskLog(self, task)

    def begin(self, root: str, title: str, fps: float, cameras: Sequence[str]) -> StepLog:
        """Begin an episode at ``root`` in the tree of entities."""
        with self._lock:
            self._tabs.append(_tab(root, title, cameras))
        return StepLog(self._recording, root, fps, cameras)

    def close(self) -> None:
        """Write the layout of the views, and end the file."""
        with self._lock:
            if self._tabs:
                self._recording.send_blueprint(rrb.Blueprint(rrb.Tabs(*self._tabs), collapse_panels=True))
        self._recording.flush()
        self._recording.disconnect()


class TaskLog:
    """The episodes of one task.

    Args:
        log: The file.
        task: Name of the task.
    """

    def __init__(self, log: RerunLog, task: str) -> None:
        self._log, self._task = log, task

    def begin_episode(
        self,
        episode: int,
        *,
        seed: int,
        success: bool,
        fps: float,
        camera_names: Sequence[str],
        chunks: Sequence[tuple[int, np.ndarray]],
    ) -> StepLog:
        """Begin the log of an episode: see :class:`robowire.rollout.episodes.EpisodeLog`."""
        root = f"{_entity(self._task)}/episode_{episode:04d}"
        title = f"{self._task} {episode}: {'success' if success else 'failure'}"
        steps = self._log.begin(root, title, fps, camera_names)
        steps.describe(
            f"task {self._task}, episode {episode}, seed {seed}: {'success' if success else 'failure'}"
        )
        for step, actions in chunks:
            steps.chunk(step, actions)
        return steps


class StepLog:
    """The steps of one episode.

    Args:
        recording: The file.
        root: Path of the episode in the tree of entities.
        fps: Control steps a second.
        cameras: Names of the images, in their order.
    """

    def __init__(self, recording: rr.RecordingStream, root: str, fps: float, cameras: Sequence[str]) -> None:
        self._recording, self._root, self._fps = recording, root, fps
        self._cameras = cameras

    def describe(self, text: str) -> None:
        """Write what the episode is."""
        self._recording.log(f"{self._root}/episode", rr.TextDocument(text), static=True)

    def chunk(self, step: int, actions: np.ndarray) -> None:
        """Write the actions (n, action_dim) that the policy answered at a step."""
        self._at(step)
        self._recording.log(
            f"{self._root}/chunk",
            rr.Tensor(np.asarray(actions, np.float32), dim_names=("action", "dimension")),
        )

    def __call__(
        self, step: int, observation: MetaObs, action: MetaAction | None, reward: float | None
    ) -> None:
        """Write one step: see :class:`robowire.rollout.episodes.StepSink`."""
        self._at(step)
        log, root = self._recording.log, self._root
        for name, image in zip(_named(self._cameras, observation.image), _images(observation.image)):
            log(f"{root}/camera/{name}", rr.Image(image).compress(jpeg_quality=_JPEG_QUALITY))
        if observation.state is not None:
            log(f"{root}/state", rr.Scalars(np.asarray(observation.state, np.float64).ravel()))
        if action is not None:
            log(f"{root}/action", rr.Scalars(np.asarray(action.action, np.float64).ravel()))
        if reward is not None:
            log(f"{root}/reward", rr.Scalars([reward]))

    def _at(self, step: int) -> None:
        # Both are of this thread only: environments write at the same time.
        self._recording.set_time("step", sequence=step)
        self._recording.set_time("time", duration=step / self._fps)


def _tab(root: str, title: str, cameras: Sequence[str]) -> Any:
    """Return the views of one episode: cameras on the left, numbers on the right."""
    images = [rrb.Spatial2DView(origin=f"{root}/camera/{_entity(name)}", name=name) for name in cameras] or [
        rrb.Spatial2DView(origin=f"{root}/camera", name="cameras")
    ]
    numbers = [
        rrb.TimeSeriesView(origin=f"{root}/{name}", name=name) for name in ("action", "state", "reward")
    ]
    chunk = rrb.TensorView(origin=f"{root}/chunk", name="chunk: action by dimension")
    return rrb.Horizontal(rrb.Vertical(*images), rrb.Vertical(*numbers, chunk), name=title)


def _named(cameras: Sequence[str], image: np.ndarray | None) -> list[str]:
    count = 0 if image is None else len(image)
    return [_entity(cameras[n]) if n < len(cameras) else f"camera_{n}" for n in range(count)]


def _images(image: np.ndarray | None) -> Sequence[np.ndarray]:
    """Return (height, width, 3) images of (cameras, 3, height, width)."""
    return () if image is None else [np.ascontiguousarray(one.transpose(1, 2, 0)) for one in image]


def _entity(name: str) -> str:
    """Return a name as one part of a path of entities: a slash would begin another."""
    return name.replace("/", "_") or "task"
