"""The CUDA scan on a real device against float64: the CPU operator's cases, the official vectors, and what a stream needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import golden_folder
from kernels.golden_ops import GoldenScan, golden_scans
from numpy.typing import NDArray
from scan_cases import CASES, TOLERANCE, Case, Inputs, assert_close, draw, rounded

from edgemamba.runtime import native, native_cuda, reference
from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.runtime.native import TensorView
from edgemamba.runtime.operator import INPUT_NAMES

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

DTYPES = {native.FLOAT32: torch.float32, native.FLOAT16: torch.float16, native.BFLOAT16: torch.bfloat16}
FORMS: tuple[native_cuda.Algorithm, ...] = ("sequential", "chunked")
LONG = Case(2, 3136, 1, 4, 40, 16, 3136)


@pytest.fixture(autouse=True)
def _device() -> None:
    reason = native_cuda.unavailable()
    if reason is not None:
        pytest.skip(reason)
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA: device memory comes from it")
    torch.cuda.init()


class DeviceScan:
    """Device copies of one call's tensors; ``run`` enqueues on the current stream."""

    def __init__(self, inputs: Inputs, dtype: int, algorithm: native_cuda.Algorithm, delta_softplus: bool) -> None:
        element = DTYPES[dtype]
        self.delta_softplus, self.algorithm = delta_softplus, algorithm
        self.tensors = [
            torch.from_numpy(np.ascontiguousarray(inputs[name]))
            .cuda()
            .to(element if name in ("u", "delta", "B", "C") else None)
            for name in INPUT_NAMES
        ]
        batch, positions, _, channels = inputs["delta"].shape
        # NaN, so that what is not written shows.
        self.y = torch.full((batch, positions, channels), float("nan"), dtype=element, device="cuda")
        count = torch.cuda.get_device_properties(0).multi_processor_count
        size = native_cuda.workspace_bytes(self.views(), algorithm, count)
        self.workspace = torch.full((max(size, 1),), 255, dtype=torch.uint8, device="cuda")

    def views(self) -> list[TensorView]:
        return [view(tensor) for tensor in self.tensors]

    def run(self, workspace_size: int | None = None) -> None:
        native_cuda.scan_forward_cuda(
            self.views(),
            self.delta_softplus,
            view(self.y),
            stream=torch.cuda.current_stream().cuda_stream,
            workspace=self.workspace.data_ptr(),
            workspace_size=self.workspace.numel() if workspace_size is None else workspace_size,
            algorithm=self.algorithm,
        )

    def result(self) -> NDArray[Any]:
        torch.cuda.synchronize()
        return np.asarray(self.y.float().cpu().numpy())


def view(tensor: Any) -> TensorView:
    numbers = {element: number for number, element in DTYPES.items()} | {torch.int32: native.INT32}
    return TensorView(tensor.data_ptr() if tensor.numel() else 0, tuple(tensor.shape), numbers[tensor.dtype])


def scan(inputs: Inputs, dtype: int, algorithm: native_cuda.Algorithm, delta_softplus: bool = True) -> NDArray[Any]:
    call = DeviceScan(inputs, dtype, algorithm, delta_softplus)
    call.run()
    return call.result()


def expected_of(inputs: Inputs, delta_softplus: bool = True) -> NDArray[np.float64]:
    return reference.selective_scan(*(inputs[name] for name in INPUT_NAMES), delta_softplus)


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_cases(case: Case, dtype: int, algorithm: native_cuda.Algorithm) -> None:
    inputs = rounded(draw(case), dtype)
    expected = expected_of(inputs, case.delta_softplus)
    found = scan(inputs, dtype, algorithm, case.delta_softplus)
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_whole_stage(dtype: int, algorithm: native_cuda.Algorithm) -> None:
    inputs = rounded(draw(LONG), dtype)
    expected = expected_of(inputs)
    found = scan(inputs, dtype, algorithm)
    tolerance = max(TOLERANCE[dtype], 1e-5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_golden(request: pytest.FixtureRequest) -> None:
    scans = [scan for scan in golden_scans(golden_folder(request.config)) if scan.tensors["A"].shape[1] <= 64]
    assert scans
    for algorithm in FORMS:
        for golden in scans:
            check_golden(golden, algorithm)


def check_golden(golden: GoldenScan, algorithm: native_cuda.Algorithm) -> None:
    inputs = golden.inputs(np.float32)
    found = golden.output(scan(inputs, native.FLOAT32, algorithm, golden.delta_softplus))
    scale = max(1.0, float(np.abs(golden.expected).max()))
    np.testing.assert_allclose(found, golden.expected, rtol=0, atol=1e-5 * scale, err_msg=golden.name)


@pytest.mark.parametrize("algorithm", FORMS)
def test_same_bits_every_time(algorithm: native_cuda.Algorithm) -> None:
    inputs = draw(LONG)
    first = scan(inputs, native.FLOAT16, algorithm)
    for _ in range(3):
        np.testing.assert_array_equal(scan(inputs, native.FLOAT16, algorithm), first)


@pytest.mark.parametrize("algorithm", FORMS)
def test_positions_out_of_range_are_left_out(algorithm: native_cuda.Algorithm) -> None:
    good = draw(Case(2, 80, 1, 3, 24, 16, 60))
    bad = dict(good)
    places = np.arange(60) % 6 == 2
    bad["order"] = np.where(places, np.resize([-1, 80, 2**31 - 1, -(2**31)], 60), good["order"]).astype(np.int32)
    good["order"] = np.ascontiguousarray(good["order"][:, ~places])
    assert_close(scan(bad, native.FLOAT32, algorithm), expected_of(good))


def test_less_workspace_means_fewer_chunks_then_an_error() -> None:
    inputs = draw(Case(1, 2000, 1, 2, 32, 16, 2000))
    call = DeviceScan(inputs, native.FLOAT32, "chunked", True)
    sequential = native_cuda.workspace_bytes(call.views(), "sequential")
    for size in (call.workspace.numel() // 2 + sequential // 2, sequential):
        call.y.fill_(float("nan"))
        call.run(size)
        assert_close(call.result(), expected_of(inputs))
    with pytest.raises(ScanArgumentError, match=r"^workspace: \d+ bytes, expected at least"):
        call.run(sequential - 1)


@pytest.mark.parametrize("algorithm", FORMS)
def test_captured_graph_follows_its_inputs(algorithm: native_cuda.Algorithm) -> None:
    call = DeviceScan(draw(LONG), native.FLOAT32, algorithm, True)
    native_cuda.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    for seed in (1, 2):
        inputs = draw(LONG, seed)
        for tensor, name in zip(call.tensors, INPUT_NAMES, strict=True):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(inputs[name])))
        graph.replay()
        expected = expected_of(inputs)
        np.testing.assert_allclose(call.result(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
