"""Options of a simulator server, validated."""

from __future__ import annotations

from dataclasses import dataclass

from robowire.errors import ConfigurationError
from robowire.serving.process_memory import can_be_measured
from robowire.serving.tcp import TcpOptions

__all__ = ["SimulatorServerOptions"]


@dataclass(frozen=True)
class SimulatorServerOptions(TcpOptions):
    """Options of a simulator server, except the simulators and how tasks are built.

    Attributes:
        session_timeout_s: Seconds without a request after which a session and its simulator are ended,
            whether its client is connected or may come back.
        detached_grace_s: Seconds after which a session whose connection was lost yields its simulator's place
            to a new client, if there is no other place; until then, and otherwise, its client may resume it.
        max_sessions: Simulators at one time; the next select_simulator is answered "overloaded".
        call_timeout_s: Seconds for one call, or one chunk; a simulator that needs longer is killed.
        load_timeout_s: The same for select_simulator, load_task, reset and verify.
        max_snapshot_mb: Limit of all snapshots together, in megabytes.
        snapshot_dir: Folder of snapshots, which several servers may share; memory by default.
        warm: Processes to keep ready in addition to the sessions, with the simulators selected last imported
            and their last task built and reset once; 0 keeps none.
        fork_sessions: Fork simulators from one process that has the family imported and prepared, once a task
            was loaded: they start in a fraction of the time and share memory, but end with that process. For
            families that can be prepared (robosuite); others start as without it.
        max_session_mb: Memory of one session's simulator, in megabytes; one that holds more is replaced by a
            new process at the next reset or restore; 0 means no limit.
    """

    port: int = 5555
    session_timeout_s: float = 300.0
    # A connection that drops is back within seconds; a client that was killed never comes back.
    detached_grace_s: float = 10.0
    # A robosuite process takes 0.5 GB, 0.8 with a camera, LIBERO up to 1.8, and a core while it renders.
    max_sessions: int = 8
    # A chunk of 64 steps of the slowest LIBERO suite, rendered on a CPU, takes 15 s.
    call_timeout_s: float = 60.0
    # Compiling a large scene takes seconds, a simulator that starts a game engine takes a minute or two.
    load_timeout_s: float = 300.0
    # A snapshot of robosuite takes 0.1 to 0.3 MB.
    max_snapshot_mb: float = 256.0
    snapshot_dir: str | None = None
    # Each takes as much memory as a session, in use or not.
    warm: int = 0
    fork_sessions: bool = False
    max_session_mb: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sessions < 1:
            raise ConfigurationError(f"max_sessions is {self.max_sessions}, expected at least 1")
        if not self.max_snapshot_mb > 0:
            raise ConfigurationError(f"max_snapshot_mb is {self.max_snapshot_mb}, expected more than 0")
        if self.warm < 0:
            raise ConfigurationError(f"warm is {self.warm}, expected 0 or more processes")
        if not self.max_session_mb >= 0:
            raise ConfigurationError(f"max_session_mb is {self.max_session_mb}, expected 0 or more")
        if self.max_session_mb and not can_be_measured():
            raise ConfigurationError("max_session_mb needs Linux, whose /proc shows the memory of a process")
        if not self.detached_grace_s >= 0:
            raise ConfigurationError(
                f"detached_grace_s is {self.detached_grace_s}, expected 0 or more seconds"
            )
        for name in ("call_timeout_s", "load_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )
