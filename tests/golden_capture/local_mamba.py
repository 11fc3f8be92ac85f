"""Features of the LocalMamba cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.local_vim import LocalVim
from edgemamba.train.models.local_vmamba import LocalVMamba


def capture(model: Backbone, features: dict[str, Tensor]) -> None:
    if isinstance(model, LocalVim):
        _capture_local_vim(model, features)
    elif isinstance(model, LocalVMamba):
        _capture_local_vmamba(model, features)
    model.get_classifier().register_forward_pre_hook(lambda m, inputs: features.update(pooled=inputs[0]))


def _capture_local_vim(model: LocalVim, features: dict[str, Tensor]) -> None:
    def block(i: int) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            features[f"block{i}_in"] = inputs[0]

        def after(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            features[f"block{i}_hidden"], features[f"block{i}_residual"] = output

        return before, after

    for i, layer in enumerate(model.layers):
        before, after = block(i)
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)


def _capture_local_vmamba(model: LocalVMamba, features: dict[str, Tensor]) -> None:
    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: output})

    model.patch_embed.register_forward_hook(keep("patch_embed"))
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks):
            block.register_forward_hook(keep(f"stage{i}_block{j}"))
        stage.register_forward_hook(keep(f"stage{i}_out_downsampled"))
    model.layers[-1].register_forward_hook(keep("last_stage_out"))
