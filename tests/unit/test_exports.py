"""What ``robowire`` itself exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import robowire
from robowire import errors


def test_every_error_is_exported() -> None:
    raised = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert raised - set(robowire.__all__) == set()


@pytest.mark.parametrize("name", robowire.__all__)
def test_every_exported_name_exists(name: str) -> None:
    assert getattr(robowire, name) is not None
    assert name in dir(robowire)


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'robowire' has no attribute 'PolicyKlient'$"):
        robowire.PolicyKlient  # noqa: B018


def test_importing_robowire_imports_no_client_and_a_client_no_tls() -> None:
    script = (
        "import sys, robowire; print('numpy' in sys.modules);"
        "from robowire import PolicyClient; print('ssl' in sys.modules, 'robowire.images' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.stdout.split(), run.stderr) == (["False", "False", "False"], "")
