"""Act at every control step while a policy server infers the next chunk.

The rules are those of ``async_controller``; this module gives them a connection, a thread and a clock.
One thread sends an observation and waits for its reply; the robot's own thread waits only where there is
nothing to execute. A second thread for sending would have nothing to do: the server answers in order, and one
request is in flight at a time.

What happens when something fails. The connection is lost, the server is away, refuses or does not answer in
time: the request is given up, and the next observation, not the old one again, is sent over a new connection
after a short pause. No action can run twice: the queue executes each timestep once, whatever arrives. Errors
that would be the same again (``SpecMismatch``, ``Unauthenticated``, ...) are raised by the next ``step``.

While the queue is empty, a warning every few seconds says since when, and why.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import os
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Protocol, Sequence

import numpy as np

from robowire.chunking import ActionChunk
from robowire.client.async_controller import (
    AsyncController,
    AsyncOptions,
    AsyncStatistics,
    ChunkRequest,
    require_declared_hold,
    require_rtc,
)
from robowire.client.bridged_policy_client import BridgedPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.errors import (
    LocalProtocolError,
    Overloaded,
    RequestTimeout,
    RobowireError,
    ShuttingDown,
    TransportError,
)
from robowire.meta import MetaAction, MetaObs
from robowire.specs import Embodiment, PolicySpec, declared_hold
from robowire.transport.connection import require_seconds

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

__all__ = ["AsyncPolicyClient"]

_log = logging.getLogger(__name__)

# After failure n in a row the next request waits min(_PAUSE_MAX_S, _PAUSE_S * 2**n) seconds: a robot that
# stands still should go on within a second of its server's return, and a server bears one attempt a second.
_PAUSE_S = 0.05
_PAUSE_MAX_S = 1.0
_MANY = 10  # the pause has long been the longest

# How often stop() interrupts the thread: it may just have been about to send.
_STOP_POLL_S = 0.05

# How often a robot without actions is reported. Shorter waits are usual, at the start of an episode for one.
_REPORT_S = 3.0


class PolicyLink(Protocol):
    """Methods of :class:`PolicyClient` that are used here."""

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def interrupt(self) -> None: ...

    def get_info(self) -> dict[str, Any]: ...

    def reset(self) -> None: ...

    def infer_chunk(self, obs: MetaObs) -> ActionChunk: ...


class AsyncPolicyClient:
    """One robot's session with a policy server, which hides the time of an inference. Needs numpy only.

    ::

        with AsyncPolicyClient("localhost", 5000, AsyncOptions(fps=30)) as client:
            while running:
                action = client.step(observe())  # at 30 Hz: the pace is the caller's
                execute(action)

    One thread steps and resets; any thread may call ``stop``.

    Args:
        host: Name or address of the server; ``unix:PATH`` of one on this machine.
        port: Its policy port.
        options: When to send an observation, and how chunks are merged. Without ``action_hold``, the
            policy's declaration counts.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete. Longer than
            the slowest inference, the first one of a server among them.
        patience_s: Seconds that ``step`` and ``await_actions`` may wait where there is nothing to execute.
            Longer than a server needs to start again.
        token: Token shown to the server, where it wants one.
        added_latency_s: For experiments: how long a reply is held back, by the number of its request since
            this client was made. ``None`` holds none back.
        tls: Whether the server speaks TLS, or a context to use.
        ca: PEM file of the certificates to trust, in the place of the system's; implies ``tls``.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that :meth:`start` tries to connect while the server does not answer.
        image_encoding: How images are sent: ``"raw"``, ``"jpeg"``, or ``"png"``, which loses nothing.
            For slow links. Needs Pillow, here and on the server.
        jpeg_quality: 1 to 100.
        resize: Send images in the policy's own size, by Pillow's bilinear interpolation, stretched.
        client: Session to use in the place of one with ``host``, whose arguments then count for nothing.
        body: What the robot gives and takes, where it says so: :meth:`start` compares it with the policy.
        adapters: Which mismatches are bridged, names of :data:`robowire.contract.ADAPTERS`.
        clock: Seconds, monotonic.

    Raises:
        UnknownName: There is no such aggregate function.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5000,
        options: AsyncOptions | None = None,
        *,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 10.0,
        patience_s: float = 60.0,
        token: str | None = None,
        added_latency_s: Callable[[int], float] | None = None,
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
        image_encoding: str = "raw",
        jpeg_quality: int = 90,
        resize: bool = False,
        client: PolicyLink | None = None,
        body: Embodiment | None = None,
        adapters: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_seconds(patience_s=patience_s)
        self._client: PolicyLink = client or PolicyClient(
            host,
            port,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            retries=0,
            token=token,
            tls=tls,
            ca=ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            wait_s=wait_s,
            image_encoding=image_encoding,
            jpeg_quality=jpeg_quality,
            resize=resize,
        )
        if body is not None:
            self.fit(body, adapters)
        self._patience_s = patience_s
        self._added_latency_s = added_latency_s
        self._clock = clock
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._session_episode: int | None = None  # that the server's session is in; a fresh one is in any
        self._changed = threading.Condition()  # guards what follows
        self._options = options or AsyncOptions()
        self._controller = AsyncController(self._options)
        self._step = -1
        self._outbox: tuple[ChunkRequest, MetaObs] | None = None
        self._failure: Exception | None = None
        self._failed: Exception | None = None  # the latest request's, until a reply comes
        self._reply_s: list[float] = []
        self._empty_since: float | None = None  # when a step found nothing to execute; None while there is
        self._reported = 0.0  # when that was logged last

    def fit(self, body: Embodiment, adapters: Sequence[str] = ()) -> None:
        """Compare the policy with a body at each connection, and bridge what these adapters bridge.

        Called once, before :meth:`start`. Observations and actions are the body's from then on.

        Raises:
            ConfigurationError: There is no such adapter.
        """
        self._client = BridgedPolicyClient(self._client, body, adapters=adapters)

    def start(self) -> None:
        """Connect, and begin an episode.

        Raises:
            LocalProtocolError: It is started already.
            TransportError: The server cannot be reached: that it is there at the start is expected.
            RequestError: It refuses the session, or policy and body do not fit (``SpecMismatch``).
            ConfigurationError: ``on_empty_queue`` is ``"hold"``, but neither ``options`` nor the policy says
                what stands still; or ``rtc`` is not ``"none"``, and the policy has none such.
        """
        if self._process != os.getpid():  # the lock and the thread are those of another process
            self._process, self._thread, self._changed = os.getpid(), None, threading.Condition()
        if self._thread is not None:
            raise LocalProtocolError("this AsyncPolicyClient is started already")
        self._client.connect()
        asks_for_rtc = self._options.rtc != "none" and not self._options.rtc_max_delay_steps
        if self._options.action_hold is None or asks_for_rtc:
            try:
                self._take_declaration(PolicySpec.from_wire(self._client.get_info()))
            except RobowireError:
                self._client.disconnect()
                raise
        self._session_episode = None
        self._stopping.clear()
        self.reset()
        self._failure = self._failed = None
        # In this thread's context: its requests are in the trace, if any, of what started it.
        run = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="async policy client", daemon=True)
        self._thread.start()

    def step(self, observation: MetaObs) -> MetaAction:
        """Return the action of this control step.

        It waits where there is nothing to execute: for the first chunk of an episode, and with
        ``on_empty_queue="wait"`` while the queue is empty.

        Args:
            observation: Now. Copied if it is sent, with ``timestep`` set to the number of this step.

        Raises:
            LocalProtocolError: The client is not started, or was stopped, or was started before ``fork()``.
            RequestTimeout: It waited for ``patience_s``; the message has the last failure.
            RobowireError: An error of the server that would be the same again, or one of this side.
        """
        self._require_own_process()
        with self._changed:
            self._require_running()
            self._step += 1
            self._ask(observation)
            self._watch_queue()
            action = self._controller.next_action(self._step, self._clock())
            until = self._clock() + self._patience_s
            while action is None:
                self._wait(until)
                action = self._controller.next_action(self._step, self._clock())
                if action is None:
                    self._ask(observation)  # the one sent before may have been given up
            return action

    def poll(self, observation: MetaObs) -> MetaAction | None:
        """Return the action of this control step as :meth:`step` does, but never wait.

        For a caller whose clock goes on: ``None`` where there is nothing to execute, and the step is over.

        Args:
            observation: As for :meth:`step`.

        Raises:
            LocalProtocolError: The client is not started, or was stopped, or was started before ``fork()``.
            RobowireError: An error of the server that would be the same again, or one of this side.
        """
        self._require_own_process()
        with self._changed:
            self._require_running()
            self._step += 1
            self._ask(observation)
            self._watch_queue()
            return self._controller.next_action(self._step, self._clock())

    def await_actions(self, observation: MetaObs) -> None:
        """Wait, where nothing is in the queue, until something is.

        For a caller whose clock can be stopped while the server is away: one step passes, however long this
        takes, and nothing is executed in it.

        Args:
            observation: As for :meth:`step`.

        Raises:
            LocalProtocolError: The client is not started, or was stopped, or was started before ``fork()``.
            RequestTimeout: It waited for ``patience_s``; the message has the last failure.
            RobowireError: As for :meth:`poll`.
        """
        self._require_own_process()
        with self._changed:
            self._require_running()
            self._step += 1
            until = self._clock() + self._patience_s
            while not self._controller.queue_size:
                self._ask(observation)  # the one sent before may have been given up
                self._wait(until)

    def reset(self) -> None:
        """Begin an episode, here and in the server's session. What is in flight will be ignored."""
        self._require_own_process()
        with self._changed:
            self._controller.reset()
            self._step = -1
            self._outbox = None
            self._empty_since = None
            self._changed.notify_all()

    def stop(self) -> None:
        """End the session. May be called twice; :meth:`start` begins another.

        Returns within ``connect_timeout_s``, and at once where the client is connected.
        """
        if self._process != os.getpid():  # what runs is another process's
            return
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        thread, self._thread = self._thread, None
        if thread is not None:
            while thread.is_alive():
                self._client.interrupt()
                thread.join(_STOP_POLL_S)
            self._client.disconnect()

    def __enter__(self) -> AsyncPolicyClient:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def statistics(self) -> AsyncStatistics:
        """Statistics of the running episode, a copy; reset by :meth:`reset`, kept by :meth:`stop`."""
        with self._changed:
            return copy.deepcopy(self._controller.statistics)

    @property
    def in_outage(self) -> bool:
        """Whether nothing is in the queue because the server is away, and not because it is slow."""
        with self._changed:
            return self._failed is not None and not self._controller.queue_size

    @property
    def reply_s(self) -> list[float]:
        """Seconds from each observation to its reply, where there was one; without what was added."""
        with self._changed:
            return list(self._reply_s)

    def _take_declaration(self, policy: PolicySpec) -> None:
        """Act as the policy's spec declares.

        Raises:
            ConfigurationError: An empty queue shall hold, and it declares nothing; or it has no real-time
                chunking.
        """
        given = self._options
        require_rtc(given.rtc, policy.rtc)
        options = replace(
            given,
            action_hold=given.action_hold or policy.action_hold or declared_hold(policy),
            rtc_max_delay_steps=given.rtc_max_delay_steps or policy.rtc_max_delay_steps,
        )
        require_declared_hold(options)
        with self._changed:
            self._controller = AsyncController(options)

    def _ask(self, observation: MetaObs) -> None:
        request = self._controller.next_request(self._step, observation, self._clock())
        if request is not None:
            # A camera's driver may fill the same array again while this one is being sent.
            arrays = {name: item.copy() for name, item in vars(observation).items() if _is_array(item)}
            self._outbox = (request, self._controller.fill(replace(observation, **arrays), request))
            self._changed.notify_all()

    def _wait(self, until: float) -> None:
        """Wait for a change, but not longer than ``until``."""
        left_s = until - self._clock()
        if left_s <= 0:
            raise RequestTimeout(f"no action came within {self._patience_s:g} s: {self._reason()}")
        self._watch_queue()
        self._changed.wait(min(left_s, _REPORT_S))
        self._require_running()

    def _watch_queue(self) -> None:
        """Report a queue that has been empty for a while, and again every few seconds."""
        now = self._clock()
        if self._controller.queue_size:
            if self._empty_since is not None and self._reported > self._empty_since:
                _log.info("actions again after %.1f s without", now - self._empty_since)
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = self._reported = now
        elif now - self._reported >= _REPORT_S:
            self._reported = now
            _log.warning(
                "no actions to execute for %.1f s, on_empty_queue is %r: %s",
                now - self._empty_since,
                self._controller.options.on_empty_queue,
                self._reason(),
            )

    def _require_own_process(self) -> None:
        # Before the lock is asked for: the other process's thread may have held it.
        if self._process != os.getpid():
            raise LocalProtocolError(
                "this AsyncPolicyClient was started before fork(), and its thread runs in the other process: "
                "call start in this one"
            )

    def _require_running(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._thread is None or self._stopping.is_set():
            raise LocalProtocolError("this AsyncPolicyClient does not run: call start first")

    def _reason(self) -> str:
        return "the server has not answered yet" if self._failed is None else str(self._failed)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as exc:  # the top of this thread: step raises it
            if not self._stopping.is_set():
                _log.error("the session ends: %s", exc)
            with self._changed:
                self._failure = exc
                self._changed.notify_all()

    def _serve(self) -> None:
        """Send what is put in the outbox, until stopped or until an error that would be the same again."""
        failures = 0  # in a row
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outbox is not None or self._stopping.is_set())
                if self._outbox is None or self._stopping.is_set():
                    return
                (request, observation), self._outbox = self._outbox, None
            begun = self._clock()
            try:
                chunk = self._exchange(request, observation)
            except (TransportError, Overloaded, ShuttingDown) as exc:
                if self._stopping.is_set():
                    return
                level = logging.DEBUG if failures else logging.WARNING
                _log.log(level, "no actions for step %d: %s", request.step, exc)
                self._failed = exc
                # Given up after the pause, so that what is sent then was seen then.
                self._stopping.wait(min(_PAUSE_MAX_S, _PAUSE_S * 2.0**failures))
                failures = min(failures + 1, _MANY)
                with self._changed:
                    self._controller.lost(request)
                    self._changed.notify_all()
                continue
            if failures:
                _log.info("the server answers again, at step %d", request.step)
            failures, self._failed = 0, None
            took_s = self._clock() - begun
            if self._added_latency_s is not None:
                self._stopping.wait(self._added_latency_s(request.number))
            with self._changed:
                self._reply_s.append(took_s)
                delivery = self._controller.deliver(request, chunk, self._step)
                self._changed.notify_all()
            if delivery is not None:
                _log.debug("step %d answered after %d: %s", request.step, delivery.delay, delivery.merge)

    def _exchange(self, request: ChunkRequest, observation: MetaObs) -> ActionChunk:
        if self._session_episode not in (None, request.episode):
            self._client.reset()
        self._session_episode = request.episode
        return self._client.infer_chunk(observation)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)
