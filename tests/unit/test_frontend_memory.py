"""An observation's images are freed with its request, not when the garbage collector comes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robowire.frontends.openpi.frontend import _read_observation as read_openpi
from robowire.frontends.vla_eval.codec import PayloadReader
from robowire.frontends.vla_eval.frontend import _read_observation as read_vla_eval


@pytest.mark.parametrize(
    "read",
    [
        lambda image: read_openpi({"observation": {"image": image}, "state": np.zeros(8)}),
        lambda image: read_vla_eval(
            {"images": {"image": image}, "more": {"states": np.zeros(8)}}, PayloadReader(1 << 20), 0
        ),
    ],
    ids=["openpi", "vla_eval"],
)
def test_an_image_is_freed_without_the_garbage_collector(read: Callable[[Any], Any]) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    freed = weakref.ref(image)
    gc.disable()
    try:
        named = read(image)
        assert next(iter(named.images.values())) is image
        del image, named
        assert freed() is None
    finally:
        gc.enable()
