"""Names of VMamba's tensors: whether a checkpoint is VMamba's, and the names that upstream has used at other times."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from edgemamba.train.models.ss2d import DIRECTIONS

# The code of January 2024, with which the vanilla checkpoints were made.
_LEGACY = (
    (re.compile(r"patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"(layers\.\d+\.blocks\.\d+)\.ln_1\."), r"\1.norm."),
    (re.compile(r"(layers\.\d+\.blocks\.\d+)\.self_attention\."), r"\1.op."),
    (re.compile(r"(norm|head)\."), r"classifier.\1."),
)
# The one-file code at the root of upstream's repository: projections that are stacked here are modules there.
_STACKED = re.compile(r"(.+\.op)\.(x_proj|dt_projs)\.weight")
_MERGING = re.compile(r"(layers\.\d+\.downsample)\.([12])\.(weight|bias)")
# Linears here, which are 1x1 convolutions where upstream keeps the channels first.
_LINEAR = re.compile(r".+\.(in_proj|out_proj|fc1|fc2)\.weight")
# Of EfficientVMamba, LocalMamba and MedMamba, which have the rest of the names too.
_OTHERS = (".conv_branch.", ".multi_scan.", ".conv33conv33conv11.")


def recognise(keys: Collection[str]) -> bool:
    """Whether a checkpoint's keys are VMamba's, by any of its names."""
    own = any(f"layers.0.blocks.0.{scan}.A_logs" in keys for scan in ("op", "self_attention"))
    return own and not any(other in key for key in keys for other in _OTHERS)


def current_name(key: str) -> str:
    """A tensor's name in the code of January 2024 as today's; other names as they are."""
    for pattern, replacement in _LEGACY:
        key = pattern.sub(replacement, key, count=1) if pattern.match(key) else key
    return key


def rename_checkpoint_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names, and in the shapes, of upstream's ``classification/`` code, which are ours.

    Known are those of the code of January 2024 (vanilla models), of the one-file code at the repository's root, and 1x1
    convolutions in the place of Linears. What has our name already, or none that is known, is left as it is.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        key = current_name(key)
        stacked, merging = _STACKED.fullmatch(key), _MERGING.fullmatch(key)
        if stacked:
            key = f"{stacked[1]}.{stacked[2]}_weight"
            value = value.reshape(DIRECTIONS, -1, value.shape[1])
        elif merging and f"{merging[1]}.2.weight" in state:  # a norm and a Linear, not a convolution (1) and a norm (3)
            key = f"{merging[1]}.{'norm' if merging[2] == '1' else 'reduction'}.{merging[3]}"
        elif _LINEAR.fullmatch(key) and value.dim() > 2:
            value = value.flatten(1)
        renamed[key] = value
    return renamed
