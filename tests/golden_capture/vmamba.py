"""Features of the VMamba cases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgemamba.train.models.vmamba import VMamba


def capture(model: VMamba, features: dict[str, Tensor]) -> None:
    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: output.permute(0, 3, 1, 2)})

    model.patch_embed.register_forward_hook(keep("patch_embed"))
    for i, stage in enumerate(model.layers, start=1):
        stage.blocks[-1].register_forward_hook(keep(f"stage{i}"))
        if not isinstance(stage.downsample, nn.Identity):
            stage.downsample.register_forward_hook(keep(f"down{i}"))
        for j, block in enumerate(stage.blocks):
            block.register_forward_hook(keep(f"stage{i}_block{j}"))
            block.op.register_forward_hook(keep(f"stage{i}_block{j}_ss2d"))
            if block.mlp is not None:
                block.mlp.register_forward_hook(keep(f"stage{i}_block{j}_mlp"))
    if not model.out_indices:
        model.get_classifier().register_forward_pre_hook(lambda m, inputs: features.update(pre_logits=inputs[0]))
