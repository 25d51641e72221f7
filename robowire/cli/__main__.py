"""``python -m robowire.cli``, the console script ``robowire`` where its folder is not in ``PATH``."""

from __future__ import annotations

import sys

from robowire.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
