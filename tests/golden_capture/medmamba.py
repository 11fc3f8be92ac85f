"""Features of the MedMamba cases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgemamba.train.models.medmamba import MedMamba


def capture(model: MedMamba, features: dict[str, Tensor]) -> None:
    def nchw(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    def keep(name: str, view: Callable[[Tensor], Tensor] = nchw) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: view(output)})

    model.patch_embed.register_forward_hook(keep("patch_embed"))
    for i, stage in enumerate(model.layers, start=1):
        stage.blocks[-1].register_forward_hook(keep(f"stage{i}"))
        if not isinstance(stage.downsample, nn.Identity):
            stage.downsample.register_forward_hook(keep(f"down{i}"))
        for j, block in enumerate(stage.blocks):
            block.self_attention.register_forward_hook(keep(f"stage{i}_block{j}_ss2d"))
            block.conv33conv33conv11.register_forward_hook(keep(f"stage{i}_block{j}_conv", lambda output: output))
    model.head.register_forward_pre_hook(lambda m, inputs: features.update(pre_logits=inputs[0]))
