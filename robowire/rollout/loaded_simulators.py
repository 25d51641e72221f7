"""Simulator sessions that outlive an evaluation: the next one of the same task finds them loaded.

To start a simulator and to load a task takes seconds, as long as an episode or two. Episodes are none the
wiser: a reset makes an episode a function of its seed, in an old process as in a new one.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Callable, Sequence, TypeVar

import numpy as np

from robowire.errors import RobowireError
from robowire.rollout.episodes import RolloutSimulator
from robowire.specs import SimulatorSpec

__all__ = ["LoadedSimulators"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class LoadedSimulators:
    """Opens sessions for evaluations that follow each other. A context manager, which closes them at its end.

    A session that an evaluation disconnects is kept, unless its last call failed or has not come back.

    Args:
        open_simulator: Opens a session with the simulator server.
    """

    def __init__(self, open_simulator: Callable[[], RolloutSimulator]) -> None:
        self._open_simulator = open_simulator
        self._idle: list[_Kept] = []  # appended to and popped from by threads, each at a stroke

    def __enter__(self) -> LoadedSimulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._idle:
            try:
                self._idle.pop().session.disconnect()
            except RobowireError as exc:
                _log.debug("a simulator's session ended before it was closed: %s", exc)

    def open(self) -> RolloutSimulator:
        """Return a session: one that is idle, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return _Kept(self._open_simulator(), self._idle)


class _Kept:
    """A :class:`RolloutSimulator` that does nothing twice, and goes back where it came from."""

    def __init__(self, session: RolloutSimulator, idle: list[_Kept]) -> None:
        self.session = session
        self._idle = idle
        self._sound = True
        self._selected: str | None = None
        self._loaded: tuple[str, dict[str, Any]] | None = None
        self._spec = SimulatorSpec()
        self._info: dict[str, Any] = {}

    def select_simulator(self, name: str) -> None:
        if name != self._selected:
            self._call(lambda: self.session.select_simulator(name))
            self._selected = name

    def load_task(self, task_name: str, **options: Any) -> SimulatorSpec:
        if (task_name, options) != self._loaded:
            self._loaded = None
            self._spec = self._call(lambda: self.session.load_task(task_name, **options))
            # As it is now: later, a process may have imported more, and would look like another one.
            self._info = self._call(self.session.get_info)
            self._loaded = task_name, options
        return self._spec

    def get_info(self) -> dict[str, Any]:
        return self._info

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        return self._call(lambda: self.session.reset(seed=seed, init_state=init_state))

    def step(self, action: Any) -> Any:
        return self._call(lambda: self.session.step(action))

    def step_chunk(self, actions: Sequence[Any]) -> Any:
        return self._call(lambda: self.session.step_chunk(actions))

    def render(self, camera_name: str | None = None) -> np.ndarray:
        return self._call(lambda: self.session.render(camera_name))

    def disconnect(self) -> None:
        if self._sound:
            self._idle.append(self)
        else:
            self.session.disconnect()

    def _call(self, call: Callable[[], T]) -> T:
        self._sound = False  # unless it comes back
        value = call()
        self._sound = True
        return value
