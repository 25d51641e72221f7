"""What reading one payload costs: by a template, in full, and by ``pickle.loads``, in turns in one run.

    python perf/pickle_reader.py

Prints the median of each, in microseconds of CPU time, and ratios: above 1, the template is faster. The last
column is what making a template takes, once.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import benchmark.base  # noqa: F401  pickle.loads looks the records up there
from robowire.chunking import ActionChunk
from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.templates import TemplateReader, _template
from robowire.wire.pickle.writer import encode


def payloads() -> dict[str, bytes]:
    """Return what plain clients and servers send."""
    rng = np.random.default_rng(0)
    rows = rng.random((64, 14), dtype=np.float32)
    image = rng.integers(0, 255, (1, 3, 224, 224), np.uint8)
    observation = MetaObs(state=rows[0], image=image, raw_lang="lift the cube", timestep=7)
    actions = [MetaAction("joint", "absolute", row) for row in rows]
    return {
        "observation S, pickle.dumps": pickle.dumps(observation),
        "observation S, protocol 5": pickle.dumps(observation, 5),
        "ACT dialect S": pickle.dumps({"qpos": rows[0].tolist(), "images": {"front": image[0]}}),
        "64 MetaAction, pickle.dumps": pickle.dumps(actions),
        "64 MetaAction, our server": b"".join(
            encode(ActionChunk(rows, ctrl_space="joint", ctrl_type="absolute"))
        ),
    }


def measure(readers: dict[str, Callable[[bytearray], Any]], payload: bytes, rounds: int) -> dict[str, float]:
    """Return the median CPU time of each reader, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, reader in readers.items():
            given = bytearray(payload)  # as it was received: a copy that no time is counted for
            begun = time.thread_time_ns()
            value = reader(given)
            times[name].append((time.thread_time_ns() - begun) / 1000)
            del value
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> int:
    """Print the table and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    print(f"{'':30}{'template':>10}{'full':>10}{'pickle':>10}{'x full':>8}{'x pickle':>10}{'making':>9}")
    for name, payload in payloads().items():
        reader = TemplateReader()
        for _ in range(2):
            reader.loads(bytearray(payload))
        found = measure({"template": reader.loads, "full": loads, "pickle": pickle.loads}, payload, rounds)
        making = measure({"making": _template}, payload, 5)["making"]
        print(
            f"{name:30}{found['template']:10.1f}{found['full']:10.1f}{found['pickle']:10.1f}"
            f"{found['full'] / found['template']:8.1f}{found['pickle'] / found['template']:10.2f}"
            f"{making:9.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
