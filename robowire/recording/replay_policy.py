"""A policy that answers from recordings: a policy server for tests, without a checkpoint or a GPU."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, Mapping, Sequence

import numpy as np

from robowire.errors import ConfigurationError, InvalidParams, request_error
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.recording.difference import Difference, first_difference
from robowire.recording.format import BATCH, INFER, RESET, Recording, open_recordings
from robowire.registry import nearest
from robowire.specs import PolicySpec

__all__ = ["ReplayPolicy", "make_policy"]

# Rows of one recording that are kept decoded: the next, the last and the first.
_KEPT = 4

# Next rows of clients whose episodes began alike; each is looked for in every episode.
_RECENT = 16


class _Track:
    """The observations of one recorded episode in their order, and where a client is in them.

    Args:
        recording: Session of the episode.
        places: Record and row of each observation.
    """

    def __init__(self, recording: Recording, places: Sequence[tuple[int, int]]) -> None:
        self.recording = recording
        self.position = 0
        self._places = places
        self._kept: dict[int, Mapping[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def row(self, position: int) -> tuple[Mapping[str, Any], MetaObs, int]:
        """Return a record, one of its observations, and which row of the batch it is."""
        index, row = self._places[position]
        record = self._kept.get(index)
        if record is None:
            record = self.recording[index]
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[index] = record
        observations = _observations(self.recording, record)
        if row >= len(observations):
            raise ConfigurationError(
                f"{self.recording.path}: request {record.get('number')} has no row {row}"
            )
        return record, observations[row], row


def _tracks(recording: Recording) -> list[_Track]:
    """Return the episodes of a session, which a reset ends."""
    episodes: list[list[tuple[int, int]]] = [[]]
    for index, kind in enumerate(recording.kinds()):
        if kind == RESET:
            episodes.append([])
        elif kind in (INFER, BATCH):  # only a batch is read to know its rows
            rows = 1 if kind == INFER else len(_observations(recording, recording[index]))
            episodes[-1] += [(index, row) for row in range(rows)]
    return [_Track(recording, places) for places in episodes if places]


class ReplayPolicy:
    """Answers observations with the recorded actions, in the recorded order.

    An observation must be the next one of an episode. The last one again is a repeated request, and the
    first one begins the episode again, so that several clients may share the episodes otherwise than they
    did; any other is an error that names the first difference.

    Args:
        recordings: Of policy sessions, of one policy.
        tolerance: Largest difference of two numbers of an observation that are equal.

    Attributes:
        spec: That of the recorded policy.
    """

    def __init__(self, recordings: Sequence[Recording], *, tolerance: float = 0.0) -> None:
        self._tolerance = tolerance
        self._tracks = [track for recording in recordings for track in _tracks(recording)]
        self._in_order = tuple(self._tracks)  # as recorded; the other list has the last used first
        self._recent: deque[int] = deque(maxlen=_RECENT)  # rows that clients may ask for next
        if not self._tracks:
            raise ConfigurationError(f"{recordings[0].path} has no request for actions")
        specs = [_spec(track) for track in self._tracks]
        self.spec = specs[0]
        for track, spec in zip(self._tracks, specs):
            if spec != self.spec:
                raise ConfigurationError(
                    f"{track.recording.path} and {self._tracks[0].recording.path} are of different policies"
                )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim), as recorded.

        Raises:
            InvalidParams: An observation is not the recorded one; names the request, the field and both
                values.
            RequestError: The recorded error, where the request was answered by one.
        """
        return np.stack([self._answer(observation) for observation in observations])

    def _answer(self, observation: MetaObs) -> np.ndarray:
        # The one that answered last comes first: most clients go on with their episode. Then, episodes that
        # begin alike: the client may be in another one than it seemed.
        anywhere = dict.fromkeys(self._recent)
        for positions in (None, anywhere):
            for track in self._tracks:
                here = dict.fromkeys((track.position, track.position - 1, 0))
                for position in here if positions is None else positions:
                    if not 0 <= position < len(track):
                        continue
                    record, expected, row = track.row(position)
                    if self._difference(track, expected, observation) is None:
                        track.position = position + 1
                        self._recent.append(track.position)
                        self._tracks.remove(track)
                        self._tracks.insert(0, track)
                        return _actions(track, record, row)
        raise InvalidParams(self._divergence(observation))

    def _divergence(self, observation: MetaObs) -> str:
        """Return the first difference from what was recorded after the last answer."""
        track = self._tracks[0]
        where = self._in_order.index(track)
        if track.position >= len(track) and where + 1 < len(self._in_order):
            track = self._in_order[where + 1]
        ends = track.position >= len(track)
        record, expected, _ = track.row(len(track) - 1 if ends else track.position)
        which = "the last" if ends else "the"
        return (
            f"this is not {which} recorded request {record.get('number')} of {track.recording.path.name}: "
            f"{self._difference(track, expected, observation)}"
        )

    def _difference(self, track: _Track, expected: MetaObs, found: MetaObs) -> Difference | None:
        one, other = dict(vars(expected)), dict(vars(found))
        if -1 in (_step(expected.timestep), _step(found.timestep)):  # one wire counts steps, another does not
            del one["timestep"], other["timestep"]
        else:
            one["timestep"], other["timestep"] = _step(expected.timestep), _step(found.timestep)
        images = track.recording.header.get("images") != "jpeg"
        return first_difference(one, other, tolerance=self._tolerance, images=images)


