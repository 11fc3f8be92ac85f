"""Running the worker, and turning however it ends into a result or one line."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemamba.export.building.dialects import Dialect
from edgemamba.export.building.worker import Request
from edgemamba.runtime.errors import EngineError
from edgemamba.runtime.extras import require

Progress = Callable[[str], None]

_WORKER = "edgemamba.export.building.worker"
# TensorRT-RTX's parser opens this name to add a plugin layer, and its wheel has the file under its versioned name only:
# without it, the process is aborted.
RTX_LIBRARY, RTX_PACKAGE = "libtensorrt_rtx.so", "tensorrt_rtx_libs"


@dataclass(frozen=True)
class Built:
    """What the worker did; see :func:`edgemamba.export.building.worker.build`."""

    version: str
    layers: int
    plugins: int
    bytes: int
    seconds: float


def installed(backend: str) -> Dialect:
    """The library of a backend as it is installed here.

    Raises:
        MissingExtraError: it is not.
        EngineError: it is and cannot be loaded.
    """
    module = "tensorrt_rtx" if backend == "tensorrt-rtx" else "tensorrt"
    try:
        library = require(module, purpose="a build")
        version = str(library.__version__)
    except (OSError, RuntimeError, AttributeError) as error:
        raise EngineError(f"{module} is installed and cannot be loaded: {' '.join(str(error).split())}") from None
    except ModuleNotFoundError:
        raise  # MissingExtraError is an ImportError too, and says what to do
    return Dialect("tensorrt-rtx" if backend == "tensorrt-rtx" else "tensorrt", version)


def run(request: Request, dialect: Dialect, progress: Progress) -> Built:
    """Build in a process of its own, which is ended with this call whatever happens.

    Raises:
        EngineError: the library refused, or took its process down; the message says why as far as it is known.
    """
    with tempfile.TemporaryDirectory(prefix="edgemamba-build-") as scratch:
        errors = Path(scratch, "stderr")
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(dialect, Path(scratch)),
                text=True,
                encoding="utf-8",
            )
            try:
                outcome = _converse(process, request, progress)
            finally:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()
        if outcome is None:
            raise EngineError(f"{dialect.name} {_ending(process.returncode)}{_last_words(errors)}")
        if "error" in outcome:
            raise EngineError(f"{dialect.name}: {outcome['error']}")
        return Built(**outcome["built"])


def _converse(process: subprocess.Popen[str], request: Request, progress: Progress) -> dict[str, Any] | None:
    """The worker's last event; None where it ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request.to_json())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read: how is said below
    outcome: dict[str, Any] | None = None
    for line in process.stdout:
        event = json.loads(line)
        if "phase" in event:
            name, done, total = event["phase"]
            progress(f"{name} {done}/{total}" if done else str(name))
        else:
            outcome = event
    process.wait()
    return outcome


def _environment(dialect: Dialect, scratch: Path) -> dict[str, str]:
    environment = dict(os.environ)
    if dialect.rtx and (library := _rtx_library()) is not None:
        (scratch / RTX_LIBRARY).symlink_to(library)
        known = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(scratch), known)))
    return environment


def _rtx_library() -> Path | None:
    """The wheel's library; None where TensorRT-RTX was installed in another way."""
    try:
        folder = Path(importlib.import_module(RTX_PACKAGE).__file__ or "").parent
    except ImportError:
        return None
    return next(iter(sorted(folder.glob(f"{RTX_LIBRARY}.*"))), None)


def _ending(status: int) -> str:
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"crashed while building ({name})"
    return f"ended without an engine (exit code {status})"


def _last_words(errors: Path) -> str:
    lines = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:300]}" if lines else ""
