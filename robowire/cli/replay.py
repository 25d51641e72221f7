"""``replay``: send a recording to a server, and compare its answers with the recorded ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robowire.cli.command import Program
from robowire.cli.connection_flags import ConnectionFlags, at_least, open_policy_client
from robowire.cli.parser import setting
from robowire.cli.replay_rerun import write_rerun
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConfigurationError, RequestError
from robowire.meta import MetaObs
from robowire.progress import Progress
from robowire.recording.difference import Difference, first_difference
from robowire.recording.format import GAP, Recording, open_recordings
from robowire.specs import SimulatorSpec, ctrl_type_name

__all__ = ["ReplayFlags", "run"]

# Of a field in the table; longer ones are cut.
_WIDTH = 40

_ANSWER_FIELDS = ("actions", "ctrl_space", "ctrl_type", "raw_actions")
_STEP_FIELDS = ("reward", "rewards", "terminated", "truncated", "info", "steps")


@dataclass(frozen=True, kw_only=True)
class ReplayFlags(ConnectionFlags):
    """Flags of ``replay``.

    Attributes:
        file: Recording of one session, or a folder of them, from --record.
        tolerance: Largest absolute difference of two numbers that count as equal.
        max_differences: Rows of the table of differences; the requests after it are only counted.
        stop_at_difference: End at the first difference.
        rerun: File for rerun.io's viewer, .rrd, to write the recorded episodes into; no server is asked then.
    """

    file: str = field(metadata=setting(positional=True))
    tolerance: float = 0.0
    max_differences: int = 20
    stop_at_difference: bool = False
    rerun: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, tolerance=self.tolerance, max_differences=self.max_differences)


@dataclass(frozen=True)
class _Row:
    file: str
    number: int
    method: str
    difference: Difference


def run(flags: ReplayFlags, program: Program) -> int:
    """Replay each session, print what differed, and return 1 if anything did."""
    compared, rows, differing = 0, list[_Row](), 0
    recordings = open_recordings(flags.file)
    for recording in recordings:
        if recording.torn:
            sys.stderr.write(
                f"{recording.path.name}: {recording.torn}; {len(recording)} records can be read\n"
            )
    if flags.rerun is not None:
        episodes = write_rerun(recordings, Path(flags.rerun))
        sys.stdout.write(f"{episodes} episodes in {flags.rerun}: rerun {flags.rerun}\n")
        return 0
    total = sum(map(len, recordings))
    with Progress("replaying", total, unit="request") as progress:
        for recording in recordings:
            for number, method, difference in _replay(recording, flags):
                progress.update()
                compared += 1
                if difference is None:
                    continue
                differing += 1
                if len(rows) < flags.max_differences:
                    rows.append(_Row(recording.path.name, number, method, difference))
                if flags.stop_at_difference:
                    break
            if differing and flags.stop_at_difference:
                break
    if not differing:
        within = f" within {flags.tolerance:g}" if flags.tolerance else ""
        sys.stdout.write(f"{compared} requests, every answer equal{within}\n")
        return 0
    sys.stdout.write(_table(rows, several=len(recordings) > 1))
    sys.stdout.write(f"{differing} of {compared} answers differ\n")
    return 1


def _replay(recording: Recording, flags: ReplayFlags) -> Iterator[tuple[int, str, Difference | None]]:
    kind = recording.header["kind"]
    if kind == "policy":
        return _replay_policy(recording, flags)
    if kind == "simulator":
        return _replay_simulator(recording, flags)
    raise ConfigurationError(f"{recording.path}: recordings of a {kind} are not replayed")


def _records(recording: Recording) -> Iterator[tuple[int, str, Mapping[str, Any], Any]]:
    """Yield number, method, parameters and the record of each request."""
    for index, kind in enumerate(recording.kinds()):
        record = recording[index]
        if kind == GAP:
            sys.stderr.write(
                f"{recording.path.name}: {record.get('dropped')} requests before request "
                f"{record.get('number')} were not recorded\n"
            )
            continue
        request, method, number = record.get("request"), record.get("method"), record.get("number")
        if not (isinstance(request, dict) and isinstance(method, str) and isinstance(number, int)):
            raise ConfigurationError(f"{recording.path}: record {index} is not a request")
        yield number, method, request, record


def _replay_policy(recording: Recording, flags: ReplayFlags) -> Iterator[tuple[int, str, Difference | None]]:
    with open_policy_client(flags) as client:
        for number, method, request, record in _records(recording):
            if method == "reset":
                client.reset()
                yield number, method, None
                continue
            if method != "infer":
                continue
            observation = _observation(recording, number, request)
            try:
                chunk = client.infer_chunk(observation)
            except RequestError as exc:
                yield number, method, _error_difference(record, exc)
                continue
            found = {
                "actions": chunk.actions,
                "ctrl_space": chunk.ctrl_space,
                "ctrl_type": chunk.ctrl_type,
                "raw_actions": chunk.raw_actions,
            }
            yield number, method, _compare(record, found, _ANSWER_FIELDS, flags)


def _replay_simulator(
    recording: Recording, flags: ReplayFlags
) -> Iterator[tuple[int, str, Difference | None]]:
    snapshots: dict[str, str] = {}  # recorded ids to those of this server
    client = SimulatorClient(
        flags.host,
        flags.port,
        timeout_s=max(flags.timeout_s, 330.0),
        token=flags.token,
        tls=flags.tls_context(),
        wait_s=flags.wait_s,
    )
    with client:
        for number, method, request, record in _records(recording):
            try:
                answered = _ask_simulator(client, method, request, snapshots)
            except RequestError as exc:
                yield number, method, _error_difference(record, exc)
                continue
            if answered is None:
                continue
            reply = record.get("reply")
            if method == "snapshot" and isinstance(reply, dict):
                snapshots[str(reply.get("snapshot_id"))] = answered.pop("snapshot_id")
            if method == "load_task" and isinstance(reply, dict):
                record = {**record, "reply": SimulatorSpec.from_wire(reply).to_wire()}
            yield number, method, _compare(record, answered, tuple(answered), flags)


def _ask_simulator(
    client: SimulatorClient, method: str, request: Mapping[str, Any], snapshots: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the answer to a recorded request; ``None`` for those that have nothing to compare."""
    if method == "select_simulator":
        client.select_simulator(request["simulator"])
        return {}
    if method == "list_tasks":
        return {"tasks": client.list_tasks(request.get("suite"))}
    if method == "load_task":
        return client.load_task(**request).to_wire()
    if method == "reset":
        return {"observation": client.reset(request.get("seed"), request.get("init_state"))}
    if method == "step":
        return _fields(client.step(request["action"]))
    if method == "step_chunk":
        return _fields(client.step_chunk(request["actions"]))
    if method == "render":
        return {"image": client.render(request.get("camera_name"))}
    if method == "snapshot":
        return {"snapshot_id": client.snapshot()}
    if method == "restore":
        recorded = str(request.get("snapshot_id"))
        return {"observation": client.restore(snapshots.get(recorded, recorded))}
    return None  # forks and the end of the session


