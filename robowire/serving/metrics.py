"""What a server counts: totals, histograms, and how long the latest requests took. For any thread.

The names, units and labels of what it reports are in ``docs/operations.md``.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Union

import numpy as np

from robowire.errors import error_types
from robowire.serving.histogram import Histogram, labelled
from robowire.serving.process_usage import process_usage
from robowire.version import __version__

__all__ = ["Metrics"]

# Enough for a p99 that ten samples stand behind, and short enough to follow what a server does now.
WINDOW = 1000

# What happened is queued, without a lock, and counted when somebody asks or so many requests or answers wait:
# 256 are counted in 0.2 ms, most of it in numpy. Of what else is queued each request has a few.
_COUNT_AT = 256

# Upper bounds of the histogram of batch sizes.
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)

# Phases of a request that was answered, in their order, by the number of durations that are given.
_PHASES = {3: ("decode", "execute", "encode"), 4: ("decode", "wait", "infer", "encode")}

# Why a simulator's process ended during a call.
_REASONS = ("died", "timeout", "client_left")

K = TypeVar("K")
T = TypeVar("T")

# What a gauge reads: one number, or one for each value of its label.
Reading = Union[float, "Mapping[str, float]"]


class Metrics:
    """Counters, histograms, and a window of the latest durations of each operation: ``"infer"``, ``"step"``.

    Args:
        clock: Seconds, monotonic; tests pass their own.

    Attributes:
        server: ``"policy"``, ``"simulator"`` or ``"fleet"``, for ``robowire_build_info``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.server = ""
        self._clock = clock
        self._started = clock()
        # Written by any thread: appending is atomic. Each entry is a key, and what is counted under it.
        self._new_requests: deque[tuple[tuple[str, str], tuple[int, int, float | None, float | None]]] = (
            deque()
        )
        self._new_answers: deque[tuple[tuple[str, str, str], tuple[float, ...]]] = deque()
        self._new_operations: deque[tuple[str, float]] = deque()
        self._new_phases: deque[tuple[tuple[str, str, str], float]] = deque()
        self._new_batches: deque[tuple[Sequence[float], float | None]] = deque()
        self._numbers: dict[str, itertools.count[int]] = {}
        self._gauges: dict[str, tuple[str, str, Callable[[], Reading]]] = {}
        self._lock = threading.Lock()  # guards what follows
        self._totals: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._durations: dict[str, deque[float]] = {}
        self._operations: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._open: Counter[str] = Counter()
        self._sessions: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._answers: defaultdict[tuple[str, str, str], Histogram] = defaultdict(Histogram)
        self._phases: defaultdict[tuple[str, str, str], Histogram] = defaultdict(Histogram)
        self._waits, self._inferences = Histogram(), Histogram()

    # -- what happens ----------------------------------------------------------------------------------------

    def session_opened(self, frontend: str = "") -> None:
        """Count a connection that was taken."""
        with self._lock:
            self._open[frontend] += 1
            self._sessions[frontend] += 1

    def session_closed(self, frontend: str = "") -> None:
        """Count the end of one."""
        with self._lock:
            self._open[frontend] -= 1

    def session_refused(self) -> None:
        """Count a connection that was turned away because the server is full."""
        with self._lock:
            self._totals["sessions_refused"] += 1

    def simulator_replaced(self) -> None:
        """Count a simulator's process that held too much memory and was replaced."""
        with self._lock:
            self._totals["simulators_replaced"] += 1

    def simulator_started(self) -> None:
        """Count a simulator's process that was started."""
        with self._lock:
            self._totals["simulators_started"] += 1

    def simulator_ended(self, reason: str) -> None:
        """Count a simulator's process that ended during a call: it died, or a timeout or its client did it.

        Args:
            reason: ``"died"``, ``"timeout"`` or ``"client_left"``.
        """
        with self._lock:
            self._ended[reason] += 1

    def request(
        self,
        *,
        bytes_received: int = 0,
        bytes_sent: int = 0,
        frontend: str = "",
        method: str = "",
        receive_s: float | None = None,
        send_s: float | None = None,
    ) -> None:
        """Count a request that was answered, where its frontend has sent the reply.

        Args:
            bytes_received: Bytes of the request.
            bytes_sent: Bytes of the reply.
            frontend: Name of the wire.
            method: Name of the method, one of the service's own.
            receive_s: Seconds from the first byte of the request to its last; ``None`` where unknown.
            send_s: Seconds that sending took; ``None`` where unknown.
        """
        self._new_requests.append(((frontend, method), (bytes_received, bytes_sent, receive_s, send_s)))
        if len(self._new_requests) >= _COUNT_AT:
            self._count_soon()

    def answered(self, frontend: str, method: str, outcome: str, seconds: tuple[float, ...]) -> None:
        """Count a request that a service answered.

        Args:
            frontend: Name of the wire.
            method: Name of the method, one of the service's own: each name costs memory for good.
            outcome: ``"ok"``, or the error's code on the wire.
            seconds: Of a request that went well its phases: (decode, execute, encode), or of an inference
                (decode, wait, infer, encode). Of another one the whole: (seconds,).
        """
        self._new_answers.append(((frontend, method, outcome), seconds))
        if len(self._new_answers) >= _COUNT_AT:
            self._count_soon()

    def phase(self, frontend: str, method: str, phase: str, seconds: float) -> None:
        """Count a phase of a request that is in no call of :meth:`request` and :meth:`answered`.

        Args:
            frontend: Name of the wire.
            method: Name of the method, one of the service's own.
            phase: ``"receive"``, ``"send"``, ...
            seconds: Its duration.
        """
        self._new_phases.append(((frontend, method, phase), seconds))

    def error(self, error_type: str) -> None:
        """Count an error, by its code on the wire, or ``unreadable`` for a payload that got no answer."""
        with self._lock:
            self._errors[error_type] += 1

    def batch(self, waited_s: Sequence[float], infer_s: float | None = None) -> None:
        """Count a batch that the device worked on.

        Args:
            waited_s: For each of its observations, the seconds that it waited for the device.
            infer_s: Seconds that the policy took for the batch; ``None`` where they are not known.
        """
        self._new_batches.append((waited_s, infer_s))

    def observe(self, operation: str, seconds: float) -> int:
        """Record the duration of an operation, and return how often it was done so far."""
        numbers = self._numbers.get(operation) or self._numbers.setdefault(operation, itertools.count(1))
        self._new_operations.append((operation, seconds))
        return next(numbers)

    def gauge(self, name: str, text: str, read: Callable[[], Reading], *, label: str = "") -> None:
        """Report a number that is read when somebody asks.

        Args:
            name: Without ``robowire_``; its unit ends it.
            text: What it is, one line.
            read: Returns it, or with ``label`` a number for each value of the label. Called from any thread.
            label: Name of the label.
        """
        self._gauges[name] = (text, label, read)

    # -- counting --------------------------------------------------------------------------------------------

    def _count_soon(self) -> None:
        # Who finds it held need not wait: the holder counts, or the next one does.
        if self._lock.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._lock.release()

    def _count(self) -> None:
        """Count what is queued; the lock is held."""
        phases: defaultdict[tuple[str, str, str], list[float]] = _grouped(self._new_phases)
        for (frontend, method), rows in _grouped(self._new_requests).items():
            received, sent, receive_s, send_s = zip(*rows)
            self._requests[frontend] += len(rows)
            self._received[frontend] += sum(received)
            self._sent[frontend] += sum(sent)
            self._totals["requests"] += len(rows)
            self._totals["bytes_received"] += sum(received)
            self._totals["bytes_sent"] += sum(sent)
            for phase, durations in (("receive", receive_s), ("send", send_s)):
                phases[frontend, method, phase] += [each for each in durations if each is not None]
        for (frontend, method, outcome), answers in _grouped(self._new_answers).items():
            for columns in set(map(len, answers)):
                table = np.array([seconds for seconds in answers if len(seconds) == columns])
                self._answers[frontend, method, outcome].add(table.sum(1))
                for phase, column in zip(_PHASES.get(columns, ()), table.T):
                    self._phases[frontend, method, phase].add(column)
        for key, values in phases.items():
            if values:
                self._phases[key].add(values)
        for operation, latest in _grouped(self._new_operations).items():
            self._window(operation).extend(latest)
            self._operations[operation] += len(latest)
        waits: list[float] = []
        inferences: list[float] = []
        for waited_s, infer_s in _taken(self._new_batches):
            self._batches[len(waited_s)] += 1
            waits.extend(waited_s)
            if infer_s is not None:
                inferences.append(infer_s)
        if waits:
            self._window("wait").extend(waits)
            self._operations["wait"] += len(waits)
            self._waits.add(waits)
        if inferences:
            self._inferences.add(inferences)

    def _window(self, operation: str) -> deque[float]:
        window = self._durations.get(operation)
        if window is None:
            window = self._durations[operation] = deque(maxlen=WINDOW)
        return window

    # -- what was counted ------------------------------------------------------------------------------------

    def quantile_ms(self, operation: str, share: float) -> float:
        """Return the milliseconds that ``share`` of the latest operations did not exceed; 0 without any."""
        with self._lock:
            self._count()
            durations = sorted(self._durations.get(operation, ()))
        return _quantile(durations, share) * 1e3

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain data, for ``stats`` and ``STATS``."""
        gauges = self._read_gauges()
        with self._lock:
            self._count()
            batches = sum(self._batches.values())
            rows = sum(size * count for size, count in self._batches.items())
            result = {
                "uptime_s": round(self._clock() - self._started, 3),
                "sessions_open": sum(self._open.values()),
                "sessions": sum(self._sessions.values()),
                **{
                    name: self._totals[name]
                    for name in (
                        "sessions_refused",
                        "simulators_replaced",
                        "simulators_started",
                        "requests",
                        "bytes_received",
                        "bytes_sent",
                    )
                },
                "simulators_ended": dict(self._ended),
                "errors": dict(self._errors),
                "batches": batches,
                "batch_size_mean": round(rows / batches, 3) if batches else 0.0,
                "batch_size_max": max(self._batches, default=0),
                "batch_sizes": dict(sorted(self._batches.items())),
                "frontends": {
                    name: {
                        "sessions_open": self._open[name],
                        "sessions": self._sessions[name],
                        "requests": self._requests[name],
                        "bytes_received": self._received[name],
                        "bytes_sent": self._sent[name],
                    }
                    for name in sorted({*self._sessions, *self._requests})
                },
                "answers": [
                    {"frontend": frontend, "method": method, "outcome": outcome, **_summed(histogram)}
                    for (frontend, method, outcome), histogram in sorted(self._answers.items())
                ],
                "phases": [
                    {"frontend": frontend, "method": method, "phase": phase, **_summed(histogram)}
                    for (frontend, method, phase), histogram in sorted(self._phases.items())
                ],
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
        result["gauges"] = {
            name: dict(value) if isinstance(value, Mapping) else value for name, value in gauges.items()
        }
        return result

    def prometheus(self) -> str:
        """Return everything in Prometheus' text format (version 0.0.4)."""
        now, usage = self.snapshot(), process_usage()
        # Those that did not happen too: of a series that begins with 1, increase() sees no increase.
        errors = sorted({*error_types(), "unreadable", *now["errors"]})
        text = _Text()
        text.family(
            "robowire_build_info",
            "gauge",
            "Always 1; the labels say which server this is.",
            {labelled({"server": self.server, "version": __version__}): 1},
        )
        text.family("robowire_uptime_seconds", "gauge", "Time since the server started.", now["uptime_s"])
        frontends = now["frontends"]
        for name, key, kind, help_text in (
            ("sessions_open", "sessions_open", "gauge", "Sessions that are open now."),
            ("sessions_total", "sessions", "counter", "Sessions that were opened."),
            ("requests_total", "requests", "counter", "Requests that were answered."),
            ("received_bytes_total", "bytes_received", "counter", "Size of the requests."),
            ("sent_bytes_total", "bytes_sent", "counter", "Size of the replies."),
        ):
            values = {labelled({"frontend": one}): counted[key] for one, counted in frontends.items()}
            text.family(f"robowire_{name}", kind, help_text, values)
        for name, help_text in (
            ("sessions_refused", "Connections turned away, the server being full."),
            ("simulators_replaced", "Simulator processes replaced because of the memory they held."),
            ("simulators_started", "Simulator processes started."),
        ):
            text.family(f"robowire_{name}_total", "counter", help_text, now[name])
        text.family(
            "robowire_simulators_ended_total",
            "counter",
            "Simulator processes that ended during a call, by the reason.",
            {labelled({"reason": reason}): now["simulators_ended"].get(reason, 0) for reason in _REASONS},
        )
        text.family(
            "robowire_errors_total",
            "counter",
            "Errors, by their code on the wire.",
            {labelled({"error_type": name}): now["errors"].get(name, 0) for name in errors},
        )
        text.family("robowire_batches_total", "counter", "Batches the policy worked on.", now["batches"])
        text.family(
            "robowire_batch_size_mean",
            "gauge",
            "Observations in a batch, on average since the start.",
            now["batch_size_mean"],
        )
        sizes = Histogram(_BATCH_BOUNDS)
        sizes.add_counts(now["batch_sizes"])
        with self._lock:
            text.histograms("robowire_batch_size", "Observations in a batch.", [({}, sizes)])
            text.histograms(
                "robowire_queue_wait_seconds", "Time of an observation in the queue.", [({}, self._waits)]
            )
            text.histograms(
                "robowire_inference_seconds",
                "Time of the policy for one batch, of any size.",
                [({}, self._inferences)],
            )
            for name, label, help_text, histograms in (
                (
                    "robowire_request_seconds",
                    "outcome",
                    "Time of a request from its complete reception to its encoded reply.",
                    self._answers,
                ),
                (
                    "robowire_request_phase_seconds",
                    "phase",
                    "Time of a request in each phase.",
                    self._phases,
                ),
            ):
                text.histograms(
                    name,
                    help_text,
                    [
                        ({"frontend": frontend, "method": method, label: value}, histogram)
                        for (frontend, method, value), histogram in sorted(histograms.items())
                    ],
                )
        text.family(
            "robowire_operation_seconds",
            "summary",
            "Time of the latest operations.",
            {
                labelled({"operation": name, "quantile": share}): operation[key] / 1e3
                for name, operation in now["operations"].items()
                for share, key in (("0.5", "p50_ms"), ("0.99", "p99_ms"))
            },
        )
        text.samples(
            "robowire_operation_seconds_count",
            {labelled({"operation": name}): each["count"] for name, each in now["operations"].items()},
        )
        for name, value in now["gauges"].items():
            help_text, label, _ = self._gauges[name]
            samples = (
                {labelled({label: key}): number for key, number in value.items()}
                if isinstance(value, Mapping)
                else value
            )
            text.family(f"robowire_{name}", "gauge", help_text, samples)
        for name, help_text in _USAGE.items():
            if name in usage:
                kind = "counter" if name.endswith("_total") else "gauge"
                text.family(f"process_{name}", kind, help_text, usage[name])
        return str(text)

    def _read_gauges(self) -> dict[str, Reading]:
        return {name: read() for name, (_, _, read) in list(self._gauges.items())}


