"""MambaVision as a whole against a plain reading of the architecture notes, at sizes that windows do not divide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgemamba.train import create_model
from edgemamba.train.reference_scan import selective_scan_reference

WINDOW = {2: 2, 3: 3}


def batch_norm(x: Tensor, norm: Any, eps: float) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=eps)


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps=1e-5)


def scanned(mixer: Any, x: Tensor) -> Tensor:
    """One direction over a window; the bias of the step size twice; the two halves side by side."""
    value, side = F.linear(x, mixer.in_proj.weight).chunk(2, dim=-1)
    halves = []
    for half, conv in ((value, mixer.conv1d_x), (side, mixer.conv1d_z)):
        y = F.conv1d(half.transpose(1, 2), conv.weight, padding=1, groups=half.shape[2])
        halves.append(F.silu(y).transpose(1, 2))
    value, side = halves
    rank, order = mixer.dt_proj.in_features, torch.arange(x.shape[1], dtype=torch.int32)[None]
    dt, B, C = F.linear(value, mixer.x_proj.weight)[:, :, None].split([rank, 8, 8], dim=-1)
    A, D, bias = -mixer.A_log.exp()[None], mixer.D[None], mixer.dt_proj.bias[None]
    y = selective_scan_reference(value[:, :, None], mixer.dt_proj(dt), A, B, C, D, bias, order)
    return F.linear(torch.cat([y, side], dim=-1), mixer.out_proj.weight)


def attended(mixer: Any, x: Tensor, heads: int) -> Tensor:
    q, k, v = mixer.qkv(x).chunk(3, dim=-1)
    results = []
    for head in range(heads):
        part = slice(head * x.shape[2] // heads, (head + 1) * x.shape[2] // heads)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * (x.shape[2] // heads) ** -0.5
        results.append(scores.softmax(-1) @ v[..., part])
    return mixer.proj(torch.cat(results, dim=-1))


def windowed(level: Any, x: Tensor, window: int, heads: int) -> Tensor:
    """Padded once on the right and at the bottom, every window by itself through all blocks, cropped once."""
    height, width = x.shape[2:]
    padded = F.pad(x, (0, -width % window, 0, -height % window))
    result = torch.empty_like(padded)
    blocks = list(level.blocks)
    for top in range(0, padded.shape[2], window):
        for left in range(0, padded.shape[3], window):
            place = (..., slice(top, top + window), slice(left, left + window))
            tokens = padded[place].flatten(2).transpose(1, 2)
            for j, block in enumerate(blocks):
                normed = layer_norm(tokens, block.norm1)
                scans = j < -(-len(blocks) // 2)
                mixed = scanned(block.mixer, normed) if scans else attended(block.mixer, normed, heads)
                tokens = tokens + block.gamma_1 * mixed
                hidden = F.gelu(block.mlp.fc1(layer_norm(tokens, block.norm2)))
                tokens = tokens + block.gamma_2 * block.mlp.fc2(hidden)
            result[place] = tokens.transpose(1, 2).unflatten(2, (window, window))
    return result[:, :, :height, :width]


def plain_mambavision(model: Any, x: Tensor) -> Tensor:
    stem = model.patch_embed.conv_down
    for conv, norm in ((stem[0], stem[1]), (stem[3], stem[4])):
        x = F.relu(batch_norm(F.conv2d(x, conv.weight, stride=2, padding=1), norm, 1e-4))
    for i, level in enumerate(model.levels):
        if i < 2:
            for block in level.blocks:
                y = F.gelu(batch_norm(block.conv1(x), block.norm1, 1e-5), approximate="tanh")
                x = x + batch_norm(block.conv2(y), block.norm2, 1e-5)
        else:
            x = windowed(level, x, WINDOW[i], model.config.num_heads[i])
        if i < 3:
            x = F.conv2d(x, level.downsample.reduction[0].weight, stride=2, padding=1)
    return model.head(batch_norm(x, model.norm, 1e-5).mean((2, 3)))


@pytest.mark.parametrize("size", [(75, 101), (64, 96), (33, 130)])
def test_the_network_is_its_description(size: tuple[int, int]) -> None:
    """Ranks of 3 and 5, an odd number of blocks, and maps that lack rows, columns or both."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"dim": 10, "in_dim": 6, "depths": (1, 2, 3, 2), "num_heads": (1, 1, 2, 4)}
    model = create_model(
        "mambavision_t", num_classes=3, window_size=(8, 8, *WINDOW.values()), layer_scale=0.5, **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand_like(buffer))
    model.double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain_mambavision(model, x), rtol=0, atol=1e-10)
