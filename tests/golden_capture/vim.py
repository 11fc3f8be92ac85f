"""Features of the Vim cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from edgemamba.train.models.vim import Vim


def capture(model: Vim, features: dict[str, Tensor]) -> None:
    def block(i: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            features[f"block{i}_hidden"], features[f"block{i}_residual"] = output

        return keep

    model.layers[0].register_forward_pre_hook(lambda m, inputs: features.update(tokens_in=inputs[0]))
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(block(i))
    model.head.register_forward_pre_hook(lambda m, inputs: features.update(pooled=inputs[0]))
