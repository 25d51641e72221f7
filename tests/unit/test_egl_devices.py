from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

import pytest

from robowire.worker.egl_devices import EglDevice, devices

EXTENSIONS, VENDOR, RENDERER, DRM, RENDER_NODE, CUDA = 0x3055, 0x3053, 0x335F, 0x3233, 0x3377, 0x323A


class Egl:
    """An EGL library whose devices are tables of what they answer."""

    def __init__(self, *answers: Mapping[int, Any], known: bool = True) -> None:
        @ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
        def query(capacity: int, found: Any, count: int) -> int:
            for index in range(len(answers)):
                found[index] = index + 1
            ctypes.c_int.from_address(count).value = len(answers)
            return 1

        texts = [
            {name: ctypes.c_char_p(value) for name, value in table.items() if name != CUDA}
            for table in answers
        ]

        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        def string(device: int, name: int) -> Any:
            text = texts[device - 1].get(name)
            return None if text is None else ctypes.cast(text, ctypes.c_void_p).value

        @ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        def attribute(device: int, name: int, value: int) -> int:
            if name not in answers[device - 1]:
                return 0
            ctypes.c_ssize_t.from_address(value).value = answers[device - 1][name]
            return 1

        functions = {
            b"eglQueryDevicesEXT": query,
            b"eglQueryDeviceStringEXT": string,
            b"eglQueryDeviceAttribEXT": attribute,
        }

        def get(name: bytes) -> int | None:
            return ctypes.cast(functions[name], ctypes.c_void_p).value if known else None

        self.eglGetProcAddress = get


def test_a_gpu_is_listed_with_its_cuda_number_and_render_node() -> None:
    gpu = {
        EXTENSIONS: b"EGL_NV_device_cuda EGL_EXT_device_drm EGL_EXT_device_drm_render_node "
        b"EGL_EXT_device_query_name",
        VENDOR: b"NVIDIA",
        RENDERER: b"NVIDIA H100",
        DRM: b"/dev/dri/card1",
        RENDER_NODE: b"/dev/dri/renderD128",
        CUDA: 3,
    }
    cpu = {EXTENSIONS: b"EGL_MESA_device_software", RENDERER: b"not to be asked"}
    assert devices(Egl(gpu, cpu)) == [
        EglDevice(0, name="NVIDIA H100", cuda=3, drm="/dev/dri/renderD128", software=False),
        EglDevice(1, name=None, cuda=None, drm=None, software=True),
    ]


def test_the_card_is_listed_where_there_is_no_render_node() -> None:
    card = {EXTENSIONS: b"EGL_EXT_device_drm", DRM: b"/dev/dri/card0"}
    assert devices(Egl(card)) == [EglDevice(0, name=None, cuda=None, drm="/dev/dri/card0", software=False)]


def test_no_device_is_a_good_answer() -> None:
    assert devices(Egl()) == []


def test_a_library_that_cannot_list_devices_is_an_error() -> None:
    with pytest.raises(OSError, match=re.escape("this EGL library has no eglQueryDevicesEXT")):
        devices(Egl(known=False))
