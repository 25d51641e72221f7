"""What a policy needs and gives, in the words in which vla-eval's harness compares. Pure.

A spec is ``{component: {"name", "dims", "format"[, "range"][, "description"]}}``. The harness warns where a
format of the server differs from the benchmark's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robowire.frontends.layouts import Word, parse_layout, rotation_of

__all__ = ["action_spec", "observation_params", "observation_spec"]

_ROTATIONS = {
    "axisangle": "axis_angle",
    "euler_xyz": "euler_xyz",
    "quat_xyzw": "quaternion_xyzw",
    "rot6d": "rot6d",
}
# By the numbers for an open and a closed gripper.
_GRIPPERS = {
    "-1 open, 1 closed": ("binary_close_positive", [-1.0, 1.0]),
    "1 open, -1 closed": ("binary_close_negative", [-1.0, 1.0]),
    "0 open, 1 closed": ("binary_close_01", [0.0, 1.0]),
    "1 open, 0 closed": ("continuous_01", [0.0, 1.0]),
}
_STATES = {
    "ee_pos(3) ee_axisangle(3) gripper_qpos(2)": "eef_pos3_axisangle3_gripper2",
    "ee_pos(3) ee_euler_xyz(3) gripper_qpos(2)": "eef_pos3_euler3_gripper2",
    "ee_pos(3) ee_quat_xyzw(4) gripper_qpos(1)": "eef_pos3_quat4_gripper1",
}


def observation_params(known: Mapping[str, Any]) -> dict[str, bool]:
    """Return what the benchmark is asked to send: it leaves wrist images and states out unless it is asked.

    Args:
        known: What the adapter says of the wire's names.
    """
    params = {}
    if "wrist" in known["images"]:
        params["send_wrist_image"] = True
    if known["state_dim"] is not None:
        params["send_state"] = True
    return params


def observation_spec(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the policy needs.

    Args:
        known: What the adapter says of the wire's names.
    """
    # Several names may be one camera; benchmarks of vla-eval have names without a path.
    images = {camera: name for name, camera in known["images"].items() if "/" not in name}
    for camera in known["camera_names"] or ():
        if camera not in known["images"].values():
            images[camera] = camera  # the policy's own name is known on every wire
    spec = {name: _component("image", 0, "rgb_hwc_uint8") for name in images.values()}
    if known["state_dim"] is not None:
        layout = known["state_layout"]
        spec["state"] = _component("state", known["state_dim"], _STATES.get(layout, layout or "raw"))
    spec["language"] = _component("language", 0, "language")
    return spec


def action_spec(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the policy gives; nothing where it does not declare it.

    Args:
        known: What the adapter says of the wire's conventions.
    """
    layout = known["action_layout"]
    words = parse_layout(layout) if layout else None
    spec: dict[str, Any] = {}
    for word in words or ():
        name, component = _action_component(word, known["action_gripper"])
        if name in spec:  # of two arms
            return {"action": _component("action", sum(each.length for each in words or ()), layout)}
        spec[name] = component
    return spec


def _action_component(word: Word, gripper: str | None) -> tuple[str, dict[str, Any]]:
    if word.name in ("gripper", "gripper_open") and gripper is not None:
        kind, limits = _GRIPPERS.get(gripper, ("raw", None))
        described = _component("gripper", word.length, kind, description=gripper)
        return "gripper", described if limits is None else {**described, "range": limits}
    notation = rotation_of(word)
    if notation is not None:
        return "rotation", _component("rotation", word.length, _ROTATIONS.get(notation, notation))
    if word.length == 3 and word.name.endswith("pos"):
        kind = "delta_xyz" if word.name == "dpos" else "absolute_xyz"
        return "position", _component("position", 3, kind)
    return word.name, _component(word.name, word.length, word.name)


def _component(name: str, dims: int, kind: str, *, description: str = "") -> dict[str, Any]:
    component: dict[str, Any] = {"name": name, "dims": dims, "format": kind}
    return {**component, "description": description} if description else component
