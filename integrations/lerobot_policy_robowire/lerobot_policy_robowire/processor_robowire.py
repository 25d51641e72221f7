"""Nothing is normalised here: the server takes observations and gives actions as they are."""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from lerobot_policy_robowire.configuration_robowire import RobowireConfig

__all__ = ["make_robowire_pre_post_processors"]


def make_robowire_pre_post_processors(
    config: RobowireConfig, dataset_stats: dict[str, Any] | None = None, **ignored: Any
) -> tuple[Any, Any]:
    """Return what is done before and after the policy: nothing."""
    return (
        PolicyProcessorPipeline(steps=[], name="policy_preprocessor"),
        PolicyProcessorPipeline(
            steps=[],
            name="policy_postprocessor",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
