"""``ping``: measure round trips to a server. Runs on Python 3.8."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robowire.cli.command import Program
from robowire.cli.connection_flags import ConnectionFlags, at_least, open_server_client

__all__ = ["PingFlags", "quantiles", "run"]


@dataclass(frozen=True)
class PingFlags(ConnectionFlags):
    """Flags of ``ping``.

    Attributes:
        count: Round trips.
    """

    count: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, count=self.count)


def run(flags: PingFlags, program: Program) -> int:
    """Print every round trip and a summary."""
    times = []
    with open_server_client(flags) as client:
        for _ in range(flags.count):
            times.append(client.ping())
            sys.stdout.write(f"reply from {flags.host}:{flags.port} in {times[-1] * 1e3:.3f} ms\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(times)} round trips: min {min(times) * 1e3:.3f} ms, {quantiles(times, 50, 99)}\n")
    return 0


def quantiles(seconds: Sequence[float], *shares: int) -> str:
    """Return ``p50 1.20 ms, p99 3.40 ms`` for the shares 50 and 99."""
    values = np.percentile(seconds, shares) * 1e3
    return ", ".join(f"p{share} {value:.2f} ms" for share, value in zip(shares, values))
