"""What traces cost: CPU time of a request, client and server together, with and without spans.

Three servers of one policy in this process, each with a client, take turns: one without traces, one whose
spans are dropped by the sampler (``OTEL_TRACES_SAMPLER=always_off``), and one whose spans go to a collector,
which runs here too and reads nothing. Its own time, and that of sending to it, counts as that of the third.

    python perf/tracing.py
    python perf/tracing.py --rounds 20 --requests 500

Prints medians of the rounds, and ratios to the first. Needs the extra ``otel``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from robowire import MetaObs, PolicyClient
from robowire.testing import EchoPolicy, running_server
from robowire.tracing.export import traced


class _Discarding(BaseHTTPRequestHandler):
    """Answers every request with nothing."""

    def do_POST(self) -> None:
        """Take the spans."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@contextmanager
def collector() -> Iterator[str]:
    """Run a collector and return its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Discarding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=300, help="of each round and way")
    flags = parser.parse_args()
    seen = MetaObs(state=np.zeros(3, np.float32), image=np.zeros((1, 3, 224, 224), np.uint8), timestep=0)
    with ExitStack() as running:
        address = running.enter_context(collector())
        clients: dict[str, PolicyClient] = {}
        for name, sampler in (
            ("without traces", ""),
            ("not sampled", "always_off"),
            ("sampled", "always_on"),
        ):
            if sampler:
                os.environ["OTEL_TRACES_SAMPLER"] = sampler
                # Two at a time: clients and servers keep the one that was active when they were made.
                running.enter_context(traced("otlp", service="perf", endpoint=address))
            server = running.enter_context(running_server(EchoPolicy(state_dim=3)))
            clients[name] = running.enter_context(PolicyClient(*server.address))
            for _ in range(50):
                clients[name].infer(seen)
        taken: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(flags.rounds):
            for name, client in clients.items():
                begun = time.process_time()
                for _ in range(flags.requests):
                    client.infer(seen)
                taken[name].append((time.process_time() - begun) / flags.requests * 1e6)
    first = statistics.median(taken["without traces"])
    for name, values in taken.items():
        middle = statistics.median(values)
        print(f"{name:15} {middle:7.0f} us of CPU a request, ratio {middle / first:.2f}")


if __name__ == "__main__":
    main()
