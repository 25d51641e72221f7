"""What a policy needs and answers, as lines for a person. Runs on Python 3.8."""

from __future__ import annotations

from robowire.specs import PolicySpec

__all__ = ["spec_sentences"]


def spec_sentences(spec: PolicySpec, checkpoint_format: str | None) -> list[tuple[str, str]]:
    """Return rows of a heading, empty where the one above goes on, and words."""
    cameras = "any" if spec.camera_names is None else ", ".join(spec.camera_names) or "none"
    height, width = spec.image_height or "any", spec.image_width or "any"
    state = f"{spec.state_dim or 'any'} numbers" + (f", {spec.state_layout}" if spec.state_layout else "")
    control = " ".join(word for word in (spec.ctrl_space, spec.ctrl_type) if word) or "not said"
    rate = "" if spec.control_hz is None else f" at {spec.control_hz:g} Hz"
    lines = [] if checkpoint_format is None else [("format", checkpoint_format)]
    lines += [
        ("policy", f"{spec.policy}, checkpoint {spec.checkpoint or 'unknown'}"),
        ("needs", f"cameras {cameras}; uint8 RGB, height {height}, width {width}"),
        ("", f"state {state}"),
    ]
    if spec.state_names is not None:
        lines.append(("", _named(spec.state_names, spec.state_units)))
    dim = "any" if spec.action_dim is None else spec.action_dim
    lines.append(("answers", f"{spec.chunk_size} actions of {dim} numbers; control {control}{rate}"))
    if spec.action_names is not None:
        lines.append(("", _named(spec.action_names, spec.action_units)))
    if spec.n_action_steps:
        lines.append(("", f"{spec.n_action_steps} of them are executed"))
    if spec.temporal_ensemble_coeff is not None:
        lines.append(("", f"averaged over time with coefficient {spec.temporal_ensemble_coeff}"))
    if spec.dataset_id is not None:
        lines.append(("data set", spec.dataset_id))
    return lines


def _named(names: tuple[str, ...], units: tuple[str, ...] | None) -> str:
    if units is None:
        return ", ".join(names)
    return ", ".join(f"{name} [{unit}]" for name, unit in zip(names, units))
