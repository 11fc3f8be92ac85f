"""Layers and initialisations that the families share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Step sizes that a Mamba layer starts with: log-uniform in this range, at least DT_FLOOR (arXiv:2312.00752, section 3.6).
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; statistics in float32 (float64 where ``x`` is).

    Spelled out because this is the form that ONNX Runtime and TensorRT recognise and fuse; :func:`torch.rms_norm` exports
    through a reciprocal square root, which they do not. The result has the dtype of ``weight``.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        scaled = wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return scaled.to(self.weight.dtype) * self.weight


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of maps (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """``x.permute(dims)`` as a layer, for upstream's flat Sequentials, where its index is part of the others' keys."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.dims))


class Mlp(nn.Module):
    """Two Linears over the last axis with a GELU (exact, not tanh's) between them: ``fc1`` (rC, C), ``fc2`` (C, rC)."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> the same."""
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training, a sample's branch is zeroed with probability ``rate``."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep if keep > 0 else mask)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 to ``rate`` over ``depth`` blocks."""
    return [rate * i / (depth - 1) for i in range(depth)] if depth > 1 else [0.0] * depth


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is narrower, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def initial_a_log(*rows: int, states: int) -> Tensor:
    """(*rows, N) logarithms of 1..N, the S4D-real initialisation."""
    return torch.arange(1, states + 1, dtype=torch.float32).log().expand(*rows, states).clone()


def initial_dt_bias(*shape: int) -> Tensor:
    """Biases whose softplus is log-uniform between DT_MIN and DT_MAX."""
    dt = torch.exp(torch.rand(*shape) * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN)).clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def initial_dt_weight(*shape: int) -> Tensor:
    """(..., D, R) weights of the step size's projection, uniform within R^-0.5."""
    bound = shape[-1] ** -0.5
    return torch.empty(*shape).uniform_(-bound, bound)


def initialise_linear(module: nn.Module) -> None:
    """The start that most upstreams give every Linear, for :meth:`torch.nn.Module.apply`: truncated normal, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
