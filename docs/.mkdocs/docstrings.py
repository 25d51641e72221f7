"""Docstrings as Markdown: reStructuredText's roles and its mark before a block of code are left out."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|exc):`~?([^`]+)`")
_BEFORE_CODE = re.compile(r"::$", re.MULTILINE)
_ALONE = re.compile(r"^[ \t]*::\n", re.MULTILINE)


class PlainDocstrings(Extension):
    """Rewrite the docstring of every object that is loaded."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = _ALONE.sub("", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(r"`\1`", _BEFORE_CODE.sub(":", text))