# Names and meanings are those of Prometheus' own client libraries, so that existing dashboards show them.
_USAGE = {
    "cpu_seconds_total": "User and system time of the server's own process.",
    "resident_memory_bytes": "Resident memory of the server's own process.",
    "virtual_memory_bytes": "Virtual memory of the server's own process.",
    "start_time_seconds": "When the process started, as Unix time.",
    "open_fds": "Open file descriptors.",
    "max_fds": "Most file descriptors that may be open.",
    "threads": "Threads of Python.",
}


class _Text:
    """Families of metrics, one after the other."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def family(self, name: str, kind: str, text: str, samples: float | Mapping[str, float]) -> None:
        """Append a family: one number, or one for each set of labels. One without samples is left out."""
        samples = samples if isinstance(samples, Mapping) else {"": samples}
        if samples:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            self.samples(name, samples)

    def samples(self, name: str, samples: Mapping[str, float]) -> None:
        self._lines += [f"{name}{labels} {_number(value)}" for labels, value in samples.items()]

    def histograms(
        self, name: str, text: str, histograms: Iterable[tuple[dict[str, str], Histogram]]
    ) -> None:
        lines = [line for labels, histogram in histograms for line in histogram.lines(name, labels)]
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram", *lines]


def _number(value: float) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _summed(histogram: Histogram) -> dict[str, float]:
    return {"count": histogram.count, "seconds": round(histogram.sum, 6)}


def _taken(events: deque[T]) -> Iterable[T]:
    """Take out what is queued now; more may be appended meanwhile."""
    return [events.popleft() for _ in range(len(events))]


def _grouped(events: deque[tuple[K, T]]) -> defaultdict[K, list[T]]:
    """Take out what is queued now, and return it by its keys."""
    groups: defaultdict[K, list[T]] = defaultdict(list)
    for key, value in _taken(events):
        groups[key].append(value)
    return groups


def _quantile(ordered: list[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    if not ordered:
        return 0.0
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
