"""When a policy process that ended is started again. Pure: the clock is passed in."""

from __future__ import annotations

__all__ = ["Restarts"]

# A single crash costs no pause. One that repeats, of a checkpoint that does not load or an observation that
# comes again and again, must not keep a machine busy with imports.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0

# After so long a life the next end counts as the first.
_STEADY_S = 60.0


class Restarts:
    """Counts the ends of a process, and returns the pause before its next start."""

    def __init__(self) -> None:
        self._ends = 0

    def pause_s(self, lived_s: float) -> float:
        """Return the seconds to wait now: 0 for a first end, then 1, and twice as many each time up to 60.

        Args:
            lived_s: Seconds that the process answered; 0 where it did not start.
        """
        if lived_s >= _STEADY_S:
            self._ends = 0
        self._ends += 1
        return 0.0 if self._ends == 1 else min(_FIRST_PAUSE_S * 2.0 ** min(self._ends - 2, 16), _MAX_PAUSE_S)
