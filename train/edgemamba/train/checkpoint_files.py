"""Checkpoint files, read without running or importing anything that is named in them."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edgemamba.runtime.errors import CheckpointError


class Opaque:
    """Stands for an object of a training run that a checkpoint holds beside the weights: built from anything, keeps nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What a pickle may name beside tensors and plain containers, and what is built in its place: never the thing itself, which
# is not even imported. Official files cannot be opened without these, and none of them is part of the weights.
STAND_INS: dict[str, type] = {
    # The arguments of a training script (Vim, LocalMamba, MambaVision), and paths among them.
    "argparse.Namespace": Opaque,
    "pathlib.PosixPath": Opaque,
    "pathlib._local.PosixPath": Opaque,
    "pathlib.WindowsPath": Opaque,
    "pathlib._local.WindowsPath": Opaque,
    # Its configuration (VMamba). A dictionary, because PyTorch's reader puts items into those alone.
    "yacs.config.CfgNode": OrderedDict,
    # The log of a detector's or segmenter's training, which refers to its own methods by getattr.
    "mmengine.logging.history_buffer.HistoryBuffer": Opaque,
    "builtins.getattr": Opaque,
    # Figures and random states that were NumPy's.
    "numpy.core.multiarray.scalar": Opaque,
    "numpy._core.multiarray.scalar": Opaque,
    "numpy.core.multiarray._reconstruct": Opaque,
    "numpy._core.multiarray._reconstruct": Opaque,
    "numpy.ndarray": Opaque,
    "numpy.dtype": Opaque,
}


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file: a dictionary of tensors, plain values and inert stand-ins, all on the CPU.

    ``.safetensors`` is read as such, anything else as what :func:`torch.save` writes, with ``weights_only=True`` and the
    names of ``STAND_INS``.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, or it needs code of its own to be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([(kind, name) for name, kind in STAND_INS.items()]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {_pickle_reason(error)}") from None
    except KeyError:  # what the unpickler makes of text: the key is a byte of it, and says nothing to a reader
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged") from None
    except Exception as error:  # a damaged file makes the readers fail in any way they can
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    # Plain dictionaries: an OrderedDict's attributes, its methods among them, are for the file to set.
    items = dict.items(content)
    return {key: dict(dict.items(value)) if isinstance(value, dict) else value for key, value in items}


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _pickle_reason(error: BaseException) -> str:
    """One line for PyTorch's paragraph about what it would not unpickle."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked:
        return f"it asks to run or build {asked[1]}, and only weights are read; save its state_dict() alone"
    reason = (str(error).partition("WeightsUnpickler error: ")[2] or str(error)).strip()
    return "it is not a checkpoint, or is damaged" + (f": {reason.splitlines()[0][:120]}" if reason else "")
