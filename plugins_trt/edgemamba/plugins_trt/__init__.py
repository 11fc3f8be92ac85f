"""Builds the TensorRT plugin on the machine that runs it: ``python -m edgemamba.plugins_trt build``.

Needs a C++17 compiler and TensorRT's headers; no CUDA toolkit, because the device code is embedded PTX. What is built is
found by :mod:`edgemamba.runtime.trt_plugin`.
"""

from __future__ import annotations

from edgemamba.plugins_trt.building import BuiltPlugin, build
from edgemamba.plugins_trt.headers import Headers, find_headers

__all__ = ["BuiltPlugin", "Headers", "build", "find_headers"]
