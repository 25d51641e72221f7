"""Write recordings with ``replay --rerun``, and read the file with rerun's own reader.

Arguments: the checkout, a folder of recordings, the file to write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

root, recordings, path = sys.argv[1:4]
sys.path.insert(0, root)

from rerun.chunk import RrdReader  # noqa: E402

from robowire.cli.main import main  # noqa: E402 - found by the line above

assert main(["replay", recordings, "--rerun", path]) == 0
rows: dict[str, int] = {}
for chunk in RrdReader(Path(path)).stream():
    if not chunk.entity_path.startswith("/__"):
        name = chunk.entity_path.partition("-")[0] + "/" + chunk.entity_path.split("/", 2)[2]
        rows[name] = rows.get(name, 0) + chunk.num_rows
print(json.dumps({"rows": rows}))
