"""Run by test_triton_scan.py in a process of its own, because Triton decides when it is imported whether it interprets.

TRITON_INTERPRET=1 python tests/train/triton_interpreted.py CASE...     one JSON object: case -> null, or what went wrong
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest has it
from train.test_selective_scan import FLOATING, Inputs, gradients, make_inputs

from edgemamba.train.reference_scan import selective_scan_reference
from edgemamba.train.triton_scan import launch
from edgemamba.train.triton_scan.configuration import TILE, BackwardConfig, ForwardConfig

CHECKPOINTS = ForwardConfig(32, 1)


def tensors(inputs: Inputs) -> launch.Inputs:
    return tuple(x.contiguous() for x in inputs.values())  # type: ignore[return-value]


def assert_near(name: str, ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest value, everywhere; NaN is nowhere."""
    assert ours.shape == expected.shape, (name, ours.shape, expected.shape)
    if expected.numel():
        worst = float((ours.double() - expected).abs().max())
        allowed = tolerance * float(expected.abs().max()) + 1e-30
        assert worst <= allowed, f"{name}: {worst:.3g} off, {allowed:.3g} allowed"


def compare(
    inputs: Inputs,
    *,
    softplus: bool = True,
    tolerance: float = 2e-6,
    forward: ForwardConfig | None = None,
    backward: BackwardConfig | None = None,
) -> None:
    """Values and all gradients against autograd through the step loop in float64."""
    wide = {name: x.double() if name != "order" else x for name, x in inputs.items()}
    y = launch.forward(tensors(inputs), softplus, forward)
    assert y.dtype == inputs["u"].dtype
    assert_near("y", y, selective_scan_reference(**wide, delta_softplus=softplus), tolerance)
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    found = launch.backward(dy, tensors(inputs), softplus, [True] * 7, backward)
    expected = gradients(lambda **x: selective_scan_reference(**x) + 0, wide, softplus)
    for name, ours, theirs in zip(FLOATING, found, expected, strict=True):
        assert ours.dtype == inputs[name].dtype, name
        assert_near(name, ours, theirs, 2 * tolerance)


def several_directions() -> None:
    compare(make_inputs(batch=2, positions=2 * TILE + 3, channels=5, states=4, directions=3, dtype=torch.float32))


def shared_values() -> None:
    case = make_inputs(batch=2, positions=11, channels=5, states=4, directions=3, shared=True, dtype=torch.float32)
    compare(case)


def one_direction() -> None:
    compare(make_inputs(batch=1, positions=9, channels=3, states=1, directions=1, dtype=torch.float32))


def partial_order() -> None:
    for shared in (False, True):
        compare(make_inputs(positions=2 * TILE, steps=TILE + 2, shared=shared, dtype=torch.float32))


def sixteen_states() -> None:
    compare(make_inputs(batch=1, positions=10, channels=35, states=16, dtype=torch.float32))


def states_no_power_of_two() -> None:
    compare(make_inputs(batch=1, positions=9, channels=33, states=5, dtype=torch.float32))


def one_step() -> None:
    inputs = make_inputs(batch=2, positions=1, channels=3, states=2, dtype=torch.float32)
    compare(inputs)


def without_softplus() -> None:
    inputs = make_inputs(positions=TILE + 1, dtype=torch.float32)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    compare(inputs, softplus=False)


def nothing() -> None:
    """No image, no step, no channel: zeros, or no elements, and no launch."""
    for case in ({"batch": 0}, {"steps": 0}, {"channels": 0}):
        inputs = make_inputs(**case, dtype=torch.float32)  # type: ignore[arg-type]
        y = launch.forward(tensors(inputs), True)
        assert y.shape == (inputs["u"].shape[0], 7, inputs["u"].shape[3])
        assert not y.any()
        for name, gradient in zip(FLOATING, launch.backward(y, tensors(inputs), True, [True] * 7), strict=True):
            assert gradient.shape == inputs[name].shape
            assert not gradient.any()


def large_and_small_steps() -> None:
    """delta from -80 to 1e4: a step of e^-80, softplus's threshold, and decays that leave nothing of the state."""
    inputs = make_inputs(batch=1, positions=12, channels=3, states=2, directions=1, dtype=torch.float32)
    row = torch.tensor([-80.0, -30, -15, -5, -1e-3, 0, 1, 19.99, 20.01, 50, 1e3, 1e4])
    inputs["delta"] = row.reshape(1, -1, 1, 1).expand(1, -1, 1, 3).contiguous()
    inputs["delta_bias"].zero_()
    compare(inputs)


def narrow_types() -> None:
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)):
        compare(make_inputs(batch=1, positions=9, channels=5, states=4, shared=True, dtype=dtype), tolerance=tolerance)


def every_configuration() -> None:
    """Blocks of several lanes a channel's width, states one at a time: the numbers hardly move."""
    inputs = make_inputs(batch=1, positions=9, channels=70, states=3, dtype=torch.float32)
    for shape in ((32, 1), (64, 2), (128, 4)):
        for states in (1, 4):
            config = BackwardConfig(*shape, states, CHECKPOINTS)
            compare(inputs, forward=ForwardConfig(*shape), backward=config)


def unwanted_gradients() -> None:
    inputs = make_inputs(batch=1, positions=9, dtype=torch.float32)
    dy = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(1))
    every = launch.backward(dy, tensors(inputs), True, [True] * 7)
    for skipped in range(7):
        wanted = [i != skipped for i in range(7)]
        for i, gradient in enumerate(launch.backward(dy, tensors(inputs), True, wanted)):
            assert gradient.numel() == 0 if i == skipped else torch.equal(gradient, every[i]), (skipped, i)


def repeats_exactly() -> None:
    inputs = make_inputs(batch=2, positions=9, channels=40, shared=True, dtype=torch.float32)
    dy = torch.ones(2, 9, 40)
    first, second = (launch.backward(dy, tensors(inputs), True, [True] * 7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def positions_outside_are_no_steps() -> None:
    """What a GPU, which cannot check them without waiting, makes of them: the scan of the other steps."""
    inputs = make_inputs(batch=1, positions=9, directions=1, dtype=torch.float32)
    shortened = inputs | {"order": inputs["order"][:, [0, 1, 3, 4, 6]].contiguous()}
    spoilt = inputs["order"][:, :7].clone()
    spoilt[0, 2], spoilt[0, 5] = -3, 9
    y = launch.forward(tensors(inputs | {"order": spoilt}), True)
    torch.testing.assert_close(y, launch.forward(tensors(shortened), True))
    dy = torch.ones(1, 9, 5)
    both = [launch.backward(dy, tensors(inputs | {"order": o}), True, [True] * 7) for o in (spoilt, shortened["order"])]
    for ours, expected in zip(*both, strict=True):
        torch.testing.assert_close(ours, expected)


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        several_directions,
        shared_values,
        one_direction,
        partial_order,
        sixteen_states,
        states_no_power_of_two,
        one_step,
        without_softplus,
        nothing,
        large_and_small_steps,
        narrow_types,
        every_configuration,
        unwanted_gradients,
        repeats_exactly,
        positions_outside_are_no_steps,
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    outcomes: dict[str, str | None] = {}
    for chosen in sys.argv[1:]:
        try:
            CASES[chosen]()
            outcomes[chosen] = None
        except Exception:
            outcomes[chosen] = traceback.format_exc()
    print(json.dumps(outcomes))
