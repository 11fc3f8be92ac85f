"""The exporter's own optimisation, without the one rule of it whose cost grows with the square of the graph.

``torch.onnx.export(optimize=True)`` applies onnxscript's default rules. ``slice_split_rule`` (two halves of a tensor's last axis
into one Split) has two outputs, for which onnxscript tries every pair of nodes: on graphs of many Slices it finds nothing in ten
minutes (``local_vmamba_s_search``; 84 s of processor time for the whole conversion without it). It is left out; the rules are
otherwise those of the installed onnxscript.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnxscript.rewriter.rules.common import slice_split_rule


@contextmanager
def without_quadratic_rules() -> Iterator[None]:
    """For the time being the rule matches nothing, in this process. (The exporter takes no set of rules.)"""

    def no_match(*arguments: Any, **options: Any) -> None:
        return None

    # On the instance, before the class's method: the default set holds this very object.
    vars(slice_split_rule)["try_rewrite"] = no_match
    try:
        yield
    finally:
        vars(slice_split_rule).pop("try_rewrite", None)
