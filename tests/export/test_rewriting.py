"""The one rule of the exporter's optimisation that is left out."""

import onnx_ir as ir
import pytest
from onnx import parser
from onnxscript import optimizer

from edgemamba.export.rewriting import without_quadratic_rules

# In the order in which the rule finds them.
HALVES = """
<ir_version: 10, opset_import: ["" : 20]>
halves (float[2, 8] x) => (float[2, 4] a, float[2, 4] b)
<int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {1}>
{
    right = Slice(x, four, eight, last)
    left = Slice(x, zero, four, last)
    a = Relu(left)
    b = Relu(right)
}
"""


def optimised() -> list[str]:
    """Operators of a graph of two Slices, optimised as the exporter does it."""
    model = ir.from_proto(parser.parse_model(HALVES))
    optimizer.optimize_ir(model)
    return [node.op_type for node in model.graph if node.op_type != "Relu"]


def test_two_halves_stay_slices_only_inside_the_block():
    before = optimised()
    with without_quadratic_rules():
        inside = optimised()
    assert inside == ["Slice", "Slice"]
    # Where this fails onnxscript has dropped the rule, and so may we.
    assert before == optimised() == ["Split"]


def test_an_error_inside_gives_the_rule_back():
    with pytest.raises(ZeroDivisionError), without_quadratic_rules():
        raise ZeroDivisionError
    assert optimised() == ["Split"]
