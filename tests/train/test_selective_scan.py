"""The PyTorch operator: values and gradients against the step loop, tracing, and calls that break the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgemamba.runtime import native
from edgemamba.runtime.errors import ScanArgumentError
from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.scan_orders import scan_order
from edgemamba.train.selective_scan import selective_scan

FLOATING = ("u", "delta", "A", "B", "C", "D", "delta_bias")
Inputs = dict[str, Tensor]


def make_inputs(
    batch: int = 2,
    positions: int = 7,
    channels: int = 5,
    states: int = 3,
    directions: int = 2,
    *,
    shared: bool = False,
    steps: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    order = torch.stack([torch.randperm(positions, generator=generator) for _ in range(directions)])
    return {
        "u": normal(batch, positions, 1 if shared else directions, channels).to(dtype),
        "delta": normal(batch, positions, directions, channels).to(dtype),
        "A": -normal(directions, channels, states).exp().to(parameter),
        "B": normal(batch, positions, directions, states).to(dtype),
        "C": normal(batch, positions, directions, states).to(dtype),
        "D": normal(directions, channels).to(parameter),
        "delta_bias": normal(directions, channels).to(parameter),
        "order": order[:, :steps].to(torch.int32).contiguous(),
    }


def gradients(scan: Callable[..., Tensor], inputs: Inputs, softplus: bool) -> list[Tensor]:
    leaves = {name: x.clone().requires_grad_(name in FLOATING) for name, x in inputs.items()}
    y = scan(**leaves, delta_softplus=softplus)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=y.device).reshape(y.shape).to(y.dtype)
    return list(torch.autograd.grad((y * weight).sum(), [leaves[name] for name in FLOATING]))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"shared": True, "directions": 4, "channels": 9},
        {"steps": 4},
        {"positions": 1, "directions": 1, "states": 1},
        {"batch": 0},
        {"states": 16, "channels": 17, "positions": 33},
    ],
    ids=str,
)
def test_values_and_gradients_equal_the_step_loop(case: dict[str, int], softplus: bool) -> None:
    inputs = make_inputs(**case)  # type: ignore[arg-type]
    expected = selective_scan_reference(**inputs, delta_softplus=softplus)
    torch.testing.assert_close(selective_scan(**inputs, delta_softplus=softplus), expected, rtol=1e-11, atol=1e-11)
    for name, ours, theirs in zip(
        FLOATING,
        gradients(selective_scan, inputs, softplus),
        gradients(selective_scan_reference, inputs, softplus),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_narrow_types_keep_a_float32_state(dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs(positions=40, channels=19, states=16, dtype=dtype)
    y = selective_scan(**inputs)
    assert y.dtype == dtype
    wide = {name: x.double() if name != "order" else x for name, x in inputs.items()}
    expected = selective_scan_reference(**wide)
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()
    for name, ours, theirs in zip(
        FLOATING,
        gradients(selective_scan, inputs, True),
        gradients(selective_scan_reference, wide, True),
        strict=True,
    ):
        assert ours.dtype == inputs[name].dtype
        assert (ours.double() - theirs).abs().max() <= 4 * tolerance * theirs.abs().max(), name


def test_gradcheck() -> None:
    inputs = make_inputs(batch=1, positions=5, channels=2, states=2)
    leaves = [x.requires_grad_() if name in FLOATING else x for name, x in inputs.items()]
    assert torch.autograd.gradcheck(selective_scan, leaves)


def test_opcheck() -> None:
    for dtype, wanted in ((torch.float32, FLOATING), (torch.float64, ("u", "A")), (torch.float32, ())):
        inputs = make_inputs(dtype=dtype)
        arguments = tuple(x.requires_grad_() if name in wanted else x for name, x in inputs.items())
        torch.library.opcheck(torch.ops.edgemamba.selective_scan.default, (*arguments, True))
    dy = torch.randn(2, 7, 5)
    plain = tuple(make_inputs(dtype=torch.float32).values())
    mask = [True, False, True, True, False, True, True]
    torch.library.opcheck(torch.ops.edgemamba.selective_scan_backward.default, (dy, *plain, True, mask))


@pytest.mark.parametrize(
    "case", [{}, {"positions": 70, "steps": 65, "channels": 19}, {"batch": 0}, {"steps": 0}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_with_kept_checkpoints_equal_those_that_find_them_again(
    case: dict[str, int], dtype: torch.dtype
) -> None:
    inputs = make_inputs(**case, dtype=dtype)  # type: ignore[arg-type]
    arguments = (*inputs.values(), True)
    y, checkpoints = torch.ops.edgemamba.selective_scan_checkpointed(*arguments)
    assert torch.equal(y, torch.ops.edgemamba.selective_scan(*arguments))
    torch.library.opcheck(torch.ops.edgemamba.selective_scan_checkpointed.default, arguments)
    dy, mask = torch.randn_like(y), [True] * 7
    backward = torch.ops.edgemamba.selective_scan_backward
    kept = backward(dy, *arguments, mask, checkpoints)
    for ours, again in zip(kept, backward(dy, *arguments, mask), strict=True):
        torch.testing.assert_close(ours, again, rtol=1e-6, atol=1e-6)
    torch.library.opcheck(backward.default, (dy, *arguments, mask, checkpoints))
    strided = torch.stack([checkpoints, checkpoints], -1)[..., 0]
    for ours, again in zip(kept, backward(dy, *arguments, mask, strided), strict=True):
        assert torch.equal(ours, again)
    if dtype == torch.float32:
        leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs.values()]
        torch.library.opcheck(torch.ops.edgemamba.selective_scan_checkpointed.default, (*leaves, True))


class Unused(torch.autograd.Function):
    """The identity, that gives no gradient at all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        return None


