"""The operator as a FunctionProto: what an ONNX runtime executes where it has no kernel of ours.

The body is standard ONNX with one ``Scan`` whose state is (direction, batch, state, channel), channels innermost: of the
forms that were measured (Scan and Loop, blocked and parallel-prefix, either axis innermost) it is the fastest on ONNX
Runtime's CPU, and it holds no ``Loop`` (onnx.reference mishandles it) and no ``CumSum`` (ratios of cumulated exponentials
lose all digits here). The arithmetic and the state are float32 for every T, as in the native kernel.
"""

from __future__ import annotations

import onnx
from onnx import parser

from edgemamba.runtime.operator import DOMAIN, INPUT_NAMES, OP_TYPE, OUTPUT_NAME

#: Opsets whose versions of the operators below have the meaning that the body relies on: from Shape's start/end and
#: ReduceSum's axes input on. Newer ones are added when they have been run.
SUPPORTED_OPSETS = range(18, 27)

_HEADER = (
    '<opset_import: ["" : {opset}], domain: "{domain}">\n{name} <delta_softplus> ({inputs}) => ({output})\n'  # no default:
    # a node without the attribute is an error in every runtime, not a guess.
)

# FLOAT = 1, INT64 = 7 and BOOL = 9 are TensorProto's numbers. Every reshape names its extents, because -1 cannot be
# inferred where another extent is 0 (an empty batch).
_BODY = """{
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    ones = Constant <value = int64[1] {1}> ()
    inner = Constant <value = int64[2] {1, 2}> ()
    last = Constant <value = int64[1] {-1}> ()
    batch = Shape <start = 0, end = 1> (u)
    positions = Shape <start = 1, end = 2> (u)
    u_directions = Shape <start = 2, end = 3> (u)
    channels = Shape <start = 3, end = 4> (u)
    directions = Shape <start = 0, end = 1> (order)
    states = Shape <start = 2, end = 3> (A)

    # Row p * G + g holds position p of direction g. u has Gu rows a position: its own one, or one that all share.
    order_long = Cast <to = 7> (order)
    visited = Transpose <perm = [1, 0]> (order_long)
    direction_count = Squeeze (directions)
    direction = Range (zero, direction_count, one)
    visited_row = Mul (visited, directions)
    row = Add (visited_row, direction)
    visited_u_row = Mul (visited, u_directions)
    u_direction = Mod (direction, u_directions)
    u_row = Add (visited_u_row, u_direction)

    # (B, P, G, F) -> rows (P * G, B, ., .) -> the sequence (S, G, B, ., .), each step shaped for the body of the Scan.
    row_count = Mul (positions, directions)
    u_row_count = Mul (positions, u_directions)
    u_shape = Concat <axis = 0> (u_row_count, batch, ones, channels)
    row_shape = Concat <axis = 0> (row_count, batch, ones, channels)
    B_shape = Concat <axis = 0> (row_count, batch, states, ones)
    C_shape = Concat <axis = 0> (row_count, batch, ones, states)
    u_float = Cast <to = 1> (u)
    u_turned = Transpose <perm = [1, 2, 0, 3]> (u_float)
    u_rows = Reshape <allowzero = 1> (u_turned, u_shape)
    u_seq = Gather <axis = 0> (u_rows, u_row)
    delta_float = Cast <to = 1> (delta)
    delta_turned = Transpose <perm = [1, 2, 0, 3]> (delta_float)
    delta_rows = Reshape <allowzero = 1> (delta_turned, row_shape)
    delta_seq = Gather <axis = 0> (delta_rows, row)
    B_float = Cast <to = 1> (B)
    B_turned = Transpose <perm = [1, 2, 0, 3]> (B_float)
    B_rows = Reshape <allowzero = 1> (B_turned, B_shape)
    B_seq = Gather <axis = 0> (B_rows, row)
    C_float = Cast <to = 1> (C)
    C_turned = Transpose <perm = [1, 2, 0, 3]> (C_float)
    C_rows = Reshape <allowzero = 1> (C_turned, C_shape)
    C_seq = Gather <axis = 0> (C_rows, row)

    # softplus(x) = max(x, 0) + log1p(exp(-|x|)), and log1p(e) = log(w) * e / (w - 1) with w = 1 + e rounded. ONNX's own
    # Softplus takes log(1 + e), which has no digits left for small steps, and is slower in ONNX Runtime. Above the
    # threshold of 20 the second term is below half an ulp of float32, so that the identity holds by itself.
    zero_float = Constant <value = float {0.0}> ()
    one_float = Constant <value = float {1.0}> ()
    bias = Unsqueeze (delta_bias, inner)
    x = Add (delta_seq, bias)
    x_abs = Abs (x)
    x_neg = Neg (x_abs)
    e = Exp (x_neg)
    w = Add (e, one_float)
    w_log = Log (w)
    w_less = Sub (w, one_float)
    ratio = Div (e, w_less)
    log1p_large = Mul (w_log, ratio)
    is_tiny = Equal (w, one_float)
    log1p = Where (is_tiny, e, log1p_large)
    x_pos = Max (x, zero_float)
    x_softplus = Add (x_pos, log1p)
    wanted = Constant <value_int: int = @delta_softplus> ()
    is_wanted = Cast <to = 9> (wanted)
    dt_seq = Where (is_wanted, x_softplus, x)
    dtu_seq = Mul (dt_seq, u_seq)

    A_turned = Transpose <perm = [0, 2, 1]> (A)
    A_state = Unsqueeze (A_turned, ones)
    state_shape = Concat <axis = 0> (directions, batch, states, channels)
    h_first = ConstantOfShape <value = float[1] {0.0}> (state_shape)
    h_last, y_seq = Scan <num_scan_inputs = 4, body = step
        (float[] h, float[] dt, float[] dtu, float[] B_step, float[] C_step) => (float[] h_next, float[] y_step) {
            exponent = Mul (dt, A_state)
            decay = Exp (exponent)
            kept = Mul (decay, h)
            fed = Mul (B_step, dtu)
            h_next = Add (kept, fed)
            y_step = MatMul (C_step, h_next)
        }> (h_first, dt_seq, dtu_seq, B_seq, C_seq)
    skip_weight = Unsqueeze (D, inner)
    skip = Mul (u_seq, skip_weight)
    y_rows = Add (y_seq, skip)

    # Back to positions; rows that no step visits stay 0. No row is written twice, so the scatter needs no reduction
    # (which TensorRT lacks): the directions are summed afterwards.
    unvisited = ConstantOfShape <value = float[1] {0.0}> (row_shape)
    row_index = Unsqueeze (row, last)
    y_scattered = ScatterND (unvisited, row_index, y_rows)
    y_shape = Concat <axis = 0> (positions, directions, batch, channels)
    y_by_direction = Reshape <allowzero = 1> (y_scattered, y_shape)
    y_summed = ReduceSum <keepdims = 0> (y_by_direction, ones)
    y_float = Transpose <perm = [1, 0, 2]> (y_summed)
    y = CastLike (y_float, u)
}"""


def selective_scan_function(opset: int = 20) -> onnx.FunctionProto:
    """The body of ``edgemamba::SelectiveScan`` version 1 in standard ONNX.

    Args:
        opset: of the model that will carry it; a model and its functions must import the same one.

    Returns:
        A function of the eight inputs of the operator and the integer attribute ``delta_softplus``, for T in float32,
        float16 and bfloat16; see ``kernels/include/edgemamba/scan.h`` for shapes. An empty batch is allowed.

    Raises:
        ValueError: the opset is not one of :data:`SUPPORTED_OPSETS`.
    """
    if opset not in SUPPORTED_OPSETS:
        raise ValueError(f"opset {opset}: {OP_TYPE} is written for {SUPPORTED_OPSETS[0]} to {SUPPORTED_OPSETS[-1]}")
    header = _HEADER.format(opset=opset, domain=DOMAIN, name=OP_TYPE, inputs=", ".join(INPUT_NAMES), output=OUTPUT_NAME)
    function: onnx.FunctionProto = parser.parse_function(header + _BODY)
    function.doc_string = "Selective scan (Mamba, arXiv:2312.00752, algorithm 2) over positions given by `order`."
    return function
