"""What an ONNX file holds, read without the onnx package: only the few fields of the protobuf that a summary needs.

Field numbers are those of onnx.proto3. The reader trusts nothing: lengths are checked against the file, and unknown fields
are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgemamba.runtime.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# ModelProto
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSET_IMPORT, _FUNCTIONS = 1, 2, 3, 7, 8, 25
# GraphProto
_NODE, _INITIALIZER = 1, 5
# NodeProto
_OP_TYPE, _NODE_DOMAIN = 4, 7
# TensorProto: all that holds values
_VALUE_FIELDS = {4, 5, 6, 7, 9, 10, 11}
# OperatorSetIdProto, FunctionProto
_OPSET_DOMAIN, _OPSET_VERSION, _FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 2, 1, 10


@dataclass
class OnnxSummary:
    """The outline of a model.

    Attributes:
        operators: how often each operator occurs in the main graph; those of a domain are written ``domain::Name``.
        functions: local functions, as ``domain::Name``.
        opsets: versions that are imported, by domain; ``""`` is standard ONNX.
        weight_bytes: of the values of all initializers of the main graph.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    initializers: int = 0
    weight_bytes: int = 0

    @property
    def nodes(self) -> int:
        """Nodes of the main graph."""
        return sum(self.operators.values())


def summarise(path: Path) -> OnnxSummary:
    """Read the outline of an ONNX file.

    Raises:
        BundleError: the file is not an ONNX model, or ends in the middle of one.
    """
    try:
        summary = _model(memoryview(path.read_bytes()))
    except (ValueError, IndexError, UnicodeDecodeError, TypeError) as error:
        raise BundleError(f"{path} is not a readable ONNX model: {error}") from None
    if not summary.nodes:
        raise BundleError(f"{path} is not a readable ONNX model: it has no nodes")
    return summary


def _model(data: memoryview) -> OnnxSummary:
    summary = OnnxSummary()
    producer = ["", ""]
    for number, value in _fields(data):
        if number == _IR_VERSION:
            summary.ir_version = _integer(value)
        elif number in (_PRODUCER, _PRODUCER_VERSION):
            producer[number - _PRODUCER] = _text(value)
        elif number == _OPSET_IMPORT:
            entry = dict(_fields(_message(value)))
            summary.opsets[_text(entry.get(_OPSET_DOMAIN))] = _integer(entry.get(_OPSET_VERSION, 0))
        elif number == _FUNCTIONS:
            entry = dict(_fields(_message(value)))
            summary.functions.append(_qualified(entry.get(_FUNCTION_DOMAIN), entry.get(_FUNCTION_NAME)))
        elif number == _GRAPH:
            _graph(_message(value), summary)
    summary.producer = " ".join(filter(None, producer))
    return summary


def _graph(data: memoryview, summary: OnnxSummary) -> None:
    for number, value in _fields(data):
        if number == _NODE:
            entry = dict(_fields(_message(value)))
            name = _qualified(entry.get(_NODE_DOMAIN), entry.get(_OP_TYPE))
            summary.operators[name] = summary.operators.get(name, 0) + 1
        elif number == _INITIALIZER:
            summary.initializers += 1
            for inner, content in _fields(_message(value)):
                if inner in _VALUE_FIELDS:
                    summary.weight_bytes += len(content) if isinstance(content, memoryview) else 4


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of a string, message or packed list."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} of field {number} does not exist")
        if size > len(data) - at:
            raise ValueError(f"field {number} is longer than the file")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer has more than 64 bits")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a message stands where a number should")
    return value


def _text(value: int | memoryview | None) -> str:
    return "" if value is None else bytes(_message(value)).decode("utf-8")


def _qualified(domain: int | memoryview | None, name: int | memoryview | None) -> str:
    prefix = _text(domain)
    return f"{prefix}::{_text(name)}" if prefix not in ("", "ai.onnx") else _text(name)
