"""``info``: show what a server reports about itself and what it serves. Runs on Python 3.8."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from robowire.cli.command import Program
from robowire.cli.connection_flags import ConnectionFlags, open_server_client
from robowire.cli.spec_sentences import spec_sentences
from robowire.errors import InvalidParams
from robowire.specs import PolicySpec

__all__ = ["InfoFlags", "run"]


@dataclass(frozen=True)
class InfoFlags(ConnectionFlags):
    """Flags of ``info``.

    Attributes:
        json: Print one JSON object.
    """

    json: bool = False


def run(flags: InfoFlags, program: Program) -> int:
    """Print the reply to ``get_info``."""
    with open_server_client(flags) as client:
        info = client.get_info()
    text = json.dumps(info, default=str) if flags.json else "\n".join([*_summary(info), *_aligned(info)])
    sys.stdout.write(f"{text}\n")
    return 0


def _summary(info: dict[str, Any]) -> list[str]:
    """Return what a policy server's folder is, needs and answers; nothing for a simulator server."""
    if "policy" not in info or "chunk_size" not in info:
        return []
    try:
        spec = PolicySpec.from_wire(info)
    except InvalidParams:  # of a newer server, perhaps: its fields are shown below as they are
        return []
    found = info.get("checkpoint_format")
    rows = spec_sentences(spec, None if found is None else str(found))
    return [*(f"{name:<9}{words}" for name, words in rows), ""]


def _aligned(info: dict[str, Any], indent: str = "") -> list[str]:
    lines, width = [], max(map(len, info), default=0)
    for name, value in info.items():
        if isinstance(value, dict):
            lines += [indent + name, *_aligned(value, indent + "  ")]
        else:
            listed = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{name:<{width}}  {'any' if value is None else listed}")
    return lines
