"""LocalMamba (Huang et al., arXiv:2403.09338): the family of LocalVim and LocalVMamba, and its published models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from edgemamba.runtime.errors import ModelError
from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.train.models import local_vim, local_vmamba
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.local_directions import LOCAL_VMAMBA_SMALL, WITHOUT_SEARCH
from edgemamba.train.models.local_vim import LocalVim, LocalVimConfig
from edgemamba.train.models.local_vmamba import LocalVMamba, LocalVMambaConfig
from edgemamba.train.registry import Family, ModelEntry, register_family, register_model

_Config = LocalVimConfig | LocalVMambaConfig

_UPSTREAM_CLASSES: dict[str, Callable[[Mapping[str, Any]], _Config]] = {
    "local_vim.VisionMamba": local_vim.config_from_upstream,
    "local_vmamba.VSSM": local_vmamba.config_from_upstream,
}


def _build(config: _Config) -> Backbone:
    return LocalVim(config) if isinstance(config, LocalVimConfig) else LocalVMamba(config)


def config_from_upstream(config: Mapping[str, Any]) -> _Config:
    """The keywords of one of the official classes, which ``cls`` names, as ours."""
    named = config.get("cls")
    if named not in _UPSTREAM_CLASSES:
        raise ModelError(f"local_mamba: cls is {named!r}; one of {', '.join(_UPSTREAM_CLASSES)} is needed")
    return _UPSTREAM_CLASSES[named](config)


def _recognise(keys: Collection[str]) -> bool:
    return "layers.0.mixer.A_log_0" in keys or "layers.0.blocks.0.op.multi_scan.attn.norm.weight" in keys


register_family(
    Family(
        name="local_mamba",
        title="LocalMamba",
        paper="Huang et al., arXiv:2403.09338",
        config=_Config,
        build=_build,
        from_upstream=config_from_upstream,
        recognise=_recognise,
    )
)

_README = "hunto/LocalMamba README"
_SUPERNET = "hunto/LocalMamba code: the supernet in which directions are searched; no weights"


def _register(
    name: str,
    alias: str,
    config: _Config,
    params: int,
    top1: float | None = None,
    source: str = _README,
) -> None:
    register_model(
        ModelEntry(
            name=name,
            family="local_mamba",
            config=config,
            preprocessing=Preprocessing(size=(224, 224)),
            params=params,
            aliases=(alias,),
            top1=top1,
            source=source,
        )
    )


_register("local_vim_t", "local_vim_tiny", LocalVimConfig(), 7_994_152, 76.2)
_register(
    "local_vim_t_midcls",
    "local_vim_tiny_middle_cls_token",
    LocalVimConfig(cls_token="middle", rope=False, rope_residual=False),
    7_994_536,
    77.8,
)
_register(
    "local_vim_t_search",
    "local_vim_tiny_search",
    LocalVimConfig(embed_dim=128, directions=None),
    5_473_288,
    source=_SUPERNET,
)
_register(
    "local_vim_t_wo_search",
    "local_vim_tiny_wo_search",
    LocalVimConfig(directions=WITHOUT_SEARCH),
    7_994_152,
    source="hunto/LocalMamba code; no weights",
)
# Upstream defines local_vim_small twice: first with LocalVim-T's directions, which its segmentation model has too, then with
# these, which is what Python, and so its registry, keeps. Parameters are the same: with the wrong ones weights load without a
# complaint, and accuracy is lost.
_register(
    "local_vim_s",
    "local_vim_small",
    LocalVimConfig(embed_dim=384, directions=WITHOUT_SEARCH),
    27_783_784,
    81.1,
    f"{_README}; directions of the second of upstream's two definitions: if released weights score far less, try those of "
    "local_vim_t (directions=...)",
)
_register(
    "local_vmamba_t", "local_vssm_tiny", LocalVMambaConfig(), 25_527_160, 82.7, f"{_README}; weights not released"
)
_register(
    "local_vmamba_s",
    "local_vssm_small",
    LocalVMambaConfig(depths=(2, 2, 27, 2), directions=LOCAL_VMAMBA_SMALL),
    49_748_536,
    83.7,
)
for _size, _depths, _params in (("tiny", (2, 2, 9, 2), 4_576_656), ("small", (2, 2, 27, 2), 9_148_512)):
    _register(
        f"local_vmamba_{_size[0]}_search",
        f"local_vssm_{_size}_search",
        LocalVMambaConfig(dims=(32, 64, 128, 256), depths=_depths, directions=None),
        _params,
        source=_SUPERNET,
    )
