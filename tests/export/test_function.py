"""The operator's FunctionProto, run by stock ONNX Runtime and by onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto
from scan_cases import CASES, assert_close, draw, model_in, rounded

from edgemamba.export.function import SUPPORTED_OPSETS, selective_scan_function
from edgemamba.export.graph import attach_function, inline_functions, selective_scan_model, strip_functions
from edgemamba.runtime.engines.ort import make_session
from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.operator import DOMAIN
from edgemamba.runtime.reference import selective_scan

DTYPES = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str) -> None:
    case = CASES[name]
    inputs = draw(case)
    expected = selective_scan(**inputs, delta_softplus=case.delta_softplus)
    model = selective_scan_model(delta_softplus=case.delta_softplus)
    (by_ort,) = make_session(model.SerializeToString(), kernel=False, threads=1).run(None, inputs)
    assert_close(by_ort, expected)
    if case.positions < 100:
        (by_onnx,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
        assert_close(by_onnx, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_computes_in_float32_whatever_the_element_type(dtype: int) -> None:
    inputs = draw(CASES["partial_own_u"])
    session = make_session(model_in(dtype).SerializeToString(), kernel=False, threads=1)
    assert_close(session.run(None, inputs)[0], selective_scan(**rounded(inputs, dtype)), dtype)


def test_positions_that_nobody_visits_are_zero() -> None:
    inputs = draw(CASES["partial_orders"])
    inputs["order"] = np.tile(np.arange(5, dtype=np.int32), (4, 1))
    (y,) = make_session(selective_scan_model().SerializeToString(), kernel=False, threads=1).run(None, inputs)
    assert np.all(y[:, 5:] == 0)
    assert np.all(y[:, :5] != 0)


@pytest.mark.parametrize("opset", SUPPORTED_OPSETS)
def test_is_valid_in_every_supported_opset(opset: int) -> None:
    model = selective_scan_model(opset=opset)
    onnx.checker.check_model(model, full_check=True)
    inputs = draw(CASES["own_u"])
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    assert_close(y, selective_scan(**inputs))


def test_refuses_other_opsets() -> None:
    with pytest.raises(ValueError, match="opset 17"):
        selective_scan_function(17)


def test_holds_one_scan_and_nothing_that_tensorrt_or_accuracy_forbids() -> None:
    types = [node.op_type for node in selective_scan_function().node]
    assert types.count("Scan") == 1
    assert not {"Loop", "If", "CumSum", "Softplus", "SequenceAt"} & set(types)


def test_attach_is_idempotent_and_strip_undoes_it() -> None:
    bare = selective_scan_model(opset=21, function=False)
    once = attach_function(bare)
    assert attach_function(once) == once
    assert [entry.version for entry in once.functions[0].opset_import] == [21]
    assert strip_functions(once) == bare
    assert len(bare.functions) == 0, "the argument is left as it was"
    with pytest.raises(EngineError, match="SelectiveScan"):
        make_session(strip_functions(once).SerializeToString(), kernel=False)


def test_inlined_model_is_standard_onnx() -> None:
    model = inline_functions(selective_scan_model())
    assert not model.functions
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert DOMAIN not in {entry.domain for entry in model.opset_import}
    onnx.checker.check_model(model, full_check=True)
    inputs = draw(CASES["vim"])
    (y,) = make_session(model.SerializeToString(), kernel=False, threads=1).run(None, inputs)
    assert_close(y, selective_scan(**inputs))


def test_attach_needs_a_standard_opset() -> None:
    model = selective_scan_model(function=False)
    del model.opset_import[:]
    with pytest.raises(ValueError, match="no version of the standard ONNX opset"):
        attach_function(model)
