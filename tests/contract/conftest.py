"""Which contract tests there are depends on what can be reached."""

from __future__ import annotations

import os

# They drive in a CARLA server; ROBOWIRE_CARLA=host:port says where one runs.
collect_ignore = [] if "ROBOWIRE_CARLA" in os.environ else ["test_carla.py"]
