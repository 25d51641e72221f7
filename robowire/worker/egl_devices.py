"""Devices that EGL renders on, in the order that ``MUJOCO_EGL_DEVICE_ID`` counts them.

``python -m robowire.worker.egl_devices`` prints them as JSON: the query loads every driver of the
machine, one of which may crash, so a caller that must survive runs it in a process.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EglDevice", "devices"]

_MAX_DEVICES = 64

# Numbers of the properties, each from its extension in the registry, https://registry.khronos.org/EGL.
_EXTENSIONS, _VENDOR, _RENDERER = 0x3055, 0x3053, 0x335F
_DRM_DEVICE_FILE, _DRM_RENDER_NODE_FILE, _CUDA_DEVICE = 0x3233, 0x3377, 0x323A


@dataclass(frozen=True)
class EglDevice:
    """One device.

    Attributes:
        index: Value of ``MUJOCO_EGL_DEVICE_ID`` that selects it.
        name: Name that the driver gives, if any.
        cuda: CUDA's number for it while ``CUDA_VISIBLE_DEVICES`` is not set.
        drm: Device file that a user needs access to.
        software: Whether it renders on the CPU.
    """

    index: int
    name: str | None
    cuda: int | None
    drm: str | None
    software: bool


def devices(library: Any = None) -> list[EglDevice]:
    """Return EGL's devices; there may be none.

    Args:
        library: EGL library loaded by :mod:`ctypes`; ``None`` loads this machine's.

    Raises:
        OSError: There is no EGL library here, or one that lists no devices; says which.
    """
    egl = ctypes.CDLL("libEGL.so.1") if library is None else library
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query_devices = _function(egl, "eglQueryDevicesEXT", ctypes.c_uint)
    query_string = _function(egl, "eglQueryDeviceStringEXT", ctypes.c_char_p)
    query_attribute = _function(egl, "eglQueryDeviceAttribEXT", ctypes.c_uint)

    found, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int()
    if not query_devices(ctypes.c_int(_MAX_DEVICES), found, ctypes.byref(count)):
        raise OSError("EGL cannot list its devices")

    def text(device: int | None, name: int) -> str | None:
        value = query_string(ctypes.c_void_p(device), ctypes.c_int(name))
        return value.decode(errors="replace") if value else None

    def number(device: int | None, name: int) -> int | None:
        value = ctypes.c_ssize_t()
        known = query_attribute(ctypes.c_void_p(device), ctypes.c_int(name), ctypes.byref(value))
        return value.value if known else None

    listed = []
    for index in range(count.value):
        device = found[index]
        extensions = (text(device, _EXTENSIONS) or "").split()
        # A query that the device's extensions do not offer is an error.
        named = "EGL_EXT_device_query_name" in extensions
        listed.append(
            EglDevice(
                index=index,
                name=(text(device, _RENDERER) or text(device, _VENDOR)) if named else None,
                cuda=number(device, _CUDA_DEVICE) if "EGL_NV_device_cuda" in extensions else None,
                drm=_drm(device, extensions, text),
                software="EGL_MESA_device_software" in extensions,
            )
        )
    return listed


def _drm(device: int | None, extensions: list[str], text: Any) -> str | None:
    """Return the device file for rendering, else that of the whole card."""
    file: str | None = None
    if "EGL_EXT_device_drm_render_node" in extensions:
        file = text(device, _DRM_RENDER_NODE_FILE)
    if file is None and "EGL_EXT_device_drm" in extensions:
        file = text(device, _DRM_DEVICE_FILE)
    return file


def _function(egl: Any, name: str, result: Any) -> Any:
    address = egl.eglGetProcAddress(name.encode())
    if not address:
        raise OSError(f"this EGL library has no {name}")
    return ctypes.CFUNCTYPE(result)(address)


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(device) for device in devices()]) + "\n")
