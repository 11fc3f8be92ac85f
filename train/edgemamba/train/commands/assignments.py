"""``--set KEY=VALUE`` of every verb that makes a model."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from edgemamba.runtime.errors import ModelError


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["dims=(24,48)", "d_state=8"]`` to a dictionary; values are Python literals, or else text.

    Raises:
        ModelError: one has no ``=``, or no name before it.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not key.isidentifier():
            raise ModelError(f"--set {assignment}: KEY=VALUE is needed, e.g. --set depths=2,2,4,2")
        try:
            parsed[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[key] = text  # a word, such as rms
    return parsed
