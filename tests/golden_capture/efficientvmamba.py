"""Features of the EfficientVMamba cases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgemamba.train.models.efficientvmamba import EfficientVMamba
from edgemamba.train.models.efficientvmamba_blocks import ConvStage
from edgemamba.train.models.scan_stage import ScanStage


def capture(model: EfficientVMamba, features: dict[str, Tensor]) -> None:
    def to_nchw(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    def as_it_is(x: Tensor) -> Tensor:
        return x

    def keep(name: str, view: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: view(output)})

    model.patch_embed.register_forward_hook(keep("patch_embed", to_nchw))
    for i, stage in enumerate(model.layers, start=1):
        if isinstance(stage, ScanStage):
            blocks, downsample, view = list(stage.blocks), stage.downsample, to_nchw
            for j, block in enumerate(blocks):
                block.op.register_forward_hook(keep(f"stage{i}_block{j}_es2d", to_nchw))
                block.conv_branch.register_forward_hook(keep(f"stage{i}_block{j}_conv", as_it_is))
        else:
            assert isinstance(stage, ConvStage)
            _, *blocks, _, downsample = stage
            view = as_it_is
        for j, block in enumerate(blocks):
            block.register_forward_hook(keep(f"stage{i}_block{j}", view))
        blocks[-1].register_forward_hook(keep(f"stage{i}", view))
        if not isinstance(downsample, nn.Identity):
            downsample.register_forward_hook(keep(f"down{i}", to_nchw))
    if not model.out_indices:
        model.get_classifier().register_forward_pre_hook(lambda m, inputs: features.update(pre_logits=inputs[0]))
