"""LeRobot's own ``lerobot-eval``, with its flags, in an environment whose torch has no CUDA.

    python lerobot_eval.py PLUGINS OUTPUT --policy.type=robowire ...

PLUGINS is a folder with the two distributions of ``integrations/`` installed (``pip install --target``), and
this checkout's ``robowire``. Prints what LeRobot wrote as one line of JSON.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

plugins, output, *flags = sys.argv[1:]
sys.path[:0] = plugins.split(os.pathsep)
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=tempfile.mkdtemp(), SDL_VIDEODRIVER="dummy")

from torchvision_operators import define_operators  # noqa: E402

operators = define_operators()

from lerobot.scripts.lerobot_eval import main  # noqa: E402

sys.argv = ["lerobot-eval", f"--output_dir={output}", *flags]
os.chdir(os.environ["HF_HOME"])
with contextlib.redirect_stdout(sys.stderr):  # LeRobot prints dicts, which are not JSON
    main()
print(json.dumps(json.loads((Path(output) / "eval_info.json").read_text())["overall"]))
