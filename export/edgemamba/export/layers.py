"""Which module of the PyTorch model each node of the exported graph came from.

The exporter notes on every node the modules it was traced through, beside stack traces with this machine's paths. This module
keeps the first and drops the rest: nodes are named after their module, and the node that produces a module's output says so in
its metadata (``edgemamba.module``). A profiler then shows ``layers.3.mixer.in_proj/MatMul`` instead of ``node_linear_37``, and
:mod:`edgemamba.export.bisection` knows which values of the graph to hold against which modules of the model.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable

import onnx
import onnx_ir as ir

#: Key of a node's metadata: the modules whose output this node's (first) output is, innermost first, joined by spaces.
MODULE_KEY = "edgemamba.module"

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_CLASSES_KEY = "pkg.torch.onnx.class_hierarchy"
# The attribute of DeployedModel that holds the backbone; users know the paths without it.
_PREFIX = "model"


def scopes(node: ir.Node) -> tuple[str, ...]:
    """Paths of the modules that a node was traced through, outermost first; empty for nodes outside the backbone."""
    entries = _literal(node, _SCOPES_KEY)[:-1]  # the last one is the operator itself
    inside = [name for name in entries if name == _PREFIX or name.startswith(_PREFIX + ".")]
    return tuple(name[len(_PREFIX) + 1 :] for name in inside)


def module_classes(node: ir.Node) -> tuple[str, ...]:
    """Class names of the modules that a node was traced through, outermost first."""
    return tuple(name.rpartition(".")[2] for name in _literal(node, _CLASSES_KEY)[:-1])


def _literal(node: ir.Node, key: str) -> list[str]:
    text = node.metadata_props.get(key)
    return [str(entry) for entry in ast.literal_eval(text)] if text else []


def complete_scopes(graph: ir.Graph) -> None:
    """Give nodes that the exporter's rewrites left without a scope that of the nodes around them.

    It is what the consumers have in common, or else the producer's (rewrites replace nodes within one module).
    """
    for node in reversed(list(graph)):
        if _SCOPES_KEY in node.metadata_props:
            continue
        around = [use.node for value in node.outputs for use in value.uses()]
        around = around or list(node.predecessors())
        for key in (_SCOPES_KEY, _CLASSES_KEY):
            lists = [_literal(neighbour, key)[:-1] for neighbour in around]
            common = _common_prefix(lists) if lists else []
            node.metadata_props[key] = repr([*common, node.op_type])


def _common_prefix(lists: Iterable[list[str]]) -> list[str]:
    first, *others = lists
    length = 0
    while length < len(first) and all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[:length]


def module_outputs(graph: ir.Graph) -> dict[str, str]:
    """Module path -> name of the value that is its output, for each module with exactly one float output.

    A module's output is the value that its nodes produce and others consume.
    """
    owners = {node: set(scopes(node)) for node in graph}
    leaving: dict[str, list[ir.Value]] = {}
    for node, modules in owners.items():
        for value in node.outputs:
            if value.dtype is None or not value.dtype.is_floating_point():
                continue
            consumers = [owners[use.node] for use in value.uses()]
            for module in modules:
                if value.is_graph_output() or any(module not in consumer for consumer in consumers):
                    leaving.setdefault(module, []).append(value)
    return {module: str(values[0].name) for module, values in leaving.items() if module and len(values) == 1}


def name_nodes(graph: ir.Graph) -> None:
    """Name every node ``<module path>/<op type>``, with a running number where a module has several of a type."""
    seen: Counter[str] = Counter()
    for node in graph:
        path = scopes(node)
        place = (path[-1] or "model") if path else "preprocessing"
        name = f"{place}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def strip_metadata(model: ir.Model) -> None:
    """Drop what the exporter wrote for debugging: stack traces, file paths, signatures (half of a small model's file)."""
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


def strip_prefix(graph: ir.Graph) -> None:
    """Name parameters as the model's state dict does: without the wrapper's ``model.``."""
    for value in list(graph.initializers.values()):
        name = str(value.name)
        if name.startswith(_PREFIX + "."):
            value.name = name[len(_PREFIX) + 1 :]


def record_module_outputs(graph: ir.Graph, outputs: dict[str, str]) -> None:
    """Write the map of :func:`module_outputs` into the producing nodes' metadata."""
    by_value: dict[str, list[str]] = {}
    for module, value in sorted(outputs.items(), key=lambda item: (-item[0].count("."), item[0])):
        by_value.setdefault(value, []).append(module)
    for node in graph:
        names = by_value.get(str(node.outputs[0].name))
        if names:
            node.metadata_props[MODULE_KEY] = " ".join(names)


def recorded_modules(model: onnx.ModelProto) -> dict[str, str]:
    """Read the map back: module path -> value name, in the graph's order."""
    return {
        module: node.output[0]
        for node in model.graph.node
        for entry in node.metadata_props
        if entry.key == MODULE_KEY
        for module in entry.value.split()
    }


def drop_modules(model: onnx.ModelProto) -> None:
    """Remove the map."""
    for node in model.graph.node:
        for entry in [entry for entry in node.metadata_props if entry.key == MODULE_KEY]:
            node.metadata_props.remove(entry)
