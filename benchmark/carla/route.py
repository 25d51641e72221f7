"""A route as places on the road, and how far along it a car has come. No simulator in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Route", "follow"]

T = TypeVar("T")

# A car that took part of a bend off the lane may be nearer to a later place than to the next one; one at a
# crossing must not be taken for one that has been round the block.
_LOOK_AHEAD = 10  # places


def follow(start: T, after: Callable[[T], Sequence[T]], rng: np.random.Generator, *, count: int) -> list[T]:
    """Return ``count`` places from ``start`` on, or fewer where the road ends; forks are drawn.

    Args:
        start: The first place.
        after: What can be driven to next; at a fork several.
        rng: Draws which.
        count: At least 1.
    """
    places = [start]
    while len(places) < count:
        choices = after(places[-1])
        if not choices:
            break
        # No draw where there is no choice: a road's length does not decide the next fork.
        places.append(choices[0] if len(choices) == 1 else choices[int(rng.integers(len(choices)))])
    return places


class Route:
    """Places to drive along, in order.

    Args:
        places: (n, 3), metres in the world; at least one.

    Attributes:
        places: As given, float64.
        passed: Index of the place that the car reached last.
    """

    def __init__(self, places: np.ndarray) -> None:
        self.places = np.array(places, np.float64)
        self.passed = 0
        steps = np.linalg.norm(np.diff(self.places, axis=0), axis=1)
        self._metres = np.concatenate([[0.0], np.cumsum(steps)])

    @property
    def length(self) -> float:
        """Metres from the first place to the last."""
        return float(self._metres[-1])

    @property
    def driven(self) -> float:
        """Metres from the first place to the one that was reached last."""
        return float(self._metres[self.passed])

    def advance(self, location: np.ndarray) -> float:
        """Note where the car is and return how many metres it is from the route. It never goes back."""
        near = self.places[self.passed : self.passed + _LOOK_AHEAD]
        distances = np.linalg.norm(near[:, :2] - np.asarray(location)[:2], axis=1)
        nearest = int(distances.argmin())
        self.passed += nearest
        return float(distances[nearest])

    def to_goal(self, location: np.ndarray) -> float:
        """Return metres from the last place, as the crow flies."""
        return float(np.linalg.norm(self.places[-1, :2] - np.asarray(location)[:2]))

    def next_places(self, count: int) -> np.ndarray:
        """Return the next (count, 3) places; the last one again where there are no more."""
        indices = np.minimum(np.arange(self.passed + 1, self.passed + 1 + count), len(self.places) - 1)
        return self.places[indices]
