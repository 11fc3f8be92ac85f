"""PyTorch's own threads for the scan.

PyTorch's CPU loops run on the threads of an OpenMP library, which for a while after each loop wait for the next one by spinning.
A second pool would find the cores taken by them: a training step of Vim-Tiny's layer takes a sixth longer so
(benchmarks/NOTES.md). So the scan runs as one more loop on the same threads.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch


def of_torch() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP library that PyTorch uses.

    None where it has none with that entry, and in a process forked since this module was imported: OpenMP's threads do not survive
    a fork (PyTorch's own loops hang there), those of the native library's pool start anew.
    """
    return None if _forked else _entry()


@lru_cache(maxsize=1)
def _entry() -> int | None:
    # As the loader found it for PyTorch: first what the whole process sees (LD_PRELOAD=libiomp5.so is common), then what
    # PyTorch is linked to. Other libraries' private copies are not looked at.
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        try:
            return ctypes.cast(ctypes.CDLL(library).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError, TypeError):  # TypeError: None on Windows
            continue
    return None


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
