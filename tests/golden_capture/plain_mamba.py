"""Features of the PlainMamba cases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgemamba.train.models.plain_mamba import PlainMamba


def capture(model: PlainMamba, features: dict[str, Tensor]) -> None:
    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: output.flatten(1, 2)})

    trunk = model.backbone
    trunk.patch_embed.register_forward_hook(keep("patch_tokens"))
    for i, layer in enumerate(trunk.layers):
        layer.register_forward_pre_hook(
            lambda m, inputs, name=f"layer{i}_in": features.update({name: inputs[0].flatten(1, 2)})
        )
        layer.register_forward_hook(keep(f"layer{i}_out"))
    model.head.fc.register_forward_pre_hook(lambda m, inputs: features.update(pooled=inputs[0]))
