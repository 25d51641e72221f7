"""What a server counts: totals, and how long the latest requests took. For any thread."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Metrics"]

# Enough for a p99 that ten samples stand behind, and short enough to follow what a server does now.
WINDOW = 1000

# What happened is queued, without a lock, and counted when somebody asks or so many wait.
_COUNT_AT = 256

# Upper bounds of the histogram of batch sizes.
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, and a window of the latest durations for each operation (``"infer"``, ``"step"``).

    Args:
        clock: Seconds, monotonic; tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        # Written by any thread: appending is atomic. A tuple (bytes_received, bytes_sent) is a request,
        # (operation, seconds) an operation, and a list the waits of a batch.
        self._pending: deque[tuple[int, int] | tuple[str, float] | list[float]] = deque()
        self._numbers: dict[str, itertools.count[int]] = {}
        self._lock = threading.Lock()  # guards what follows
        self._totals: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._durations: dict[str, deque[float]] = {}
        self._operations: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._open = 0

    def session_opened(self) -> None:
        """Count a connection that was taken."""
        with self._lock:
            self._open += 1
            self._totals["sessions"] += 1

    def session_closed(self) -> None:
        """Count the end of one."""
        with self._lock:
            self._open -= 1

    def session_refused(self) -> None:
        """Count a connection that was turned away because the server is full."""
        with self._lock:
            self._totals["sessions_refused"] += 1

    def simulator_replaced(self) -> None:
        """Count a simulator's process that held too much memory and was replaced."""
        with self._lock:
            self._totals["simulators_replaced"] += 1

    def request(self, *, bytes_received: int = 0, bytes_sent: int = 0) -> None:
        """Count a request that was answered."""
        self._count_later((bytes_received, bytes_sent))

    def error(self, error_type: str) -> None:
        """Count an error, by its code on the wire, or ``unreadable`` for a payload that got no answer."""
        with self._lock:
            self._errors[error_type] += 1

    def batch(self, waited_s: Sequence[float]) -> None:
        """Count a batch that the device worked on.

        Args:
            waited_s: For each of its observations, the seconds that it waited for the device.
        """
        self._count_later([*waited_s])

    def observe(self, operation: str, seconds: float) -> int:
        """Record the duration of an operation, and return how often it was done so far."""
        numbers = self._numbers.get(operation) or self._numbers.setdefault(operation, itertools.count(1))
        self._count_later((operation, seconds))
        return next(numbers)

    def _count_later(self, event: tuple[int, int] | tuple[str, float] | list[float]) -> None:
        self._pending.append(event)
        if len(self._pending) >= _COUNT_AT:
            with self._lock:
                self._count()

    def _count(self) -> None:
        """Count what is queued; the lock is held."""
        totals, pending = self._totals, self._pending
        for _ in range(len(pending)):
            event = pending.popleft()
            if isinstance(event, list):
                self._batches[len(event)] += 1
                self._window("wait").extend(event)
                self._operations["wait"] += len(event)
            elif isinstance(event[0], str):
                self._window(event[0]).append(event[1])
                self._operations[event[0]] += 1
            else:
                totals["requests"] += 1
                totals["bytes_received"] += event[0]
                totals["bytes_sent"] += int(event[1])

    def _window(self, operation: str) -> deque[float]:
        window = self._durations.get(operation)
        if window is None:
            window = self._durations[operation] = deque(maxlen=WINDOW)
        return window

    def quantile_ms(self, operation: str, share: float) -> float:
        """Return the milliseconds that ``share`` of the latest operations did not exceed; 0 without any."""
        with self._lock:
            self._count()
            durations = sorted(self._durations.get(operation, ()))
        return _quantile(durations, share) * 1e3

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain data, for ``stats`` and ``STATS``."""
        with self._lock:
            self._count()
            batches = sum(self._batches.values())
            rows = sum(size * count for size, count in self._batches.items())
            result = {
                "uptime_s": round(self._clock() - self._started, 3),
                "sessions_open": self._open,
                **{
                    name: self._totals[name]
                    for name in (
                        "sessions",
                        "sessions_refused",
                        "simulators_replaced",
                        "requests",
                        "bytes_received",
                        "bytes_sent",
                    )
                },
                "errors": dict(self._errors),
                "batches": batches,
                "batch_size_mean": round(rows / batches, 3) if batches else 0.0,
                "batch_size_max": max(self._batches, default=0),
                "batch_sizes": dict(sorted(self._batches.items())),
            }
            counts, windows = dict(self._operations), {name: sorted(d) for name, d in self._durations.items()}
        result["operations"] = {
            name: {
                "count": counts[name],
                "p50_ms": round(_quantile(durations, 0.5) * 1e3, 3),
                "p99_ms": round(_quantile(durations, 0.99) * 1e3, 3),
            }
            for name, durations in windows.items()
        }
        return result

    def prometheus(self) -> str:
        """Return everything in Prometheus' text format (version 0.0.4)."""
        now = self.snapshot()
        lines: list[str] = []

        def family(name: str, kind: str, text: str, samples: dict[str, float]) -> None:
            lines.extend((f"# HELP robowire_{name} {text}", f"# TYPE robowire_{name} {kind}"))
            lines.extend(
                f"robowire_{name}{labels} {value:g}"
                if isinstance(value, float)
                else f"robowire_{name}{labels} {value}"
                for labels, value in samples.items()
            )

        family("uptime_seconds", "gauge", "Seconds since the server started.", {"": now["uptime_s"]})
        family("sessions_open", "gauge", "Connections now open.", {"": now["sessions_open"]})
        family("sessions_total", "counter", "Connections taken.", {"": now["sessions"]})
        family(
            "sessions_refused_total",
            "counter",
            "Connections turned away, the server being full.",
            {"": now["sessions_refused"]},
        )
        family(
            "simulators_replaced_total",
            "counter",
            "Simulator processes replaced because of the memory they held.",
            {"": now["simulators_replaced"]},
        )
        family("requests_total", "counter", "Requests answered.", {"": now["requests"]})
        family("received_bytes_total", "counter", "Bytes of requests.", {"": now["bytes_received"]})
        family("sent_bytes_total", "counter", "Bytes of replies.", {"": now["bytes_sent"]})
        family(
            "errors_total",
            "counter",
            "Errors, by their code on the wire.",
            {f'{{error_type="{name}"}}': count for name, count in now["errors"].items()},
        )
        family("batches_total", "counter", "Batches the device worked on.", {"": now["batches"]})
        family(
            "batch_size_mean", "gauge", "Observations in a batch, on average.", {"": now["batch_size_mean"]}
        )
        sizes = now["batch_sizes"]
        family(
            "batch_size",
            "histogram",
            "Observations in a batch.",
            {
                **{
                    f'_bucket{{le="{bound}"}}': sum(n for size, n in sizes.items() if size <= bound)
                    for bound in _BATCH_BOUNDS
                },
                '_bucket{le="+Inf"}': now["batches"],
                "_sum": sum(size * n for size, n in sizes.items()),
                "_count": now["batches"],
            },
        )
        latencies: dict[str, float] = {}
        for name, operation in now["operations"].items():
            for share, key in (("0.5", "p50_ms"), ("0.99", "p99_ms")):
                latencies[f'{{operation="{name}",quantile="{share}"}}'] = operation[key] / 1e3
        family("operation_seconds", "summary", "Durations of the latest operations.", latencies)
        lines.extend(
            f'robowire_operation_seconds_count{{operation="{name}"}} {operation["count"]}'
            for name, operation in now["operations"].items()
        )
        return "\n".join(lines) + "\n"


def _quantile(ordered: list[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    if not ordered:
        return 0.0
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
