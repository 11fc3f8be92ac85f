"""Features of the SegMamba cases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgemamba.train.models.segmamba import SegMamba


def capture(model: SegMamba, features: dict[str, Tensor]) -> None:
    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: features.update({name: output})

    named: dict[str, nn.Module] = {}
    for i in range(4):
        named[f"down{i}"] = model.vit.downsample_layers[i]
        named[f"gsc{i}"] = model.vit.gscs[i]
        named[f"stage{i}"] = model.vit.stages[i][-1]
        named[f"vit_out{i}"] = model.vit.mlps[i]
    for i in range(1, 6):
        named[f"encoder{i}"] = model.get_submodule(f"encoder{i}")
        named[f"decoder{i}"] = model.get_submodule(f"decoder{i}")
    for name, module in named.items():
        module.register_forward_hook(keep(name))
