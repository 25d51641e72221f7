"""Print what openpi's own image tools make of some images. Runs in openpi's environment.

The images are made of a formula, so that our side can make the same ones.
"""

import hashlib
import json
import sys

import numpy as np
from openpi_client import image_tools

for size in sys.argv[1:]:
    rows, columns, height, width = map(int, size.split(","))
    levels = np.arange(rows * columns * 3, dtype=np.uint64) * 2654435761 % 4294967296 >> 24
    image = levels.astype(np.uint8).reshape(rows, columns, 3)
    resized = image_tools.resize_with_pad(image, height, width)
    print(json.dumps({"size": size, "sha256": hashlib.sha256(resized.tobytes()).hexdigest()}))
