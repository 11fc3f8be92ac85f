"""The selective scan on a real NVIDIA GPU: against float64, under torch.compile, autocast and CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from train.test_selective_scan import FLOATING, Inputs, gradients, make_inputs

from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.selective_scan import selective_scan

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here, or a PyTorch without CUDA")
    # Tuning is a test of its own: here it would only multiply what has to be compiled.
    monkeypatch.setenv("EDGEMAMBA_TRITON_TUNE", "0")


def on_device(inputs: Inputs) -> Inputs:
    return {name: x.detach().cuda().requires_grad_(x.requires_grad) for name, x in inputs.items()}


def assert_near(ours: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    assert ours.is_cuda, name
    if expected.numel():
        worst = float((ours.cpu().double() - expected).abs().max())
        assert worst <= tolerance * float(expected.abs().max()) + 1e-30, (name, worst)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"shared": True, "directions": 4, "channels": 384, "positions": 197, "states": 16},
        {"positions": 64, "steps": 30, "channels": 65, "states": 1},
        {"batch": 1, "positions": 1, "directions": 1, "states": 4},
        {"batch": 0},
        {"positions": 50, "channels": 40, "states": 33},
    ],
    ids=str,
)
def test_values_and_gradients(case: dict[str, int], dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs(**case, dtype=dtype)  # type: ignore[arg-type]
    wide = {name: x.double() if name != "order" else x for name, x in inputs.items()}
    y = selective_scan(**on_device(inputs))
    assert y.dtype == dtype
    assert_near(y, selective_scan_reference(**wide), tolerance, "y")
    # float64 through the native library: the step loop at 197 steps would take the time of all the rest.
    expected = gradients(selective_scan, wide, True)
    for name, ours, theirs in zip(FLOATING, gradients(_on_cuda_weighted, inputs, True), expected, strict=True):
        assert_near(ours.cuda(), theirs, 4 * tolerance, name)


def _on_cuda_weighted(delta_softplus: bool = True, **inputs: Tensor) -> Tensor:
    """The scan on the GPU of arguments on the CPU: autograd carries the gradients back over the copies."""
    return selective_scan(**{name: x.cuda() for name, x in inputs.items()}, delta_softplus=delta_softplus).cpu()


@pytest.mark.parametrize("config", range(5))
def test_every_candidate_of_the_tuner(config: int) -> None:
    from edgemamba.train.triton_scan import launch
    from edgemamba.train.triton_scan.configuration import backward_candidates, forward_candidates

    inputs = make_inputs(positions=30, channels=200, states=16, shared=True, dtype=torch.float32)
    device = tuple(on_device(inputs).values())
    expected = selective_scan(**inputs)
    forward, backward = forward_candidates(200, 16)[config], backward_candidates(200, 16)[config]
    torch.testing.assert_close(launch.forward(device, True, forward).cpu(), expected, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
    dy = torch.linspace(-1, 1, expected.numel()).reshape(expected.shape)
    found = launch.backward(dy.cuda(), device, True, [True] * 7, backward)  # type: ignore[arg-type]
    wide = {name: x.double() if name != "order" else x for name, x in inputs.items()}
    for name, ours, theirs in zip(FLOATING, found, gradients(selective_scan, wide, True), strict=True):
        assert_near(ours, theirs, 1e-4, name)


def test_opcheck() -> None:
    for wanted in (FLOATING, ("u", "A"), ()):
        inputs = on_device(make_inputs(dtype=torch.float32))
        arguments = tuple(x.requires_grad_() if name in wanted else x for name, x in inputs.items())
        torch.library.opcheck(torch.ops.edgemamba.selective_scan.default, (*arguments, True))


def test_gradcheck_in_float64() -> None:
    inputs = on_device(make_inputs(batch=1, positions=5, channels=2, states=2))
    leaves = [x.requires_grad_() if name in FLOATING else x for name, x in inputs.items()]
    assert torch.autograd.gradcheck(selective_scan, leaves)


def test_gradients_are_the_same_from_run_to_run() -> None:
    inputs = on_device(make_inputs(positions=100, channels=200, states=16, shared=True, dtype=torch.float16))
    first = gradients(selective_scan, inputs, True)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(selective_scan, inputs, True), strict=True))


def test_compiles_without_a_graph_break() -> None:
    inputs = on_device(make_inputs(dtype=torch.float32))
    inputs["u"].requires_grad_()
    compiled = torch.compile(lambda **x: selective_scan(**x) * 2, fullgraph=True)
    y = compiled(**inputs)
    torch.testing.assert_close(y, selective_scan(**inputs) * 2)
    [ours] = torch.autograd.grad(y.sum(), inputs["u"])
    [expected] = torch.autograd.grad(2 * selective_scan(**inputs).sum(), inputs["u"])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    inputs = on_device(make_inputs(positions=20, channels=8, dtype=torch.float32))
    expected = selective_scan(**inputs)
    for name in ("A", "delta"):
        inputs[name].requires_grad_()
    with torch.autocast("cuda", dtype=dtype):
        y = selective_scan(**inputs)
    assert y.dtype == dtype
    assert (y.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    y.float().sum().backward()
    assert inputs["A"].grad is not None
    assert inputs["A"].grad.dtype == inputs["delta"].grad.dtype == torch.float32


def test_forward_and_backward_in_a_cuda_graph() -> None:
    inputs = on_device(make_inputs(positions=20, channels=40, states=16, shared=True, dtype=torch.float32))
    leaves = {name: x.requires_grad_(name in FLOATING) for name, x in inputs.items()}

    def step() -> tuple[Tensor, ...]:
        y = selective_scan(**leaves)
        return (y.detach(), *torch.autograd.grad((y * y).sum(), [leaves[name] for name in FLOATING]))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves["u"].normal_()
    graph.replay()
    torch.cuda.synchronize()
    for ours, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_tuning_leaves_a_choice(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from edgemamba.train.triton_scan import tuning

    monkeypatch.setenv("EDGEMAMBA_TRITON_TUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_chosen", {})
    inputs = on_device(make_inputs(positions=20, channels=70, dtype=torch.float32))
    gradients(selective_scan, inputs, True)
    [file] = tmp_path.rglob("*.json")
    assert len(file.read_text().splitlines()) == 4  # a brace, the forward, the backward, a brace


def test_a_call_on_two_devices_names_the_argument() -> None:
    inputs = on_device(make_inputs(dtype=torch.float32))
    inputs["B"] = inputs["B"].cpu()
    with pytest.raises(ScanArgumentError, match=r"^B\b"):
        selective_scan(**inputs)
