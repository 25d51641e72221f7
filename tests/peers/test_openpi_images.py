"""``resize: pad`` gives the image that openpi's own client gives, to the last bit."""

from __future__ import annotations

import hashlib

import numpy as np
from peer_process import run_peer

from robowire.frontends.named_observations import resize_with_pad

SIZES = [
    "480,640,224,224",
    "640,480,224,224",
    "256,256,96,96",
    "37,91,96,96",
    "96,96,224,300",
    "1080,1920,224,224",
]


def test_resized_images_are_those_of_openpis_client() -> None:
    theirs = {line["size"]: line["sha256"] for line in run_peer("openpi", "openpi_images.py", *SIZES)}
    ours = {}
    for size in SIZES:
        rows, columns, height, width = map(int, size.split(","))
        levels = np.arange(rows * columns * 3, dtype=np.uint64) * 2654435761 % 4294967296 >> 24
        image = levels.astype(np.uint8).reshape(rows, columns, 3)
        ours[size] = hashlib.sha256(resize_with_pad(image, height, width).tobytes()).hexdigest()
    assert ours == theirs