def test_an_output_without_a_gradient_gives_none() -> None:
    inputs = make_inputs(dtype=torch.float32)
    inputs["A"].requires_grad_()
    free = torch.zeros(1, requires_grad=True)
    (Unused.apply(selective_scan(**inputs)).sum() + free).sum().backward()
    assert inputs["A"].grad is None
    assert free.grad is not None


def test_checkpoints_are_kept_only_where_a_gradient_will_be_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    forward = native.scan_forward
    monkeypatch.setattr(
        native, "scan_forward", lambda *args, **named: (kept.append(len(args) > 4), forward(*args, **named))
    )
    inputs = make_inputs(dtype=torch.float32)
    selective_scan(**inputs)
    inputs["A"].requires_grad_()
    with torch.no_grad():
        selective_scan(**inputs)
    y = selective_scan(**inputs)
    assert kept == [False, False, True]
    y.sum().backward()
    graph = torch.export.export(Scanning(), tuple(inputs.values())).graph
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    assert targets == {torch.ops.edgemamba.selective_scan.default}, "exporters know one operator"


class Scanning(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return selective_scan(*inputs)


def test_checkpoints_of_another_shape_are_refused() -> None:
    inputs = make_inputs(dtype=torch.float32)
    y, checkpoints = torch.ops.edgemamba.selective_scan_checkpointed(*inputs.values(), True)
    with pytest.raises(ScanArgumentError, match=r"^checkpoints: shape"):
        torch.ops.edgemamba.selective_scan_backward(y, *inputs.values(), True, [True] * 7, checkpoints[:, :, :1])


def test_only_wanted_gradients_are_computed() -> None:
    inputs = make_inputs()
    inputs["A"].requires_grad_()
    selective_scan(**inputs).sum().backward()
    assert inputs["A"].grad is not None
    assert all(inputs[name].grad is None for name in FLOATING if name != "A")


def test_inputs_need_not_be_contiguous() -> None:
    inputs = make_inputs()
    expected = selective_scan(**inputs)
    strided = {name: torch.stack([x, x], dim=-1)[..., 0] for name, x in inputs.items()}
    assert not strided["u"].is_contiguous()
    assert torch.equal(selective_scan(**strided), expected)


def test_autocast_keeps_the_parameters_in_float32() -> None:
    inputs = make_inputs(positions=20, channels=8, dtype=torch.float32)
    expected = selective_scan(**inputs)
    for name in ("A", "delta"):
        inputs[name].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(**inputs)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    y.float().sum().backward()
    assert inputs["A"].grad is not None
    assert inputs["A"].grad.dtype == inputs["delta"].grad.dtype == torch.float32


def test_compiles_without_a_graph_break() -> None:
    inputs = make_inputs(dtype=torch.float32)
    inputs["u"].requires_grad_()
    compiled = torch.compile(lambda **x: selective_scan(**x) * 2, backend="aot_eager", fullgraph=True)
    y = compiled(**inputs)
    torch.testing.assert_close(y, selective_scan(**inputs) * 2)
    y.sum().backward()
    assert inputs["u"].grad is not None


class _Scan(torch.nn.Module):
    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, D, bias, scan_order("bidirectional", u.shape[1:2], u.device))


