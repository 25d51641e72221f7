"""A histogram with fixed bounds, and its lines in Prometheus' text format. For one thread at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

__all__ = ["SECONDS", "Histogram", "labelled"]

# Upper bounds in seconds: reading a small request takes 0.05 ms, loading LIBERO's first task a minute.
SECONDS = (
    *(5e-05, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Histogram:
    """How many values were at most each bound, and their sum.

    Args:
        bounds: Upper bounds, ascending; values above the last one are counted too.

    Attributes:
        count: Number of values.
        sum: Their sum.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = np.array(bounds, np.float64)
        self._names = [f"{bound:g}" for bound in bounds]
        self._counts = np.zeros(len(bounds) + 1, np.int64)  # of each bucket alone
        self.count = 0
        self.sum = 0.0

    def add(self, values: Sequence[float] | np.ndarray) -> None:
        """Count values."""
        array = np.asarray(values, np.float64)
        self._counts += np.bincount(np.searchsorted(self._bounds, array), minlength=len(self._counts))
        self.count += array.size
        self.sum += float(array.sum())

    def add_counts(self, counts: Mapping[int, int]) -> None:
        """Count each value as often as it is said to have come."""
        for value, count in counts.items():
            self._counts[np.searchsorted(self._bounds, value)] += count
            self.count += count
            self.sum += value * count

    def lines(self, name: str, labels: dict[str, str]) -> Iterator[str]:
        """Yield ``_bucket``, ``_sum`` and ``_count`` of the metric ``name``."""
        bucket = 0
        for bound, count in zip((*self._names, "+Inf"), self._counts.tolist()):
            bucket += count
            yield f"{name}_bucket{labelled({**labels, 'le': bound})} {bucket}"
        yield f"{name}_sum{labelled(labels)} {self.sum:.9g}"
        yield f"{name}_count{labelled(labels)} {self.count}"


def labelled(labels: dict[str, str]) -> str:
    """Return labels as Prometheus reads them, ``""`` for none."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
