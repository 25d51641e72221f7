"""A policy that answers from recordings: a policy server for tests, without a checkpoint or a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Sequence

import numpy as np

from robowire.errors import ConfigurationError, InvalidParams, request_error
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.recording.difference import Difference, first_difference
from robowire.recording.format import BATCH, INFER, Recording, open_recordings
from robowire.registry import nearest
from robowire.specs import PolicySpec

__all__ = ["ReplayPolicy", "make_policy"]

# Rows of one recording that are kept decoded: the next, the last and the first.
_KEPT = 4


class _Track:
    """The observations of one recorded session in their order, and where a client is in them."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.position = 0
        self._places: list[tuple[int, int]] = []  # record and row of each observation
        for index, kind in enumerate(recording.kinds()):
            if kind in (INFER, BATCH):  # only a batch is read to know its rows
                rows = 1 if kind == INFER else len(_observations(recording, recording[index]))
                self._places += [(index, row) for row in range(rows)]
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


class ReplayPolicy:
    """Answers observations with the recorded actions, in the recorded order.

    An observation must be the next one of a recording. The last one again is a repeated request, and the
    first one begins it again; any other is an error that names the first difference. With several
    recordings, each client follows the one whose first observation it sends.

    Args:
        recordings: Of policy sessions, of one policy.
        tolerance: Largest difference of two numbers of an observation that are equal.

    Attributes:
        spec: That of the recorded policy.
    """

    def __init__(self, recordings: Sequence[Recording], *, tolerance: float = 0.0) -> None:
        self._tolerance = tolerance
        self._tracks = [_Track(recording) for recording in recordings]
        self._tracks = [track for track in self._tracks if len(track)]
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
        nearest_difference: tuple[_Track, Any, Difference] | None = None
        # The one that answered last comes first, so that the difference is that of the running episode.
        for track in self._tracks:
            for position in dict.fromkeys((track.position, track.position - 1, 0)):
                if not 0 <= position < len(track):
                    continue
                record, expected, row = track.row(position)
                difference = self._difference(track, expected, observation)
                if difference is None:
                    track.position = position + 1
                    self._tracks.remove(track)
                    self._tracks.insert(0, track)
                    return _actions(track, record, row)
                if nearest_difference is None:
                    nearest_difference = (track, record, difference)
        assert nearest_difference is not None
        track, record, difference = nearest_difference
        end = " (the recording ends here)" if track.position >= len(track) else ""
        raise InvalidParams(
            f"this is not the recorded request {record.get('number')} of {track.recording.path.name}{end}: "
            f"{difference}"
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
