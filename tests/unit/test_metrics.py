"""What a server counts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from robowire.errors import error_types
from robowire.serving.histogram import SECONDS
from robowire.serving.metrics import WINDOW, Metrics
from robowire.version import __version__


def test_everything_starts_at_zero() -> None:
    assert Metrics(clock=lambda: 5.0).snapshot() == {
        "uptime_s": 0.0,
        "sessions_open": 0,
        "sessions": 0,
        "sessions_refused": 0,
        "simulators_replaced": 0,
        "simulators_started": 0,
        "simulators_ended": {},
        "requests": 0,
        "bytes_received": 0,
        "bytes_sent": 0,
        "errors": {},
        "batches": 0,
        "batch_size_mean": 0.0,
        "batch_size_max": 0,
        "batch_sizes": {},
        "frontends": {},
        "answers": [],
        "phases": [],
        "operations": {},
        "gauges": {},
    }


def test_what_happened_is_counted() -> None:
    metrics = Metrics(clock=itertools.count(10.0).__next__)
    metrics.session_opened("tcp")
    metrics.session_opened("tcp")
    metrics.session_closed("tcp")
    metrics.session_refused()
    metrics.simulator_started()
    metrics.simulator_ended("timeout")
    metrics.request(bytes_received=100, bytes_sent=20, frontend="tcp", method="infer", send_s=0.5)
    metrics.request(bytes_received=1, bytes_sent=2, frontend="http")
    metrics.error("spec_mismatch")
    metrics.batch([0.5])
    metrics.batch([0.5, 0.25, 0.25, 0.25])
    metrics.observe("infer", 0.25)
    metrics.answered("tcp", "infer", "ok", (0.25, 0.5, 1.0, 0.25))
    metrics.answered("tcp", "ping", "ok", (0.25, 0.5, 0.25))
    metrics.answered("tcp", "infer", "overloaded", (0.125,))
    metrics.gauge("queue_depth", "Waiting.", lambda: 3)
    assert metrics.snapshot() == {
        "uptime_s": 1.0,
        "sessions_open": 1,
        "sessions": 2,
        "sessions_refused": 1,
        "simulators_replaced": 0,
        "simulators_started": 1,
        "simulators_ended": {"timeout": 1},
        "requests": 2,
        "bytes_received": 101,
        "bytes_sent": 22,
        "errors": {"spec_mismatch": 1},
        "batches": 2,
        "batch_size_mean": 2.5,
        "batch_size_max": 4,
        "batch_sizes": {1: 1, 4: 1},
        "frontends": {
            "http": {"sessions_open": 0, "sessions": 0, "requests": 1, "bytes_received": 1, "bytes_sent": 2},
            "tcp": {
                "sessions_open": 1,
                "sessions": 2,
                "requests": 1,
                "bytes_received": 100,
                "bytes_sent": 20,
            },
        },
        "answers": [
            {"frontend": "tcp", "method": "infer", "outcome": "ok", "count": 1, "seconds": 2.0},
            {"frontend": "tcp", "method": "infer", "outcome": "overloaded", "count": 1, "seconds": 0.125},
            {"frontend": "tcp", "method": "ping", "outcome": "ok", "count": 1, "seconds": 1.0},
        ],
        "phases": [
            {"frontend": "tcp", "method": method, "phase": phase, "count": 1, "seconds": seconds}
            for method, phase, seconds in [
                ("infer", "decode", 0.25),
                ("infer", "encode", 0.25),
                ("infer", "infer", 1.0),
                ("infer", "send", 0.5),
                ("infer", "wait", 0.5),
                ("ping", "decode", 0.25),
                ("ping", "encode", 0.25),
                ("ping", "execute", 0.5),
            ]
        ],
        "operations": {
            "wait": {"count": 5, "p50_ms": 250.0, "p99_ms": 500.0},
            "infer": {"count": 1, "p50_ms": 250.0, "p99_ms": 250.0},
        },
        "gauges": {"queue_depth": 3},
    }


@pytest.mark.parametrize(("share", "milliseconds"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)])
def test_a_quantile_is_what_that_share_did_not_exceed(share: float, milliseconds: float) -> None:
    metrics = Metrics()
    for value in range(100, 0, -1):
        metrics.observe("infer", value / 1e3)
    assert metrics.quantile_ms("infer", share) == milliseconds


def test_a_quantile_of_nothing_is_zero() -> None:
    assert Metrics().quantile_ms("infer", 0.5) == 0.0


def test_quantiles_follow_the_latest_and_counts_keep_all() -> None:
    metrics = Metrics()
    metrics.observe("infer", 9.0)
    counts = [metrics.observe("infer", 0.001) for _ in range(WINDOW)]
    assert metrics.quantile_ms("infer", 1.0) == 1.0
    assert counts[-1] == WINDOW + 1


def test_prometheus_reads_counters_labels_and_quantiles() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    metrics.server = "policy"
    metrics.session_opened("tcp")
    metrics.request(bytes_received=12_345_678, bytes_sent=20, frontend="tcp")
    metrics.error("overloaded")
    metrics.observe("infer", 0.25)
    metrics.gauge("simulators_warm", "Ready.", lambda: {'a"b': 2}, label="simulator")
    lines = metrics.prometheus().splitlines()
    samples = [line for line in lines if not line.startswith(("#", "process_"))]
    assert samples == [
        f'robowire_build_info{{server="policy",version="{__version__}"}} 1',
        "robowire_uptime_seconds 0",
        'robowire_sessions_open{frontend="tcp"} 1',
        'robowire_sessions_total{frontend="tcp"} 1',
        'robowire_requests_total{frontend="tcp"} 1',
        'robowire_received_bytes_total{frontend="tcp"} 12345678',
        'robowire_sent_bytes_total{frontend="tcp"} 20',
        "robowire_sessions_refused_total 0",
        "robowire_simulators_replaced_total 0",
        "robowire_simulators_started_total 0",
        *(
            f'robowire_simulators_ended_total{{reason="{why}"}} 0'
            for why in ("died", "timeout", "client_left")
        ),
        *(
            f'robowire_errors_total{{error_type="{name}"}} {int(name == "overloaded")}'
            for name in sorted([*error_types(), "unreadable"])
        ),
        "robowire_batches_total 0",
        "robowire_batch_size_mean 0",
        *histogram("batch_size", (1, 2, 4, 8, 16, 32, 64, 128)),
        *histogram("queue_wait_seconds", SECONDS),
        *histogram("inference_seconds", SECONDS),
        'robowire_operation_seconds{operation="infer",quantile="0.5"} 0.25',
        'robowire_operation_seconds{operation="infer",quantile="0.99"} 0.25',
        'robowire_operation_seconds_count{operation="infer"} 1',
        'robowire_simulators_warm{simulator="a\\"b"} 2',
    ]
    assert lines[2:5] == [
        samples[0],
        "# HELP robowire_uptime_seconds Time since the server started.",
        "# TYPE robowire_uptime_seconds gauge",
    ]


def test_prometheus_reads_a_histogram_for_each_frontend_method_and_outcome() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    metrics.answered("tcp", "step", "ok", (0.0001, 0.002, 0.0001))
    metrics.answered("tcp", "step", "ok", (0.0001, 0.2, 0.0001))
    metrics.request(frontend="tcp", method="step", receive_s=70.0)
    text = metrics.prometheus()
    labels = 'frontend="tcp",method="step",outcome="ok"'
    assert f'robowire_request_seconds_bucket{{{labels},le="0.0025"}} 1\n' in text
    assert f'robowire_request_seconds_bucket{{{labels},le="+Inf"}} 2\n' in text
    assert f"robowire_request_seconds_sum{{{labels}}} 0.2024\n" in text
    labels = 'frontend="tcp",method="step",phase="receive"'
    assert f'robowire_request_phase_seconds_bucket{{{labels},le="60"}} 0\n' in text
    assert f"robowire_request_phase_seconds_count{{{labels}}} 1\n" in text


def test_this_process_is_described_by_the_names_that_others_use() -> None:
    lines = [line for line in Metrics().prometheus().splitlines() if line.startswith("process_")]
    usage = {name: float(value) for name, value in map(str.split, lines)}
    assert 1e6 < usage["process_resident_memory_bytes"] < usage["process_virtual_memory_bytes"]
    assert usage["process_cpu_seconds_total"] > 0
    assert usage["process_open_fds"] >= 3
    assert abs(time.time() - usage["process_start_time_seconds"]) < 24 * 3600


def test_what_many_threads_report_is_counted_once() -> None:
    metrics = Metrics()

    def report(_: int) -> None:
        for _ in range(500):
            metrics.answered("tcp", "infer", "ok", (0.0, 0.0, 0.0))
            metrics.batch([0.0])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(report, range(4)))
    counted = metrics.snapshot()
    assert (counted["answers"][0]["count"], counted["batches"]) == (2000, 2000)


def histogram(name: str, bounds: Sequence[float]) -> list[str]:
    """Lines of an empty histogram."""
    return [
        *(f'robowire_{name}_bucket{{le="{bound:g}"}} 0' for bound in bounds),
        f'robowire_{name}_bucket{{le="+Inf"}} 0',
        f"robowire_{name}_sum 0",
        f"robowire_{name}_count 0",
    ]
