"""A bundle with a real selective scan in it, small enough to write in a test; no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from edgemamba.export.graph import attach_function
from edgemamba.runtime.bundle import MODEL, Bundle, Manifest, ModelCard, TensorCard, sha256, write_manifest
from edgemamba.runtime.preprocessing import Preprocessing

SIZE = 16
CLASSES = ("axial", "coronal", "sagittal", "none")
D_STATE = 4

_WEIGHTS = {"w_state": (3, 8), "A": (2, 3, D_STATE), "ones": (2, 3), "w_head": (3, len(CLASSES))}
# Every 16th picture element is a position, with three channels; two directions, forth and back.
_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "edgemamba" : 1]>
tiny (uint8[batch, {height}, {width}, 3] frames) => (float[batch, 4] logits)
{{
    scale = Constant <value = float {{255.0}}> ()
    values = Cast <to = 1> (frames)
    unit = Div (values, scale)
    flat = Constant <value_ints = [0, -1, 1, 3]> ()
    u_all = Reshape (unit, flat)
    first = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [9223372036854775807]> ()
    axis = Constant <value_ints = [1]> ()
    stride = Constant <value_ints = [16]> ()
    u = Slice (u_all, first, last, axis, stride)
    delta = Concat <axis = 2> (u, u)
    split = Constant <value_ints = [4, 4]> ()
    states = MatMul (u, w_state)
    B_one, C_one = Split <axis = 3> (states, split)
    B = Concat <axis = 2> (B_one, B_one)
    C = Concat <axis = 2> (C_one, C_one)
    count = Shape <start = 1, end = 2> (u)
    end = Squeeze (count)
    zero = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64 {{1}}> ()
    forth = Range (zero, end, one)
    top = Sub (end, one)
    back = Sub (top, forth)
    row = Constant <value_ints = [1, -1]> ()
    forth_row = Reshape (forth, row)
    back_row = Reshape (back, row)
    order_long = Concat <axis = 0> (forth_row, back_row)
    order = Cast <to = 6> (order_long)
    y = edgemamba.SelectiveScan <delta_softplus = 1, plugin_version = "1", plugin_namespace = "edgemamba">
        (u, delta, A, B, C, ones, ones, order)
    pooled = ReduceMean <keepdims = 0> (y, axis)
    logits = MatMul (pooled, w_head)
}}"""


def scan_graph(*, dynamic: bool = False) -> onnx.ModelProto:
    """The graph; ``dynamic``: with symbolic height and width."""
    height, width = ("height", "width") if dynamic else (SIZE, SIZE)
    model = parser.parse_model(_GRAPH.format(height=height, width=width))
    rng = np.random.default_rng(0)
    for name, shape in _WEIGHTS.items():
        drawn = np.ones(shape) if name == "ones" else rng.standard_normal(shape)
        weight = -np.exp(drawn) if name == "A" else drawn
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    return attach_function(model)


def write_scan_bundle(folder: Path, *, dynamic: bool = False) -> Bundle:
    """Write the bundle into ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(scan_graph(dynamic=dynamic), folder / MODEL)
    sides: tuple[int | str, ...] = ("height", "width") if dynamic else (SIZE, SIZE)
    manifest = Manifest(
        model=ModelCard(name="tiny_scan", config={"d_state": D_STATE}),
        input=TensorCard(name="frames", dtype="uint8", shape=("batch", *sides, 3)),
        outputs=(TensorCard(name="logits", dtype="float32", shape=("batch", len(CLASSES))),),
        preprocessing=Preprocessing(size=(SIZE, SIZE), resize="squash"),
        class_names=CLASSES,
        precision="fp32",
        opset=20,
        files={MODEL: sha256(folder / MODEL)},
    )
    write_manifest(folder, manifest)
    return Bundle(folder, manifest)
