"""What a figure must be read with: the machine, the versions, the commit, the date."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgemamba.runtime import __version__, native
from edgemamba.runtime.bundle import timestamp
from edgemamba.runtime.cpu import cpu_name, usable_threads
from edgemamba.runtime.errors import NativeLibraryError

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "tensorrt")


def provenance() -> dict[str, Any]:
    """JSON-able facts about this machine and installation."""
    return {
        "date": timestamp(),
        "edgemamba": __version__,
        "commit": commit(),
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": usable_threads(),
        "isa": _isa(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := package_version(name))},
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def package_version(name: str) -> str | None:
    """The version of an installed distribution; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit that this file runs from, with ``-dirty`` where files differ from it; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _isa() -> str | None:
    try:
        return native.isa()
    except NativeLibraryError:
        return None
