"""What a server counts."""

from __future__ import annotations

import itertools

import pytest

from robowire.serving.metrics import WINDOW, Metrics


def test_everything_starts_at_zero() -> None:
    assert Metrics(clock=lambda: 5.0).snapshot() == {
        "uptime_s": 0.0,
        "sessions_open": 0,
        "sessions": 0,
        "sessions_refused": 0,
        "simulators_replaced": 0,
        "requests": 0,
        "bytes_received": 0,
        "bytes_sent": 0,
        "errors": {},
        "batches": 0,
        "batch_size_mean": 0.0,
        "batch_size_max": 0,
        "batch_sizes": {},
        "operations": {},
    }


def test_what_happened_is_counted() -> None:
    metrics = Metrics(clock=itertools.count(10.0).__next__)
    metrics.session_opened()
    metrics.session_opened()
    metrics.session_closed()
    metrics.session_refused()
    metrics.request(bytes_received=100, bytes_sent=20)
    metrics.request(bytes_received=1, bytes_sent=2)
    metrics.error("spec_mismatch")
    metrics.batch([0.5])
    metrics.batch([0.5, 0.25, 0.25, 0.25])
    metrics.observe("infer", 0.25)
    assert metrics.snapshot() == {
        "uptime_s": 1.0,
        "sessions_open": 1,
        "sessions": 2,
        "sessions_refused": 1,
        "simulators_replaced": 0,
        "requests": 2,
        "bytes_received": 101,
        "bytes_sent": 22,
        "errors": {"spec_mismatch": 1},
        "batches": 2,
        "batch_size_mean": 2.5,
        "batch_size_max": 4,
        "batch_sizes": {1: 1, 4: 1},
        "operations": {
            "wait": {"count": 5, "p50_ms": 250.0, "p99_ms": 500.0},
            "infer": {"count": 1, "p50_ms": 250.0, "p99_ms": 250.0},
        },
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
    metrics.request(bytes_received=12_345_678, bytes_sent=20)
    metrics.error("overloaded")
    metrics.observe("infer", 0.25)
    lines = metrics.prometheus().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "robowire_uptime_seconds 0",
        "robowire_sessions_open 0",
        "robowire_sessions_total 0",
        "robowire_sessions_refused_total 0",
        "robowire_simulators_replaced_total 0",
        "robowire_requests_total 1",
        "robowire_received_bytes_total 12345678",
        "robowire_sent_bytes_total 20",
        'robowire_errors_total{error_type="overloaded"} 1',
        "robowire_batches_total 0",
        "robowire_batch_size_mean 0",
        *(f'robowire_batch_size_bucket{{le="{bound}"}} 0' for bound in (1, 2, 4, 8, 16, 32, 64, 128)),
        'robowire_batch_size_bucket{le="+Inf"} 0',
        "robowire_batch_size_sum 0",
        "robowire_batch_size_count 0",
        'robowire_operation_seconds{operation="infer",quantile="0.5"} 0.25',
        'robowire_operation_seconds{operation="infer",quantile="0.99"} 0.25',
        'robowire_operation_seconds_count{operation="infer"} 1',
    ]
    assert lines[:2] == [
        "# HELP robowire_uptime_seconds Seconds since the server started.",
        "# TYPE robowire_uptime_seconds gauge",
    ]
