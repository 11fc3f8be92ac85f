"""Which configuration is fastest on this GPU: timed once for a kind of call, then remembered in the user's cache folder.

Triton's ``autotune`` cannot do it here: the workspace (parts of dB and dC for each block of channels) hangs on the choice,
and a configuration has to be at hand, untimed, while a CUDA graph is captured. ``EDGEMAMBA_TRITON_TUNE=0`` takes the
defaults, and then two runs of a program round alike on machines that would choose differently.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import triton
from torch import Tensor

Config = TypeVar("Config")
_chosen: dict[str, int] = {}  # of this process: key -> place in the list of candidates


def choose(
    kind: str,
    inputs: Sequence[Tensor],
    candidates: Sequence[Config],
    run: Callable[[Config], object],
    milliseconds: Callable[[Callable[[], object]], float] | None = None,
) -> Config:
    """The candidate that is fastest on calls like this one.

    ``kind`` names the kernel; ``run`` performs the call, with results that nobody uses. ``milliseconds`` times it (by
    default on the device). Nothing is timed, and the first candidate taken, while a CUDA graph is captured.
    """
    if len(candidates) == 1 or os.environ.get("EDGEMAMBA_TRITON_TUNE") == "0":
        return candidates[0]
    key = call_key(kind, inputs)
    file = cache_file(inputs[0].device)
    if key not in _chosen:
        known, names = _read(file).get(key), [str(config) for config in candidates]
        if known in names:
            _chosen[key] = names.index(known)
        elif milliseconds is None and torch.cuda.is_current_stream_capturing():
            return candidates[0]
        else:
            times = [_time(run, config, milliseconds or _on_device) for config in candidates]
            _chosen[key] = times.index(min(times))
            _remember(file, key, str(candidates[_chosen[key]]))
    return candidates[_chosen[key]]


def call_key(kind: str, inputs: Sequence[Tensor]) -> str:
    """What a choice hangs on: kernel, dtype, D, N, G, whether u is shared, and the powers of two over B and S."""
    u, delta, A, order = inputs[0], inputs[1], inputs[2], inputs[7]
    batch, _, directions, channels = delta.shape
    extents = (channels, A.shape[2], directions, u.shape[2])
    rounded = (triton.next_power_of_2(batch), triton.next_power_of_2(order.shape[1]))
    return " ".join(map(str, (kind, str(u.dtype).removeprefix("torch."), *extents, *rounded)))


def cache_file(device: torch.device) -> Path:
    """One file for each kind of device and release of Triton, in the user's cache folder (XDG)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name} sm_{properties.major}{properties.minor}"
    else:
        name = device.type
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{name} triton-{triton.__version__}")
    return Path(root, "edgemamba", "triton", f"{name}.json")


def _time(
    run: Callable[[Config], object], config: Config, milliseconds: Callable[[Callable[[], object]], float]
) -> float:
    try:
        return milliseconds(lambda: run(config))
    except triton.OutOfResources:  # too many registers or too much shared memory for this device
        return float("inf")


def _on_device(call: Callable[[], object]) -> float:
    """Least time of five calls after two, by events of the device."""
    call()
    call()
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(min(times))


def _read(file: Path) -> dict[str, str]:
    """An unreadable file is an empty one: it is only a cache."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(file: Path, key: str, config: str) -> None:
    """Adds a line; the file is whole at any moment. Where it cannot be written, the process alone remembers."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        document = json.dumps(_read(file) | {key: config}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            new.write(document)
        os.replace(new.name, file)
    except OSError:
        pass