def test_exports_as_one_node_with_dynamic_length() -> None:
    def arguments(positions: int) -> tuple[Tensor, ...]:
        return tuple(make_inputs(positions=positions, dtype=torch.float32)[name] for name in FLOATING)

    length = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=1)}
    shapes = (length, length, None, length, length, None, None)
    program = torch.export.export(_Scan(), arguments(7), dynamic_shapes=shapes)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.edgemamba.selective_scan.default) == 1
    for positions in (7, 12):
        torch.testing.assert_close(program.module()(*arguments(positions)), _Scan()(*arguments(positions)))


HOSTILE: list[tuple[str, Callable[[Inputs], object]]] = [
    ("u", lambda x: x.update(u=x["u"][0])),
    ("u", lambda x: x.update(u=x["u"].long())),
    ("u", lambda x: x.update(u=x["u"].to(torch.complex64))),
    ("u", lambda x: x.update(u=x["u"].repeat(1, 1, 2, 1)[:, :, :3])),
    ("delta", lambda x: x.update(delta=x["delta"].flatten(2))),
    ("delta", lambda x: x.update(delta=x["delta"].half())),
    ("A", lambda x: x.update(A=x["A"].half())),
    ("A", lambda x: x.update(A=x["A"][..., :0], B=x["B"][..., :0], C=x["C"][..., :0])),
    ("B", lambda x: x.update(B=x["B"][..., :-1])),
    ("C", lambda x: x.update(C=x["C"][:1])),
    ("D", lambda x: x.update(D=x["D"][0])),
    ("D", lambda x: x.update(D=x["D"].double())),
    ("delta_bias", lambda x: x.update(delta_bias=x["delta_bias"][:1])),
    ("order", lambda x: x.update(order=x["order"].long())),
    ("order", lambda x: x.update(order=x["order"].flatten())),
    ("order", lambda x: x.update(order=torch.cat([x["order"], x["order"]], 1))),
    ("order", lambda x: x["order"].__setitem__((0, 0), 7)),
    ("order", lambda x: x["order"].__setitem__((1, 2), -1)),
    ("order", lambda x: x["order"].__setitem__((0, 0), int(x["order"][0, 1]))),
]


@pytest.mark.parametrize(("name", "spoil"), HOSTILE, ids=[f"{name}-{i}" for i, (name, _) in enumerate(HOSTILE)])
@pytest.mark.parametrize("scan", [selective_scan, selective_scan_reference], ids=["native", "reference"])
def test_a_hostile_call_is_an_error_that_names_the_argument(
    scan: Callable[..., Tensor], name: str, spoil: Callable[[Inputs], object]
) -> None:
    inputs = make_inputs(dtype=torch.float32)
    spoil(inputs)
    with pytest.raises(ScanArgumentError, match=rf"^{name}\b"):
        scan(**inputs)


def test_tracing_a_hostile_call_names_the_argument() -> None:
    with torch.device("meta"):
        inputs = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in make_inputs(dtype=torch.float32).items()}
    assert selective_scan(**inputs).shape == (2, 7, 5)
    inputs["B"] = inputs["B"][:, :3]
    with pytest.raises(ScanArgumentError, match=r"^B\b"):
        selective_scan(**inputs)
