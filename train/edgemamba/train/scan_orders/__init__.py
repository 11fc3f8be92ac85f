"""Scan orders as data: in which order a direction visits the positions of a map.

An order is an int32 tensor (G, S): direction ``g`` visits position ``order[g, s]`` at step ``s``, where positions are the
row-major indices of a map ``(height, width)`` (or of any grid, the last axis innermost). The operator
(:func:`edgemamba.train.selective_scan.selective_scan`) takes it as an input, so a backbone changes its scan by asking for
another name here.

Most orders are arithmetic on :func:`torch.arange`, so that one code path serves plain sizes, whose orders are constants of
an exported graph, and the symbolic sizes of ``torch.export``, whose orders become a few integer nodes. Those that need a
sort (:mod:`.curves`) are computed beforehand for plain sizes, and sort in the graph for symbolic ones. Nothing is cached: an
order computed while tracing is a tracer's tensor, and must not outlive the trace.

Pictures of all: docs/scan_orders.md.
"""

from edgemamba.train.scan_orders import blocks, curves, lines, volumes  # noqa: F401  (each registers its orders)
from edgemamba.train.scan_orders.registry import (
    OrderPattern,
    ScanOrder,
    Size,
    get_order,
    list_orders,
    order_patterns,
    register_order,
    register_pattern,
    scan_order,
)
from edgemamba.train.scan_orders.tokens import insert_tokens, insert_tokens_both_ways

__all__ = [
    "OrderPattern",
    "ScanOrder",
    "Size",
    "get_order",
    "insert_tokens",
    "insert_tokens_both_ways",
    "list_orders",
    "order_patterns",
    "register_order",
    "register_pattern",
    "scan_order",
]
