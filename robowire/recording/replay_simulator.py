"""A simulator that answers from recordings: a simulator server for tests, without MuJoCo or rendering.

Which recordings, and how far numbers may differ, is in the environment, ``ROBOWIRE_REPLAY`` and
``ROBOWIRE_REPLAY_TOLERANCE``: a simulator's process inherits it. Runs on Python 3.8, as every simulator.
"""

from __future__ import annotations

import os
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from robowire.errors import (
    BackendError,
    ConfigurationError,
    InvalidParams,
    SnapshotMismatch,
    SpecMismatch,
    TaskNotFound,
    request_error,
)
from robowire.images import decode_images
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.recording.difference import first_difference
from robowire.recording.format import CALL, LOAD, RESET, STEP, Recording, open_recordings
from robowire.specs import SimulatorSpec, ctrl_type_name

__all__ = ["ENVIRONMENT", "TOLERANCE", "ReplaySimulator", "make_simulator", "recorded_simulators"]

ENVIRONMENT = "ROBOWIRE_REPLAY"
TOLERANCE = "ROBOWIRE_REPLAY_TOLERANCE"


class _Load:
    """One loading of a task, and the episodes that followed."""

    def __init__(self, recording: Recording, record: Mapping[str, Any]) -> None:
        self.recording = recording
        request, reply = record.get("request"), record.get("reply")
        self.params: Mapping[str, Any] = request if isinstance(request, dict) else {}
        if not isinstance(reply, dict):
            raise ConfigurationError(f"{recording.path}: a load_task without its reply")
        try:
            self.spec = SimulatorSpec.from_wire(reply)
        except InvalidParams as exc:
            raise ConfigurationError(f"{recording.path}: {exc}") from exc
        self.episodes: list[_Episode] = []


class _Episode:
    """One recorded episode: its reset, or the restore that began it, and the records after it."""

    def __init__(self, load: _Load, index: int, record: Mapping[str, Any]) -> None:
        self.load = load
        self.index = index  # of the record that began it
        self.end = index + 1
        request = _request(record)
        self.reset = record.get("method") == "reset"
        self.begin = (request.get("seed"), request.get("init_state"))
        self.used = False


class _Observation(dict):  # type: ignore[type-arg]  # Python 3.8
    """A recorded observation: named arrays, or a MetaObs, which can't be told apart into its sources."""

    def __init__(self, recorded: Any, where: str) -> None:
        super().__init__(decode_images(recorded) if isinstance(recorded, dict) else {})
        self.meta = recorded if isinstance(recorded, MetaObs) else None
        self._where = where

    def __iter__(self) -> Iterator[str]:
        if self.meta is not None:
            raise InvalidParams(
                f"the observations of {self._where} were recorded as MetaObs: load the task with "
                "observation_format 'meta'"
            )
        return super().__iter__()


