"""The session of requests that name none: one environment, which the first reset begins and all share."""

from __future__ import annotations

import threading

from robowire.errors import InvalidParams, SessionNotFound
from robowire.frontends.http.execution import execute
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.simulator.session import SimulatorSession
from robowire.wire import messages
from robowire.wire.methods import check_params

__all__ = ["DefaultSession"]


class DefaultSession:
    """The session of a server that was started with a simulator.

    It has no timeout: its clients know of no session, so that none of them could begin it again.

    Args:
        service: Service of the session.
        simulator: Name of its simulator.
        task: Task that a reset loads where it names none; ``None`` where the first reset must name one.

    Attributes:
        task: As given.
    """

    def __init__(self, service: SimulatorService, simulator: str, task: str | None) -> None:
        self.task = task
        self._service = service
        self._simulator = simulator
        self._beginning = threading.Lock()
        self._token: str | None = None

    def token(self) -> str | None:
        """Return the session's token; ``None`` where it has not begun, or has ended."""
        token = self._token
        if token is None:
            return None
        try:
            self._service.find(token)
        except SessionNotFound:
            return None
        return token

    def begin(self, label: str) -> str:
        """Return the session's token, after its simulator was started where there is none.

        Args:
            label: Client that wants it, for the log.

        Raises:
            RequestError: The simulator cannot be started, or all places are taken.
        """
        with self._beginning:  # a second client waits, and gets the same session
            token = self.token()
            if token is not None:
                return token
            with self._service.borrow_session(
                label=f"the default session ({label})", lasting=True
            ) as session:
                select = messages.Request("select_simulator", {"simulator": self._simulator})
                execute(self._service, session, "select_simulator", check_params(select))
                assert session.token is not None
                self._token = session.token
            return self._token

    def load_task(self, session: SimulatorSession) -> None:
        """Load its task, also in a new process where the simulator died. The session's lock is held.

        Raises:
            InvalidParams: The server was started without a task.
        """
        if self.task is None:
            raise InvalidParams("reset needs 'task': this server was started with --simulator alone")
        load = messages.Request("load_task", {"task_name": self.task})
        execute(self._service, session, "load_task", check_params(load))
