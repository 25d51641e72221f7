"""Pool of simulator processes: one thread starts them all, some of them ahead of time.

For each of the last few selections, one process of that simulator is kept warm: a server of one simulator
keeps all of them for it, and a server of several keeps some for those in use. The task of a simulator that
was loaded last is built in them too, which is most of the time of a start: clients of one server mostly load
the same task. A process with another task than the requested one loads that one, as a new process would.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from robowire.errors import BackendError, RequestError, RobowireError, ShuttingDown
from robowire.registry import Entry
from robowire.serving.simulator.process import SimulatorProcess
from robowire.serving.simulator.template import SimulatorTemplate

__all__ = ["ProcessPool"]

logger = logging.getLogger(__name__)

# Interval of looking for warm processes that died: no client waits for them.
_LOOK_S = 1.0


class ProcessPool:
    """Starts processes and keeps some warm; any thread may call it.

    Args:
        simulators: Simulators that clients may select.
        pythons: Interpreter of a simulator; one that is not named runs with the server's own.
        warm: Number of processes to keep ready, in addition to those in use.
        load_timeout_s: Seconds to import a simulator, and to build a task, ahead of time.
        fork: Fork processes from one that has the simulator imported and prepared, once a task was loaded,
            where the simulator can be prepared (:class:`robowire.interfaces.Preparing`).
    """

    def __init__(
        self,
        simulators: Mapping[str, Entry],
        pythons: Mapping[str, str],
        *,
        warm: int = 0,
        load_timeout_s: float = 300.0,
        fork: bool = False,
    ) -> None:
        self._simulators = simulators
        self._pythons = pythons
        self._warm = warm
        self._load_timeout_s = load_timeout_s
        # Linux ends a process with the thread that started it, and simulators outlive connections.
        self._starter = ThreadPoolExecutor(1, "starter")
        self._changed = threading.Condition()  # guards what follows
        self._closing = False
        self._wanted: deque[str] = deque(maxlen=warm)  # the simulators selected last
        self._tasks: dict[str, Mapping[str, Any]] = {}  # parameters of the last load_task of each simulator
        self._ready: list[SimulatorProcess] = []  # warm, the oldest first
        self._in_hand: SimulatorProcess | None = None  # the process that the warming thread works on
        self._warmer: threading.Thread | None = None
        self._fork = fork
        self._templates: dict[str, SimulatorTemplate | None] = {}  # None: it is being made, or can't be
        self._preparing: list[SimulatorTemplate] = []
        self._makers: list[threading.Thread] = []

    def take(self, name: str, *, label: str, client_has_left: Callable[[], bool]) -> SimulatorProcess:
        """Return a process of a simulator, a warm one if there is one; the caller closes it.

        Raises:
            BackendError: It cannot be started.
            ShuttingDown: The pool was closed.
        """
        with self._changed:
            process = self._pick(name)
            if self._warm and not self._closing:
                self._want(name)
        if process is None:
            return self._start(name, label=label, client_has_left=client_has_left)
        process.adopt(label=label, client_has_left=client_has_left)
        return process

    def task_was_loaded(self, name: str, params: Mapping[str, Any]) -> None:
        """Build tasks ahead of time with these parameters."""
        with self._changed:
            self._tasks[name] = params
            self._changed.notify_all()
            if not self._fork or self._closing or name in self._templates:
                return
            self._templates[name] = None
            maker = threading.Thread(
                target=self._make_template, args=(name, params), name="template", daemon=True
            )
            self._makers.append(maker)
            maker.start()

    def ready(self) -> dict[str, int]:
        """Return how many processes of each simulator are warm."""
        with self._changed:
            return dict(Counter(process.name for process in self._ready))

    def wait_until_warm(self, *, timeout_s: float) -> bool:
        """Return whether nothing is left to do ahead of time, after ``timeout_s`` at most."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._in_hand is None and self._next_job() is None, timeout_s
            )

    def close(self) -> None:
        """End the warm processes; those in use have ended by then. May be called twice."""
        with self._changed:
            self._closing = True
            if self._in_hand is not None:
                self._in_hand.kill()
            for template in self._preparing:
                template.kill()
            self._changed.notify_all()
        if self._warmer is not None:
            self._warmer.join()
        for maker in self._makers:
            maker.join()
        for process in self._ready:
            process.kill()  # it has no request to finish
            process.close()
        self._ready = []
        self._starter.shutdown()
        for made in filter(None, self._templates.values()):
            made.close()
        self._templates = {}

    def _start(self, name: str, *, label: str, client_has_left: Callable[[], bool]) -> SimulatorProcess:
        start = partial(
            SimulatorProcess,
            name,
            self._simulators[name],
            label=label,
            python=self._python(name),
            client_has_left=client_has_left,
        )
        template = self._template(name)
        if template is not None:
            try:
                return start(template=template)
            except BackendError as exc:
                logger.warning("%s is started, not forked: %s", name, exc)
        try:
            return self._starter.submit(start).result()
        except RuntimeError as exc:  # the executor was shut down
            raise ShuttingDown("the server shuts down and starts no simulators") from exc

    def _python(self, name: str) -> str:
        return self._pythons.get(name, sys.executable)

    def _template(self, name: str) -> SimulatorTemplate | None:
        """Return the process to fork a simulator from; ``None`` where there is none."""
        with self._changed:
            template = self._templates.get(name)
            if template is None or not template.ended():
                return template
            del self._templates[name]  # the next task that is loaded makes another
        logger.warning("the process that %s was forked from has ended", name)
        template.close()
        return None

    def _make_template(self, name: str, params: Mapping[str, Any]) -> None:
        try:
            make = partial(SimulatorTemplate, name, self._simulators[name], params, python=self._python(name))
            template = self._starter.submit(make).result()  # in a thread that outlives it
        except (RobowireError, RuntimeError) as exc:
            logger.info("simulators of %s are not forked: %s", name, exc)
            return
        with self._changed:
            self._preparing.append(template)
            if self._closing:
                template.kill()
        try:
            template.wait_until_ready(timeout_s=self._load_timeout_s)
        except RequestError as exc:
            logger.info("simulators of %s are not forked: %s", name, exc)
            return
        finally:
            with self._changed:
                self._preparing.remove(template)
        logger.info("simulators of %s are forked from process %d from now on", name, template.pid)
        with self._changed:
            if not self._closing:
                self._templates[name] = template
                return
        template.close()

    # -- with the lock held ----------------------------------------------------------------------------------

    def _pick(self, name: str) -> SimulatorProcess | None:
        """Take a warm process out, preferably one with a task built."""
        fitting = [process for process in self._ready if process.name == name and not process.ended()]
        if not fitting:
            return None
        process = max(fitting, key=lambda process: process.has_task_ahead)
        self._ready.remove(process)
        return process

    def _want(self, name: str) -> None:
        self._wanted.extend([name] if self._wanted else [name] * self._warm)
        if self._warmer is None:
            self._warmer = threading.Thread(target=self._keep_warm, name="warmer", daemon=True)
            self._warmer.start()
        self._changed.notify_all()

    def _next_job(self) -> Callable[[], None] | None:
        """Return the next step from the warm processes to those that are wanted."""
        wanted = Counter(self._wanted)
        have = Counter(process.name for process in self._ready)
        for process in self._ready:
            if process.ended() or have[process.name] > wanted[process.name]:
                return partial(self._retire, process)
        for process in self._ready:
            if process.name in self._tasks and not process.has_task_ahead:
                return partial(self._build_task, process)
        missing = next(iter(wanted - have), None)
        return None if missing is None else partial(self._start_one, missing)

    # -- in the thread that warms ----------------------------------------------------------------------------

    def _keep_warm(self) -> None:
        while True:
            with self._changed:
                while (job := self._next_job()) is None and not self._closing:
                    self._changed.notify_all()  # for wait_until_warm
                    self._changed.wait(_LOOK_S if self._ready else None)
                if job is None or self._closing:
                    return
            job()

    def _retire(self, process: SimulatorProcess) -> None:
        if self._hold(process, out_of_ready=True):
            logger.info("a warm simulator process is no longer wanted, or died")
            process.close()
            self._release(process, ready=False)

    def _start_one(self, name: str) -> None:
        try:
            process = self._start(name, label="warm", client_has_left=lambda: False)
            self._hold(process)
            process.wait_until_ready(timeout_s=self._load_timeout_s)
        except BackendError as exc:
            if not self._closing:  # otherwise we ended it
                logger.warning("no %s is kept warm until it is selected again: %s", name, exc)
            with self._changed:
                self._in_hand = None
                remaining = [other for other in self._wanted if other != name]
                self._wanted = deque(remaining, maxlen=self._warm)
            return
        self._release(process, ready=True)

    def _build_task(self, process: SimulatorProcess) -> None:
        if not self._hold(process, out_of_ready=True):
            return
        params = self._tasks[process.name]
        try:
            process.load_ahead(params, timeout_s=self._load_timeout_s)
        except RequestError as exc:
            if not self._closing:
                logger.warning("a task of %s is not built ahead of time: %s", process.name, exc)
            with self._changed:
                if self._tasks[process.name] is params:
                    del self._tasks[process.name]
        self._release(process, ready=True)

    def _hold(self, process: SimulatorProcess, *, out_of_ready: bool = False) -> bool:
        """Mark a process as worked on, so that :meth:`close` can end it; return whether that worked."""
        with self._changed:
            if out_of_ready:
                if process not in self._ready:
                    return False  # it was taken meanwhile
                self._ready.remove(process)
            self._in_hand = process
            if self._closing:
                process.kill()
            return True

    def _release(self, process: SimulatorProcess, *, ready: bool) -> None:
        with self._changed:
            self._in_hand = None
            if ready:
                self._ready.append(process)
