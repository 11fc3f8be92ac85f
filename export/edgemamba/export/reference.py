"""The PyTorch side of a comparison: logits, and what every module and every scan said on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgemamba.export.deployment import Deployed, deploy
from edgemamba.runtime.bundle import WEIGHTS, Bundle
from edgemamba.runtime.errors import BundleError, CheckpointError, EdgeMambaError
from edgemamba.train import create_model

#: Tape entries of the operator itself are called ``scan:0``, ``scan:1``, ... in the order of execution.
SCAN_PREFIX = "scan:"


def reference_model(bundle: Bundle) -> Deployed:
    """The float32 PyTorch model that a bundle was exported from, rebuilt from its manifest and ``weights.safetensors``.

    Raises:
        BundleError: the bundle carries no weights.
        CheckpointError: the weights do not fit the manifest's model.
    """
    if WEIGHTS not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} has no {WEIGHTS} (exported with --no-weights): name the checkpoint with --checkpoint"
        )
    model = architecture(bundle)
    try:
        model.load_state_dict(load_file(bundle.file(WEIGHTS)), strict=True)
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{bundle.path}: {WEIGHTS} does not fit {bundle.manifest.model.name}: {line}") from None
    return deploy(model, bundle.manifest.volume or bundle.manifest.preprocessing)


def architecture(bundle: Bundle) -> nn.Module:
    """The manifest's model, with fresh weights.

    Raises:
        BundleError: the manifest's configuration is not one that the model can be built with.
        ModelError: the model, or an option of it, is not known.
    """
    card = bundle.manifest.model
    # JSON has no tuples; and the head may have been replaced since the configuration was written.
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in card.config.items()
    }
    config["num_classes"] = bundle.manifest.outputs[0].shape[1]
    try:
        return create_model(card.name, **config)
    except EdgeMambaError:
        raise
    except Exception as error:  # a manifest may hold any JSON
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{bundle.path}: {card.name} cannot be built as its manifest says: {reason}") from None


@torch.no_grad()
def run(deployed: Deployed, frames: NDArray[np.generic]) -> NDArray[np.float32]:
    """Logits, float32 (B, num_classes, ...), of frames (B, H, W, 3) or patches (B, C, D, H, W)."""
    logits: NDArray[np.float32] = deployed(torch.from_numpy(frames)).numpy()
    return logits


@torch.no_grad()
def tape(deployed: Deployed, frames: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    """What every module and every selective scan returned, by module path (without the wrapper's ``model.``) and ``scan:k``.

    Modules that return no single tensor, or that run more than once, are left out.
    """
    outputs: dict[str, NDArray[np.float32]] = {}
    calls: Counter[str] = Counter()

    def listen(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[path] += 1
            if isinstance(output, Tensor) and output.is_floating_point():
                outputs[path] = output.detach().float().numpy().copy()

        return hook

    handles = [module.register_forward_hook(listen(path)) for path, module in deployed.model.named_modules() if path]
    try:
        with _ScanListener() as scans:
            deployed(torch.from_numpy(frames))
    finally:
        for handle in handles:
            handle.remove()
    outputs = {path: array for path, array in outputs.items() if calls[path] == 1}
    return {**outputs, **{f"{SCAN_PREFIX}{index}": array for index, array in enumerate(scans.outputs)}}


class _ScanListener(TorchDispatchMode):
    """Collects the output of each call of the operator, which is no module and has no hook."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[NDArray[np.float32]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.edgemamba.selective_scan.default:
            self.outputs.append(result.detach().float().numpy().copy())
        return result
