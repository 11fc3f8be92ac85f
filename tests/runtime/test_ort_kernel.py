"""The custom op in ONNX Runtime: values, types, shapes, threads, and what it says to bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto
from scan_cases import CASES, Case, assert_close, draw, model_in, rounded

from edgemamba.export.graph import selective_scan_model
from edgemamba.runtime.engines.ort import OrtCpuEngine, make_session
from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.reference import selective_scan

pytestmark = pytest.mark.skipif(OrtCpuEngine.unavailable() is not None, reason=str(OrtCpuEngine.unavailable()))

DTYPES = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str, threads: int) -> None:
    case = CASES[name]
    inputs = draw(case)
    model = selective_scan_model(delta_softplus=case.delta_softplus, function=False)
    (y,) = make_session(model.SerializeToString(), threads=threads).run(None, inputs)
    assert_close(y, selective_scan(**inputs, delta_softplus=case.delta_softplus))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_type_in_one_process(dtype: int) -> None:
    inputs = draw(CASES["partial_own_u"])
    session = make_session(model_in(dtype, function=False).SerializeToString(), threads=1)
    assert_close(session.run(None, inputs)[0], selective_scan(**rounded(inputs, dtype)), dtype)


def test_takes_no_steps_where_the_order_is_empty() -> None:
    inputs = draw(Case(2, 7, 1, 2, 4, 2, 0))
    (y,) = make_session(selective_scan_model(function=False).SerializeToString()).run(None, inputs)
    assert y.shape == (2, 7, 4)
    assert not y.any()


def test_the_kernel_wins_over_the_function_in_the_same_file() -> None:
    inputs = draw(CASES["four_directions"])
    inputs["order"][1, 2] = inputs["order"][1, 3]  # the function cannot see this; the kernel refuses it
    model = selective_scan_model().SerializeToString()
    make_session(model, kernel=False).run(None, inputs)
    with pytest.raises(Exception, match="visited twice"):
        make_session(model).run(None, inputs)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("order", lambda x: x + 3, r"order: entry \d+ at \[0, \d+\] is outside 0..11"),
        ("order", lambda x: x - 5, r"order: entry -\d+ at"),
        ("order", lambda x: np.concatenate([x, x], 1), "order: 24 steps, but there are 12 positions"),
        ("A", lambda x: x[:, :3], r"A: shape \(4, 3, 3\), expected \(G, D, N\) = \(4, 6, 3\)"),
        ("B", lambda x: x[:, :-1], r"B: shape"),
        ("C", lambda x: x[..., :-1], r"C: shape"),
        ("D", lambda x: x[:-1], r"D: shape"),
        ("delta_bias", lambda x: x[:, :-1], r"delta_bias: shape"),
        ("u", lambda x: np.repeat(x, 2, axis=2), "u: 2 directions, expected 1 or G = 4"),
        ("u", lambda x: x[:0], r"u: shape \(0, 12, 1, 6\)"),
    ],
)
def test_hostile_arguments_are_named(name: str, change: object, message: str) -> None:
    inputs = draw(CASES["four_directions"])
    assert callable(change)
    session = make_session(selective_scan_model(function=False).SerializeToString(), threads=1)
    with pytest.raises(Exception, match=f"SelectiveScan: {message}") as raised:
        session.run(None, {**inputs, name: np.ascontiguousarray(change(inputs[name]))})
    assert type(raised.value).__name__ == "InvalidArgument"
    (y,) = session.run(None, inputs)
    assert_close(y, selective_scan(**inputs))


@pytest.mark.parametrize("name", ["u", "delta", "A", "order"])
def test_a_wrong_rank_behind_an_untyped_graph_is_named(name: str) -> None:
    """ONNX Runtime checks declared ranks itself; without declared shapes the kernel must."""
    inputs = draw(CASES["four_directions"])
    model = selective_scan_model(function=False)
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    session = make_session(model.SerializeToString(), threads=1)
    for bad in (inputs[name].reshape(-1), inputs[name][(None,) * 8]):
        with pytest.raises(Exception, match=f"SelectiveScan: {name}: rank"):
            session.run(None, {**inputs, name: bad})


def test_an_unsupported_type_is_refused_when_the_session_is_made() -> None:
    model = selective_scan_model(function=False)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(EngineError, match="SelectiveScan"):
        make_session(model.SerializeToString())


@pytest.mark.parametrize("value", [2, -1])
def test_an_attribute_out_of_range_is_refused(value: int) -> None:
    model = selective_scan_model(function=False)
    model.graph.node[0].attribute[0].i = value
    with pytest.raises(EngineError, match="delta_softplus must be 0 or 1"):
        make_session(model.SerializeToString())


def test_softplus_is_the_default() -> None:
    inputs = draw(CASES["own_u"])
    model = selective_scan_model(function=False)
    del model.graph.node[0].attribute[:]
    (y,) = make_session(model.SerializeToString()).run(None, inputs)
    assert_close(y, selective_scan(**inputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_inference_keeps_symbols_and_numbers(dtype: int) -> None:
    model = selective_scan_model(dtype, extents={"D": 6, "batch": 2}, function=False)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert make_session(model.SerializeToString()).get_outputs()[0].shape == [2, "P", 6]
    # What u does not tell is taken from delta; what neither tells leaves the output without a shape.
    model.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    assert make_session(model.SerializeToString()).get_outputs()[0].shape == [2, "P", 6]
    model.graph.input[1].type.tensor_type.shape.dim[1].Clear()
    assert make_session(model.SerializeToString()).get_outputs()[0].shape == []


def test_concurrent_runs_of_one_session_and_of_many() -> None:
    inputs = [draw(CASES["vim"], seed) for seed in range(4)]
    expected = [selective_scan(**each) for each in inputs]
    model = selective_scan_model(function=False).SerializeToString()
    shared = make_session(model, threads=2)
    own = [make_session(model, threads=1 + seed % 3) for seed in range(4)]

    def work(seed: int) -> None:
        for _ in range(20):
            for session in (shared, own[seed]):
                assert_close(session.run(None, inputs[seed])[0], expected[seed])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_sessions_come_and_go() -> None:
    inputs = draw(CASES["vim"])
    model = selective_scan_model(function=False).SerializeToString()
    for threads in (1, 2, 1, 3, 2):
        (y,) = make_session(model, threads=threads).run(None, inputs)
    assert_close(y, selective_scan(**inputs))


def test_works_in_the_child_of_a_fork() -> None:
    """A data loader's worker, or a pre-forking server: the parent has used the kernel before."""
    script = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        from scan_cases import CASES, assert_close, draw
        from edgemamba.export.graph import selective_scan_model
        from edgemamba.runtime.engines.ort import make_session
        from edgemamba.runtime.reference import selective_scan
        inputs, model = draw(CASES["vim"]), selective_scan_model(function=False).SerializeToString()
        def check():
            assert_close(make_session(model, threads=2).run(None, inputs)[0], selective_scan(**inputs))
        check()
        child = os.fork()
        if child == 0:
            check()
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tests], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
