"""Where the weights are within a checkpoint: the containers and prefixes that training scripts leave around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from edgemamba.runtime.errors import CheckpointError

Which = Literal["weights", "ema"]

_TOP = "the top level"
# Where weights are, in the order of preference: MambaVision's and mmcv's files, Vim's and VMamba's, others'.
_WEIGHTS = ("state_dict", "model", "model_state_dict")
# Where their moving averages are: timm's and mmengine's names, Vim's and VMamba's, LocalMamba's and EfficientVMamba's.
_AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model")
# `edgemamba train` has the average under "state_dict", and there the weights in training.
_TRAINED = "trained_state_dict"
# Of wrappers: DistributedDataParallel and averages, Hugging Face and Lightning, detectors, MambaVision's pre-training, compile.
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "_orig_mod.")
# Counters that averaging (torch, mmengine) and profilers (thop) leave among the weights.
_COUNTERS = ("n_averaged", "steps", "total_ops", "total_params")
# The averages, or what they were exchanged for, as mmcv's hook registers them: the weights' names with _ for dots.
_HOOK_PREFIX = "ema_"
_SHOWN = 4


@dataclass(frozen=True)
class Found:
    """The weights of a checkpoint.

    Attributes:
        state: the tensors, by their names without wrappers' prefixes.
        layout: where they were: the container's key, and the prefixes.
        notes: what was beside them and is left out, one line each.
    """

    state: dict[str, Tensor]
    layout: str
    notes: tuple[str, ...] = ()


def find_weights(content: Mapping[str, Any], path: Path, own: Collection[str] = (), which: Which = "weights") -> Found:
    """The state dictionary within a checkpoint.

    Args:
        content: of the file.
        path: of the file, for messages.
        own: names of the model's tensors; they tell a wrapper's prefix from a name that begins like one, and a detector's
            backbone from its heads.
        which: the weights themselves, or their exponential moving average.

    Raises:
        CheckpointError: there is no such state dictionary, or not of dense tensors.
    """
    layout, state = _container(content, path, which)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or (layout != _TOP and len(tensors) < len(state)):
        kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(state.items())[:_SHOWN])
        raise CheckpointError(f"{path} holds no state dictionary that can be read; at {layout}: {kinds or 'nothing'}")
    # Of the right shape and dtype, and they fail when they are copied, others having been copied before.
    hollow = [key for key, value in tensors.items() if value.is_meta or value.layout != torch.strided]
    if hollow:
        raise CheckpointError(
            f"{path} holds {len(hollow)} sparse tensors or tensors without values ({', '.join(hollow[:_SHOWN])}); "
            "only dense ones are read"
        )
    notes: list[str] = []
    tensors = _without_counters(tensors, notes)
    tensors, averaged = _without_hook_buffers(tensors, notes)
    if which == "ema" and not averaged and not _holds_average(content, layout):
        raise CheckpointError(f"{path} holds no moving average of the weights (EMA), only weights at {layout}")
    tensors, prefix = _unwrap(tensors, own, notes)
    return Found(tensors, f"{layout}, prefix {prefix}" if prefix else layout, tuple(notes))


def _container(content: Mapping[str, Any], path: Path, which: Which) -> tuple[str, Mapping[str, Any]]:
    """The dictionary that holds the weights, or their average, and where it is."""
    order = (*_AVERAGES, *_WEIGHTS) if which == "ema" else (*_WEIGHTS, *_AVERAGES)
    for key in order:
        if isinstance(content.get(key), Mapping):
            return key, content[key]
    return _TOP, content


def _holds_average(content: Mapping[str, Any], layout: str) -> bool:
    return layout in _AVERAGES or (layout == "state_dict" and _TRAINED in content)


def _without_counters(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    counters = [key for key, value in tensors.items() if key.rpartition(".")[2] in _COUNTERS and value.numel() == 1]
    if counters:
        notes.append(f"{len(counters)} counters left out ({counters[0]})")
    return {key: value for key, value in tensors.items() if key not in set(counters)}


def _without_hook_buffers(tensors: dict[str, Tensor], notes: list[str]) -> tuple[dict[str, Tensor], bool]:
    """Without the copies that mmcv's EMAHook keeps in buffers, and whether there were any.

    The hook exchanges weights and averages around every validation and every saving, so that in a file the average is under
    the weights' names, and these buffers hold the weights in training.
    """
    copies = {_HOOK_PREFIX + key.replace(".", "_") for key in tensors} & tensors.keys()
    if not copies:
        return tensors, False
    notes.append(f"{len(copies)} buffers ema_* left out: the weights are the moving average already (mmcv's EMA hook)")
    return {key: value for key, value in tensors.items() if key not in copies}, True


def _unwrap(tensors: dict[str, Tensor], own: Collection[str], notes: list[str]) -> tuple[dict[str, Tensor], str]:
    """Names without wrappers' prefixes, and the prefixes.

    A prefix that all names have is taken off, unless names of the model have it too; one that some have is taken off, and
    the others are left out, if that makes more of them names of the model.
    """
    names, prefixes = set(own), ""
    while True:
        known = len(names & tensors.keys())
        for prefix in _PREFIXES:
            inner = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            if len(names & inner.keys()) > known or (inner and len(inner) == len(tensors) and not known):
                break
        else:
            return tensors, prefixes
        others = sorted({key.partition(".")[0] for key in tensors if not key.startswith(prefix)})
        if others:
            notes.append(
                f"{len(tensors) - len(inner)} tensors beside {prefix}* left out ({', '.join(others[:_SHOWN])})"
            )
        tensors, prefixes = inner, prefixes + prefix
