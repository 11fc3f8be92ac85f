"""Features of the MambaVision cases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgemamba.train.models.mambavision import MambaVision


def capture(model: MambaVision, features: dict[str, Tensor]) -> None:
    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: output})

    model.patch_embed.register_forward_hook(keep("patch_embed"))
    for i, level in enumerate(model.levels):
        # What a stage hands to its downsampling: its map before that, windows put together again.
        level.downsample.register_forward_pre_hook(lambda m, inputs, i=i: features.update({f"stage{i}": inputs[0]}))
        if not isinstance(level.downsample, nn.Identity):
            level.downsample.register_forward_hook(keep(f"down{i}"))
    if not model.out_indices:
        model.get_classifier().register_forward_pre_hook(lambda m, inputs: features.update(pooled=inputs[0]))
