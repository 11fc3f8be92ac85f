"""torch.compile: runs, whole graphs, and what it sees of the scan on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import SIDE, small_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from training_toys import tiny_vim, write_npz

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.training import train

pytestmark = pytest.mark.usefixtures("one_thread")
LAYER = {"embed_dim": 16, "depth": 1, "d_state": 4}


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path: Path, losses: dict[int, float]) -> None:
    npz = write_npz(tmp_path / "x.npz")
    expected = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        settings = tiny_vim(npz, tmp_path / name, config=LAYER, epochs=1, compile=compiled)
        result = train(settings)
        assert result is not None
        if not compiled:
            expected, loss = dict(losses), result.val.loss
    assert losses is not expected
    assert losses == pytest.approx(expected, rel=1e-4)
    assert result.val.loss == pytest.approx(loss, rel=1e-4)
    content = torch.load(result.last, weights_only=True)
    assert not any("_orig_mod" in name for key in ("state_dict", "trained_state_dict") for name in content[key])


def test_compiling_for_the_cpu_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match="--compile on the CPU needs a C"):
        train(tiny_vim(write_npz(tmp_path / "x.npz"), tmp_path / "run", compile=True))


@pytest.mark.parametrize("name", ["vim_tiny", "medmamba_t", "local_vmamba_t", "mambavision_t"])
def test_models_are_one_graph(name: str) -> None:
    model = small_model(name).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # raises at a graph break
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels), model(pixels))


def test_the_scan_of_cuda_tensors_is_one_node_each_way_without_a_gpu() -> None:
    """Traced with fake CUDA tensors: neither Triton's launches nor the values of the order are seen, so no graph breaks.

    The gradient's operator is called by itself, because torch's autograd engine asks for a CUDA context.
    """
    batch, positions, directions, channels, states = 2, 8, 2, 4, 3

    def both_ways(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.ops.edgemamba.selective_scan(*inputs, True)
        return y, *torch.ops.edgemamba.selective_scan_backward(y, *inputs, True, [True] * 7)

    with FakeTensorMode():
        parameters = torch.empty(directions, channels, device="cuda")
        projection = torch.empty(batch, positions, directions, states, device="cuda", dtype=torch.float16)
        delta = torch.empty(batch, positions, directions, channels, device="cuda", dtype=torch.float16)
        inputs = (
            delta[:, :, :1],
            delta,
            torch.empty(directions, channels, states, device="cuda"),
            projection,
            projection,
            parameters,
            parameters,
            torch.empty(directions, positions, device="cuda", dtype=torch.int32),
        )
        outputs = both_ways(*inputs)
        graph = make_fx(both_ways)(*inputs).graph
    called = [node.target for node in graph.nodes if "edgemamba" in str(node.target)]
    assert called == [
        torch.ops.edgemamba.selective_scan.default,
        torch.ops.edgemamba.selective_scan_backward.default,
    ]
    assert all(output.device.type == "cuda" for output in outputs)
    assert outputs[0].shape == (batch, positions, channels)
    assert [tuple(gradient.shape) for gradient in outputs[1:]] == [tuple(x.shape) for x in inputs[:7]]
