"""Polls servers for all viewers of a page, and keeps the last minutes of their counters."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robowire.dashboard.evaluation import read_evaluation
from robowire.dashboard.source import Source

__all__ = ["Monitor", "ServerView", "View"]

PERIOD_S = 2.0
# Five minutes of samples.
_HISTORY = 150
# A viewer that has not asked for so long is gone.
_VIEWER_S = 8.0
# Of one request: see wire/methods.py.
MAX_WATCHED = 4
_LOG_LINES = 300
# Sessions that ended are listed for so long.
_ENDED_S = 60.0


@dataclass(frozen=True)
class ServerView:
    """One server at one moment.

    Attributes:
        name: Its address.
        status: Its last reply, see :meth:`Source.poll`.
        history: Pairs of seconds and ``stats`` with ``load``, oldest first.
        ended: Rows of sessions that ended lately.
    """

    name: str
    status: dict[str, Any]
    history: tuple[tuple[float, dict[str, Any]], ...] = ()
    ended: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class View:
    """Everything that the page shows at one moment.

    Attributes:
        servers: The servers, in the order of the settings.
        evaluation: What :func:`read_evaluation` returns; ``None`` for none.
        number: Counts the polls.
    """

    servers: tuple[ServerView, ...] = ()
    evaluation: dict[str, Any] | None = None
    number: int = 0

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the sessions that there are, by a name that is unique on the page."""
        return {
            _key(index, row): row
            for index, server in enumerate(self.servers)
            for row in server.status.get("sessions", ())
        }

    def shown(self, key: str) -> dict[str, Any] | None:
        """Return images and values of a session; ``None`` where they were not asked for."""
        index, _, name = key.partition(": ")
        for number, server in enumerate(self.servers, 1):
            if str(number) == index:
                found: dict[str, Any] | None = server.status.get("images", {}).get(name)
                return found
        return None

    def watchable(self) -> list[str]:
        """Return the names of sessions whose images are worth a look, the most interesting first."""
        rank = {"running": 0, "needs_reset": 1}
        rows = {key: row for key, row in self.sessions().items() if row["state"] in rank and row["steps"]}
        return sorted(rows, key=lambda key: (rank[rows[key]["state"]], "pid" not in rows[key]))


def _key(index: int, row: dict[str, Any]) -> str:
    return f"{index + 1}: {row['session']}"


@dataclass
class _Server:
    source: Source
    history: deque[tuple[float, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)


class Monitor:
    """Polls in a thread of its own, from :meth:`start` to :meth:`close`.

    Args:
        sources: Servers to ask; used by this object only.
        results: Folder of an evaluation; ``None`` for none.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        results: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = [_Server(source) for source in sources]
        self._results = results
        self._clock = clock
        self._view = View()
        self._lock = threading.Lock()  # held while a server is asked
        self._wanted: dict[str, float] = {}  # sessions whose images viewers want, and until when
        self._looked_at = -_VIEWER_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Poll from now on."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and the connections."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        for server in self._servers:
            server.source.close()

    def look(self, wanted: Sequence[str]) -> View:
        """Return what the page shows.

        Args:
            wanted: Names of sessions whose images the viewer wants from the next poll on; empty for the
                first ones that are worth a look.
        """
        now = self._clock()
        self._looked_at = now
        view = self._view
        for key in (wanted or view.watchable())[:MAX_WATCHED]:
            self._wanted[key] = now + _VIEWER_S
        return view

    def call(self, index: int, method: str, **params: Any) -> str:
        """Ask a server for a change, and return what went wrong in words, or nothing."""
        with self._lock:
            return self._servers[index].source.call(method, **params)

    def poll(self) -> View:
        """Ask every server once, and return what they said."""
        now = self._clock()
        self._wanted = {key: until for key, until in list(self._wanted.items()) if until > now}
        looked_at = now - self._looked_at < _VIEWER_S
        views = [self._poll_one(index, server, looked_at) for index, server in enumerate(self._servers)]
        evaluation = None if self._results is None else read_evaluation(self._results)
        self._view = View(tuple(views), evaluation, self._view.number + 1)
        return self._view

    def _poll_one(self, index: int, server: _Server, looked_at: bool) -> ServerView:
        prefix = f"{index + 1}: "
        wanted = [key[len(prefix) :] for key in self._wanted if key.startswith(prefix)][-MAX_WATCHED:]
        with self._lock:
            status = server.source.poll(wanted, log_lines=_LOG_LINES if looked_at else 0)
        now = self._clock()
        if "stats" in status:
            server.history.append((now, {**status["stats"], "load": status.get("load", {})}))
        if "sessions" in status:
            rows = {row["session"]: row for row in status["sessions"]}
            for name in set(server.rows) - set(rows):
                server.ended[name] = now, {**server.rows[name], "state": "ended"}
            server.rows = rows
        server.ended = {name: entry for name, entry in server.ended.items() if now - entry[0] < _ENDED_S}
        # Clients that only asked what the server is are no news.
        ended = tuple(row for _, row in server.ended.values() if row["steps"])
        return ServerView(server.source.name, status, tuple(server.history), ended)

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = self._clock()
            self.poll()
            self._stop.wait(max(PERIOD_S - (self._clock() - begun), 0.1))