def _fields(result: Any) -> dict[str, Any]:
    names = ("observation", *_STEP_FIELDS)
    return {name: getattr(result, name) for name in names if hasattr(result, name)}


def _observation(recording: Recording, number: int, request: Mapping[str, Any]) -> MetaObs:
    rows = request.get("observations")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, MetaObs) for row in rows):
        raise ConfigurationError(f"{recording.path}: request {number} holds no observation")
    if not request.get("batched"):
        observation: MetaObs = rows[0]
        return observation
    arrays = {
        name: np.stack([getattr(row, name) for row in rows])
        for name, value in vars(rows[0]).items()
        if isinstance(value, np.ndarray)
    }
    return MetaObs(
        raw_lang=[row.raw_lang for row in rows],  # type: ignore[arg-type]
        timestep=np.array([[row.timestep] for row in rows]),
        **arrays,
    )


def _compare(
    record: Mapping[str, Any], found: Mapping[str, Any], names: tuple[str, ...], flags: ReplayFlags
) -> Difference | None:
    error, reply = record.get("error"), record.get("reply")
    if isinstance(error, dict):
        return Difference("answer", f"the error {error.get('error_type')}", "a reply")
    reply = reply if isinstance(reply, dict) else {}
    expected = {name: reply.get(name) for name in names}
    if "ctrl_type" in expected:
        expected["ctrl_type"] = ctrl_type_name(expected["ctrl_type"])
    return first_difference(expected, dict(found), tolerance=flags.tolerance)


def _error_difference(record: Mapping[str, Any], exc: RequestError) -> Difference | None:
    error = record.get("error")
    expected = str(error.get("error_type")) if isinstance(error, dict) else "a reply"
    if expected == exc.error_type:
        return None
    return Difference("answer", expected, f"{exc.error_type}: {exc}")


def _table(rows: list[_Row], *, several: bool) -> str:
    cells = [("request", "method", "field", "expected", "found")]
    cells += [
        (str(row.number), row.method, row.difference.field, row.difference.expected, row.difference.found)
        for row in rows
    ]
    if several:
        files = ["file", *(row.file for row in rows)]
        cells = [(name, *cell) for name, cell in zip(files, cells)]  # type: ignore[misc]
    shown = [
        [text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..." for text in row[:-1]] for row in cells
    ]
    widths = [max(map(len, column)) for column in zip(*shown)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths)), cell[-1]]).rstrip()
        for row, cell in zip(shown, cells)
    ]
    return "".join(f"{line}\n" for line in lines)
