"""Parameters and replies of the calls for OpenAPI. ``wire/methods.py`` checks requests, not these models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

__all__ = [
    "ChunkBody",
    "ChunkReply",
    "Deleted",
    "Done",
    "ErrorReply",
    "ForkBody",
    "ForkReply",
    "Health",
    "InfoReply",
    "ObservationReply",
    "Renewed",
    "ResetBody",
    "ResetReply",
    "RestoreBody",
    "RestoreReply",
    "SimulatorsReply",
    "SnapshotReply",
    "SnapshotsReply",
    "StatsReply",
    "StepBody",
    "StepReply",
    "TasksReply",
    "VerifyBody",
    "VerifyReply",
]

_OBSERVATION = Field(
    description="The simulator's names to arrays; with observation_format 'meta' the fields of a MetaObs."
)
_NUMBER = Field(
    None,
    ge=1,
    description="Number of the request, higher than those before; the last number again repeats its reply "
    "and executes nothing.",
)
_SESSION = Field(None, description="Session, if neither the header nor the query names it.")
_ACTION = "(action_dim,) numbers, the simulator's own action; or the fields of a MetaAction."


class _Body(BaseModel):
    session: str | None = _SESSION


class ResetBody(_Body):
    """A new session and its first episode; or, with a session, its next episode."""

    simulator: str | None = Field(
        None, description="For a new session: a name of /simulators, or simulator:task."
    )
    task: str | None = Field(None, description="Task to load first; by default the loaded one is reset.")
    seed: int | None = Field(None, ge=0, description="The same seed gives the same episode.")
    init_state: int | None = Field(None, ge=0, description="A numbered initial state, where tasks have them.")
    number: int | None = _NUMBER
    options: dict[str, Any] | None = Field(
        None, description="Other parameters of this body, as Gymnasium's reset(options=...) holds them."
    )
    robot: str | None = Field(None, description="This option and the following ones: how the task is built.")
    controller: str | None = None
    camera_names: list[str] | None = Field(None, description="An empty list renders nothing, which is fast.")
    image_height: int | None = Field(None, ge=1, le=4096, description="Pixels.")
    image_width: int | None = Field(None, ge=1, le=4096, description="Pixels.")
    horizon: int | None = Field(None, ge=1, description="Steps, then the episode is truncated.")
    reward_shaping: bool | None = None
    control_hz: float | None = Field(None, gt=0, description="Steps a second.")
    names: str | None = Field(None, description="'raw' (the default), or others that a simulator offers.")
    observation_format: str | None = Field(None, description="'raw' (the default) or 'meta'.")
    observation_keys: list[str] | None = Field(None, description="Keys of raw observations; default all.")
    image_encoding: str | None = Field(None, description="'raw' (the default), 'jpeg' or 'png'.")
    jpeg_quality: int | None = Field(None, ge=1, le=100, description="Default 95.")


class StepBody(_Body):
    """One action."""

    action: list[float] | dict[str, Any] = Field(description=_ACTION)
    number: int | None = _NUMBER


class ChunkBody(_Body):
    """Several actions, executed until the episode ends."""

    actions: list[list[float]] | list[dict[str, Any]] = Field(description=f"At least one: {_ACTION}")
    number: int | None = _NUMBER


class TasksBody(_Body):
    """Whose tasks are listed."""

    simulator: str
    suite: str | None = Field(None, description="Of these only, where a simulator has suites.")


class RestoreBody(_Body):
    """Snapshot to restore."""

    snapshot_id: str
    number: int | None = _NUMBER


class VerifyBody(_Body):
    """Snapshot to verify, and number of steps."""

    snapshot_id: str
    steps: int = Field(50, ge=1, description="Random actions to compare.")


class ForkBody(_Body):
    """Snapshot to fork, and number of sessions."""

    snapshot_id: str
    n: int = Field(ge=1, description="Sessions to begin from the snapshot, each with a simulator of its own.")
    number: int | None = _NUMBER


class ErrorReply(BaseModel):
    """Error of a call."""

    status: str = Field("error", description="'error'")
    error_type: str = Field(description="Error type for programs: docs/protocol.md lists them.")
    message: str = Field(description="Message for people.")


class _Reply(BaseModel):
    status: str = Field("ok", description="'ok'")


class Done(_Reply):
    """The call was executed."""


class Deleted(Done):
    """The snapshot was deleted."""


class Health(_Reply):
    """The server answers."""

    version: str
    simulator_sessions: int = Field(description="Sessions that have a simulator now.")
    max_sessions: int


class ResetReply(_Reply):
    """The first observation of an episode."""

    session: str = Field(description="Session name for later calls. A secret: it gives access.")
    spec: dict[str, Any] | None = Field(None, description="Spec of the task that was loaded: action_dim, ...")
    observation: dict[str, Any] = _OBSERVATION


class StepReply(_Reply):
    """Result of one action."""

    observation: dict[str, Any] = _OBSERVATION
    reward: float
    terminated: bool = Field(description="The task ended the episode; success does.")
    truncated: bool = Field(description="The step limit ended it.")
    info: dict[str, Any] = Field(description="Information of the simulator, with 'success'.")


class ChunkReply(_Reply):
    """Result of a chunk, with its last observation."""

    observation: dict[str, Any] = _OBSERVATION
    rewards: list[float]
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    steps: int = Field(description="How many actions were executed.")


class ObservationReply(_Reply):
    """The last reply of the session with an observation."""

    observation: dict[str, Any] = _OBSERVATION


class RestoreReply(_Reply):
    """The observation of the restored state."""

    observation: dict[str, Any] = _OBSERVATION


class SnapshotReply(_Reply):
    """The snapshot's id: equal states have one id."""

    snapshot_id: str
    bytes: int


class SnapshotsReply(_Reply):
    """Every snapshot that the server keeps."""

    snapshots: list[dict[str, Any]]


class VerifyReply(_Reply):
    """Whether the simulator repeats itself from a snapshot."""

    exact: bool
    steps: int
    difference: str | None


class ForkReply(_Reply):
    """The new sessions."""

    sessions: list[str]


class SimulatorsReply(_Reply):
    """Simulators that a new session may run."""

    simulators: list[str]
    summaries: dict[str, str]


class TasksReply(_Reply):
    """The names that /reset takes as a task."""

    tasks: list[str]


class InfoReply(_Reply):
    """Information on the server, and on a session if one is named."""

    server: str
    version: str
    simulators: list[str]
    simulator: str | None = Field(None, description="The session's.")
    task: str | None = Field(None, description="The session's.")


class StatsReply(_Reply):
    """Counters of the server, TCP and HTTP together."""


class Renewed(_Reply):
    """The time after which the session ends, restarted by this call as by any other."""

    session_timeout_s: float
