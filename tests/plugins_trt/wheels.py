"""Wheels from the package registry that only these tests need, unpacked and not installed.

They are small, but what they ask for is not (``kernel_lens`` wants torch and triton), and the two dispatch runtimes would
overwrite each other's package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

# TensorRT's own wheels carry no headers; this one has those of 10.14.
HEADERS = ("kernel_lens==2.0.1", "kernel_lens/include/tensorrt")
# The smallest TensorRT runtimes: a real plugin registry, and nothing that needs a GPU to load.
DISPATCH = {
    10: ("tensorrt-dispatch-cu12-libs==10.16.1.11", "tensorrt_dispatch_libs/libnvinfer_dispatch.so.10"),
    11: ("tensorrt-dispatch-cu13-libs==11.4.0.106", "tensorrt_dispatch_libs/libnvinfer_dispatch.so.11"),
}


@cache
def fetch(requirement: str, tag: str = "") -> Path:
    """The unpacked wheel, of this machine or of another platform tag. Skips the test, with pip's reason, where it cannot be
    had here."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemamba-tests"
    folder = base / f"{requirement}{tag}"
    if not folder.is_dir():
        scratch = base / f".{folder.name}.{os.getpid()}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", requirement]
        command += ["--platform", tag] if tag else []
        done = subprocess.run([*command, "-d", str(scratch)], capture_output=True, text=True, check=False)
        wheels = list(scratch.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel"]
            pytest.skip(f"{requirement} cannot be had here: {reasons[-1]}")
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(scratch / "content")
        try:
            (scratch / "content").rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def headers_folder() -> Path:
    """TensorRT 10.14's headers."""
    requirement, inside = HEADERS
    return fetch(requirement) / inside


def dispatch_library(major: int, tag: str = "") -> Path:
    """A TensorRT runtime of ``major`` with a real plugin registry."""
    requirement, inside = DISPATCH[major]
    return fetch(requirement, tag) / inside
