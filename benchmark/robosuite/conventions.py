"""How robosuite's numbers and images become MetaObs and MetaAction, and back. No simulator in here.

================  ===========================================  ============================================
what              robosuite                                    MetaObs, MetaAction
================  ===========================================  ============================================
image             (height, width, 3), bottom row first         (3, height, width), top row first (upright)
gripper command   -1 open, +1 closed                           1 open, 0 closed
gripper state     joint positions of its fingers               1 open, 0 closed, and between
arm command       -1 to 1 of the controller's range            the same numbers
================  ===========================================  ============================================

``benchmark/arms/commands.py`` says what the arm's numbers are.
"""

from __future__ import annotations

import numpy as np

__all__ = ["BELT_SPEED", "gripper_opening"]

# LiftConveyor's belt, in metres per second along y. In the 2.3 s that lifting a cube at rest takes it moves
# 18 cm, which the arm reaches, and during a latency of 200 ms 1.6 cm: the fingers leave 2 cm on each side.
BELT_SPEED = 0.08


def gripper_opening(position: np.ndarray, *, closed: np.ndarray, opened: np.ndarray) -> float:
    """Return how far the gripper is open, from 0 to 1: the mean of its driven joints.

    Args:
        position: Of the driven joints, (n,), radians or metres.
        closed: The same where a closing command drives them.
        opened: The same where an opening command drives them.
    """
    return float(np.clip((position - closed) / (opened - closed), 0.0, 1.0).mean())