class ReplaySimulator:
    """Answers ``reset`` and ``step`` from the recorded episode of the same task, options, seed and state.

    An action that is not the recorded one is an error that names the request and both values. Nothing is
    simulated: an episode can only be played as it was. A snapshot is a place in a recording: the next
    recorded restore of it is answered as it was, and any other restore goes on after the place.

    Args:
        recordings: Of simulator sessions.
        tolerance: Largest absolute difference of two numbers of an action that are equal.
    """

    def __init__(self, recordings: Sequence[Recording], *, tolerance: float = 0.0) -> None:
        self._loads = [load for recording in recordings for load in _loads(recording)]
        if not self._loads:
            raise ConfigurationError(f"{recordings[0].path} has no task that was loaded")
        self._matching: list[_Load] = []
        self._episode: _Episode | None = None
        self._next = 0  # record that the next request must be
        self._instant = 0  # record that gave the last observation
        self._tolerance = tolerance

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the recorded tasks; suites are not recorded."""
        return sorted({load.spec.task for load in self._loads})

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Return the recorded spec of the task.

        Raises:
            TaskNotFound: It was not recorded.
            InvalidParams: It was recorded with other options; names the first.
        """
        named = [load for load in self._loads if task_name in (load.params.get("task_name"), load.spec.task)]
        if not named:
            known = ", ".join(self.list_tasks())
            raise TaskNotFound(f"no recording has the task {task_name!r}. Recorded: {known}")
        wanted = {name: _plain(value) for name, value in vars(options).items()}
        differences = []
        matching = []
        for load in named:
            recorded = {name: _plain(load.params.get(name)) for name in wanted}
            difference = first_difference(recorded, wanted)
            if difference is None:
                matching.append(load)
            else:
                differences.append((load, difference))
        if not matching:
            load, difference = differences[0]
            raise InvalidParams(f"{load.recording.path.name} has the task {task_name!r} with {difference}")
        self._matching, self._episode = matching, None
        return matching[0].spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> Any:
        """Return the first observation of the recorded episode with this seed and initial state.

        Raises:
            InvalidParams: There is none.
        """
        episodes = [episode for load in self._matching for episode in load.episodes if episode.reset]
        found = [episode for episode in episodes if episode.begin == (seed, init_state)]
        if not found:
            if seed is None and episodes:  # a process that is kept warm
                self._episode = None
                return self._observed(episodes[0], episodes[0].index)
            known = ", ".join(dict.fromkeys(str(episode.begin[0]) for episode in episodes)) or "none"
            state = "" if init_state is None else f" and the initial state {init_state}"
            raise InvalidParams(
                f"no recorded episode of {self._matching[0].spec.task!r} has the seed {seed}{state}; "
                f"recorded seeds: {known}"[:500]
            )
        episode = next((one for one in found if not one.used), found[0])
        episode.used = True
        return self._go_to(episode, episode.index)

    def step(self, action: np.ndarray) -> StepResult:
        """Return the recorded result of the next action.

        Raises:
            InvalidParams: It is not the recorded action, or the recording ends here.
        """
        rewards, result = self.step_chunk([action])
        return StepResult(result.observation, rewards[-1], result.terminated, result.truncated, result.info)

    def step_chunk(self, actions: Sequence[np.ndarray]) -> tuple[list[float], StepResult]:
        """Return the recorded rewards and the last result of the next actions, however they were sent."""
        rewards: list[float] = []
        left = [np.asarray(action) for action in actions]
        while True:
            record = self._record()
            recorded = _actions(record)
            number = record.get("number")
            if len(recorded) > len(left):
                raise InvalidParams(
                    f"request {number} of the recording is a chunk of {len(recorded)} actions, found "
                    f"{len(left)}"
                )
            for index, action in enumerate(recorded):
                difference = first_difference(
                    action, left[index], f"action[{len(rewards) + index}]", tolerance=self._tolerance
                )
                if difference is not None:
                    assert self._episode is not None
                    name = self._episode.load.recording.path.name
                    raise InvalidParams(f"this is not the recorded request {number} of {name}: {difference}")
            error = record.get("error")
            if isinstance(error, dict):
                raise request_error(str(error.get("error_type")), str(error.get("message")))
            reply = record.get("reply")
            if not isinstance(reply, dict) or "observation" not in reply:
                raise BackendError(f"request {number} of the recording has no reply")
            assert self._episode is not None
            observation = self._go_to(self._episode, self._next)
            rewards += [float(reward) for reward in reply.get("rewards", [reply.get("reward", 0.0)])]
            left = left[len(recorded) :]
            over = bool(reply.get("terminated")) or bool(reply.get("truncated"))
            if over or not left:
                info = reply.get("info")
                return rewards, StepResult(
                    observation,
                    rewards[-1],
                    bool(reply.get("terminated")),
                    bool(reply.get("truncated")),
                    info if isinstance(info, dict) else {},
                )

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return the image that was rendered at this instant when it was recorded.

        Raises:
            BackendError: None was.
        """
        if self._episode is not None:
            recording, index = self._episode.load.recording, self._next
            # Before the next step, or the last one that came before it.
            places = [*range(index, self._episode.end), *range(index - 1, self._episode.index, -1)]
            for place in places:
                if recording.kinds()[place] != CALL:
                    if place >= index:
                        continue
                    break
                record = recording[place]
                reply = record.get("reply")
                if record.get("method") == "render" and isinstance(reply, dict):
                    image = reply.get("image")
                    if isinstance(image, np.ndarray):
                        return image
        raise BackendError("the recording has no rendered image of this instant")

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return the recorded MetaObs.

        Raises:
            InvalidParams: The observation was recorded as named arrays.
        """
        if not isinstance(observation, _Observation) or observation.meta is None:
            raise InvalidParams(
                "the observations were recorded as named arrays: load the task with observation_format 'raw'"
            )
        return observation.meta

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the action's numbers.

        Raises:
            SpecMismatch: ``ctrl_space`` or ``ctrl_type`` is not the recorded task's.
        """
        spec = self._matching[0].spec
        for name in ("ctrl_space", "ctrl_type"):
            found, expected = ctrl_type_name(action[name]), getattr(spec, name)
            if expected is not None and found != expected:
                raise SpecMismatch(f"{name} of the action is {found!r}, expected {expected!r}")
        if action.action is None:
            raise SpecMismatch("the action is empty")
        return np.asarray(action.action)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def save_state(self) -> dict[str, Any]:
        """Return the place in the recording."""
        if self._episode is None:
            raise InvalidParams("no recorded episode has begun: reset with a recorded seed")
        return {"recording": self._episode.load.recording.path.name, "record": self._instant}

    def restore_state(self, state: Mapping[str, Any]) -> Any:
        """Return the observation that the recording has after this restore, or else of the place itself.

        Raises:
            SnapshotMismatch: The place is in no recording of the loaded task.
        """
        place = self._place_of(state)
        if place is None:
            raise SnapshotMismatch("the snapshot is of no recording of this task")
        ids = self._snapshots_at(*place)
        if self._episode is None:
            episodes = [episode for load in self._matching for episode in load.episodes if not episode.used]
            for episode in episodes:
                if not episode.reset and self._restores(episode, episode.index, ids):
                    episode.used = True
                    return self._go_to(episode, episode.index)
        else:
            for index in range(self._next, self._episode.end):
                if self._restores(self._episode, index, ids):
                    return self._go_to(self._episode, index)
                if self._moves(self._episode, index):
                    break
        return self._go_to(*place)

    def fingerprint(self) -> dict[str, str]:
        """Return nothing that a recording depends on: a place is looked up by the name of its file."""
        return {}

    def _place_of(self, state: Mapping[str, Any]) -> tuple[_Episode, int] | None:
        name, index = state.get("recording"), state.get("record")
        for load in self._matching:
            if load.recording.path.name != name or not isinstance(index, int):
                continue
            for episode in load.episodes:
                if episode.index <= index < episode.end:
                    return episode, index
        return None

    def _snapshots_at(self, episode: _Episode, index: int) -> set[str]:
        """Return the recorded ids of the snapshots that were made after one record and before a step."""
        ids = set()
        for place in range(index + 1, episode.end):
            if self._moves(episode, place):
                break
            record = episode.load.recording[place]
            reply = record.get("reply")
            if record.get("method") == "snapshot" and isinstance(reply, dict):
                ids.add(str(reply.get("snapshot_id")))
        return ids

    @staticmethod
    def _restores(episode: _Episode, index: int, ids: set[str]) -> bool:
        """Return whether a record is a restore of one of these snapshots."""
        if episode.load.recording.kinds()[index] != CALL:
            return False
        record = episode.load.recording[index]
        return _is_restore(record) and str(_request(record).get("snapshot_id")) in ids

    @staticmethod
    def _moves(episode: _Episode, index: int) -> bool:
        """Return whether a record changed the state of the simulator."""
        recording = episode.load.recording
        return recording.kinds()[index] != CALL or _is_restore(recording[index])

    def _go_to(self, episode: _Episode, index: int) -> _Observation:
        """Go on after a record, and return its observation."""
        observation = self._observed(episode, index)
        self._episode, self._next, self._instant = episode, index + 1, index
        return observation

    def _observed(self, episode: _Episode, index: int) -> _Observation:
        recording = episode.load.recording
        record = recording[index]
        error, reply = record.get("error"), record.get("reply")
        if isinstance(error, dict):
            raise request_error(str(error.get("error_type")), str(error.get("message")))
        if not isinstance(reply, dict) or "observation" not in reply:
            raise BackendError(f"request {record.get('number')} of the recording has no observation")
        return _Observation(reply["observation"], recording.path.name)

    def _record(self) -> Mapping[str, Any]:
        """Return the record of the next step, which may come after others, such as rendered images."""
        if self._episode is None:
            raise InvalidParams("no recorded episode has begun: reset with a recorded seed")
        recording = self._episode.load.recording
        kinds = recording.kinds()
        while self._next < self._episode.end and not self._moves(self._episode, self._next):
            self._next += 1
        if self._next >= self._episode.end:
            raise InvalidParams(f"the episode ends here in {recording.path.name}: it has no further step")
        if kinds[self._next] == CALL:
            number = recording[self._next].get("number")
            raise InvalidParams(
                f"a step is not the recorded request {number} of {recording.path.name}, which restores a "
                "snapshot"
            )
        if kinds[self._next] != STEP:
            raise InvalidParams(f"requests after record {self._next} of {recording.path.name} were dropped")
        return recording[self._next]


def make_simulator() -> ReplaySimulator:
    """Return the simulator of the recordings in ``ROBOWIRE_REPLAY``.

    Raises:
        ConfigurationError: There are none, or one cannot be read.
    """
    path = os.environ.get(ENVIRONMENT)
    if not path:
        raise ConfigurationError(
            "simulator 'replay' needs a recording: server.py simulator --replay FILE, from --record"
        )
    text = os.environ.get(TOLERANCE) or "0"
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not tolerance >= 0:
        raise ConfigurationError(f"{TOLERANCE} is {text!r}, expected a number, 0 or more")
    return ReplaySimulator(open_recordings(path, "simulator"), tolerance=tolerance)


def recorded_simulators(path: str) -> list[str]:
    """Return the names of the simulators in the recordings of a file or folder.

    Raises:
        ConfigurationError: There are none, or one cannot be read.
    """
    names = set()
    for recording in open_recordings(path, "simulator"):
        for index, kind in enumerate(recording.kinds()):
            if kind not in (CALL, LOAD):
                break
            record = recording[index]
            request = record.get("request")
            if record.get("method") == "select_simulator" and isinstance(request, dict):
                names.add(str(request.get("simulator")).partition(":")[0])
    return sorted(names)


def _loads(recording: Recording) -> list[_Load]:
    found: list[_Load] = []
    for index, kind in enumerate(recording.kinds()):
        if kind == LOAD:
            record = recording[index]
            if "error" not in record:
                found.append(_Load(recording, record))
        elif kind == RESET and found:
            record = recording[index]
            if "error" not in record:
                found[-1].episodes.append(_Episode(found[-1], index, record))
        elif found and found[-1].episodes:
            found[-1].episodes[-1].end = index + 1
        elif found and kind == CALL and _is_restore(recording[index]):  # the task was never reset
            found[-1].episodes.append(_Episode(found[-1], index, recording[index]))
    return found


def _is_restore(record: Mapping[str, Any]) -> bool:
    return record.get("method") == "restore" and "error" not in record


def _request(record: Mapping[str, Any]) -> Mapping[str, Any]:
    request = record.get("request")
    return request if isinstance(request, dict) else {}


def _actions(record: Mapping[str, Any]) -> list[Any]:
    """Return the recorded action or actions, as arrays."""
    request = _request(record)
    actions = request["actions"] if "actions" in request else [request.get("action")]
    return [np.asarray(one.action if isinstance(one, MetaAction) else one) for one in actions]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
