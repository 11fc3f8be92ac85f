"""The scan on PyTorch's own threads: found, used, the same bits, and left alone in a forked process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import pytest
import torch

from edgemamba.runtime import native
from edgemamba.train import openmp
from edgemamba.train.scan_orders import scan_order
from edgemamba.train.selective_scan import selective_scan

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP library is looked for on Linux only"),
    pytest.mark.skipif(
        "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info(), reason="this PyTorch has no OpenMP"
    ),
]


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*extents: int) -> torch.Tensor:
        return torch.randn(extents, generator=generator)

    # Enough work for a second thread.
    u, delta = normal(2, 196, 2, 96), normal(2, 196, 2, 96)
    weights = -torch.rand(2, 96, 16, generator=generator), normal(2, 196, 2, 16), normal(2, 196, 2, 16)
    return u, delta, *weights, normal(2, 96), normal(2, 96), scan_order("bidirectional", (14, 14))


def scan_and_gradients() -> list[torch.Tensor]:
    arguments = inputs()
    leaves = [x.requires_grad_() for x in arguments[:7]]
    y = selective_scan(*arguments)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_both_passes_run_on_torchs_threads_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, two_threads: object
) -> None:
    entry = openmp.of_torch()
    assert entry, "PyTorch's OpenMP library has no GOMP_parallel"
    given = []
    executor = native._executor
    monkeypatch.setattr(native, "_executor", lambda threads, found: (given.append(found), executor(threads, found))[1])
    ours = scan_and_gradients()
    assert given == [entry, entry]
    monkeypatch.setattr(openmp, "_entry", lambda: None)
    for here, there in zip(ours, scan_and_gradients(), strict=True):
        assert torch.equal(here, there)
    assert given[2:] == [None, None]


def test_a_forked_process_scans_on_threads_of_its_own(two_threads: object) -> None:
    # Wakes OpenMP's threads here, which the child will not have: none of PyTorch's own loops may run there, so the arguments
    # are made before.
    expected, arguments = scan_and_gradients()[0].numpy().tobytes(), inputs()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        code = 1
        try:
            with torch.no_grad():
                y = selective_scan(*arguments)
            code = 0 if openmp.of_torch() is None and y.numpy().tobytes() == expected else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert openmp.of_torch() is not None


@pytest.mark.parametrize("error", [OSError("no such library"), AttributeError("GOMP_parallel")], ids=str)
def test_without_such_a_library_the_scan_has_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, two_threads: object, error: Exception
) -> None:
    def refuse(name: str | None) -> object:
        raise error

    expected = scan_and_gradients()
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    openmp._entry.cache_clear()
    try:
        assert openmp.of_torch() is None
        for here, there in zip(scan_and_gradients(), expected, strict=True):
            assert torch.equal(here, there)
    finally:
        openmp._entry.cache_clear()
