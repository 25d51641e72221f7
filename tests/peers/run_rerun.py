"""Write an episode of the fake simulator with ``RerunLog``, and read it with rerun's own reader.

Arguments: the checkout, a policy server, a simulator server, ffmpeg, a new folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

root, policy, simulator, ffmpeg = sys.argv[1:5]
folder = Path(sys.argv[5])
sys.path.insert(0, root)

from robowire import PolicyClient, SimulatorClient  # noqa: E402 - found by the line above
from robowire.address import parse_address  # noqa: E402
from robowire.integrations.rerun_log import RerunLog  # noqa: E402
from robowire.rollout.evaluate_options import EvaluateOptions  # noqa: E402
from robowire.rollout.evaluation import evaluate  # noqa: E402

path = folder / "episodes.rrd"
log = RerunLog(path)
try:
    summary = evaluate(
        EvaluateOptions(
            simulator="fake",
            task="reach",
            num_episodes=2,
            num_envs=2,
            max_episode_steps=7,
            record_video="all",
            output_dir=folder / "results",
        ),
        open_policy=lambda: PolicyClient(*parse_address("policy", policy, example="")),
        open_simulator=lambda: SimulatorClient(*parse_address("simulator", simulator, example="")),
        ffmpeg=ffmpeg,
        log=log.task("suite/reach"),
    )
finally:
    log.close()

from rerun.chunk import RrdReader  # noqa: E402

rows: dict[str, int] = {}
for chunk in RrdReader(path).stream():
    if chunk.entity_path.startswith("/suite"):
        rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + chunk.num_rows
counted = (folder / "results" / "episodes.jsonl").read_text().splitlines()
steps = {str(row["episode"]): row["steps"] for row in map(json.loads, counted)}
layouts = len(RrdReader(path).blueprints())
print(json.dumps({"rows": rows, "steps": steps, "layouts": layouts, "videos": bool(summary["episodes"])}))