def make_policy(options: PolicyOptions) -> ReplayPolicy:
    """Return the policy of ``options.model_name_or_path``, a recording or a folder of them.

    ``options.extra`` may hold ``tolerance``.

    Raises:
        ConfigurationError: There is no recording, or an option is unknown.
    """
    if options.model_name_or_path is None:
        raise ConfigurationError(
            "policy 'replay' needs a recording: --model_name_or_path FILE, from --record"
        )
    for name in options.extra:
        if name != "tolerance":
            raise ConfigurationError(
                f"policy 'replay' has no option {name!r}.{nearest(name, ['tolerance'])} Known: tolerance"
            )
    tolerance = options.extra.get("tolerance", 0.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ConfigurationError(f"tolerance is {tolerance!r}, expected a number of at least 0")
    recordings = open_recordings(options.model_name_or_path, "policy")
    return ReplayPolicy(recordings, tolerance=float(tolerance))


def _step(timestep: Any) -> int:
    return int(np.ravel(timestep)[0]) if isinstance(timestep, (int, np.ndarray, np.integer)) else -1


def _observations(recording: Recording, record: Mapping[str, Any]) -> Sequence[MetaObs]:
    request = record.get("request")
    found = request.get("observations") if isinstance(request, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(one, MetaObs) for one in found):
        raise ConfigurationError(f"{recording.path}: request {record.get('number')} holds no observation")
    return found


def _actions(track: _Track, record: Mapping[str, Any], row: int) -> np.ndarray:
    """Return float32 (chunk_size, action_dim) of one row."""
    error = record.get("error")
    if isinstance(error, dict):
        raise request_error(str(error.get("error_type")), str(error.get("message")))
    reply = record.get("reply")
    actions = reply.get("actions") if isinstance(reply, dict) else None
    if not isinstance(actions, np.ndarray) or actions.ndim not in (2, 3) or actions.dtype.kind != "f":
        raise ConfigurationError(f"{track.recording.path}: request {record.get('number')} has no actions")
    return actions if actions.ndim == 2 else actions[:, row]


def _spec(track: _Track) -> PolicySpec:
    """Return the recorded policy's spec, with the length of the recorded chunks."""
    try:
        spec = PolicySpec.from_wire(track.recording.header["info"])
    except InvalidParams as exc:
        raise ConfigurationError(f"{track.recording.path}: {exc}") from exc
    for position in range(len(track)):
        record, _, row = track.row(position)
        if "error" not in record:
            # Not the spec's: the frontends of some wires ask for one action where others get a chunk.
            return replace(spec, chunk_size=len(_actions(track, record, row)))
    return spec
