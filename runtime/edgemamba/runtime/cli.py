"""The `edgemamba` command. Verbs live beside what they do and are imported only when they are called."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import typer

from edgemamba.runtime import __version__
from edgemamba.runtime.errors import EdgeMambaError
from edgemamba.runtime.extras import missing_message


@dataclass(frozen=True)
class Verb:
    """Where a verb is implemented (``module:function``), the line that `edgemamba --help` shows for it, and the extra that
    brings all it needs (None: the runtime's own dependencies do, or it depends on the source)."""

    target: str
    help: str
    extra: str | None = None

    def load(self) -> Callable[..., Any]:
        """Import the module and return the function."""
        module, _, function = self.target.partition(":")
        implementation: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return implementation


# The order of a user's work. The short helps stand here so that `edgemamba --help` imports nothing heavy.
VERBS = {
    "demo": Verb(
        "edgemamba.export.commands.demo:demo",
        "Train, export, verify and stream a small model on real data, in minutes.",
        "demo",
    ),
    "models": Verb("edgemamba.train.commands.models:models", "List the backbones that can be created.", "train"),
    "train": Verb(
        "edgemamba.train.commands.train:train",
        "Train a backbone on a folder, a MedMNIST .npz, shards, or a table of DICOM files.",
        "train",
    ),
    "eval": Verb(
        "edgemamba.train.commands.eval:eval_",
        "Judge checkpoints and bundles on labelled pictures, side by side.",
        "train",
    ),
    "segment": Verb(
        "edgemamba.train.commands.segment:segment",
        "Train a segmenter of pictures or volumes on images and masks.",
        "seg",
    ),
    "export": Verb(
        "edgemamba.export.commands.export:export",
        "Turn a checkpoint into a bundle: ONNX graph, manifest, digests.",
        "export",
    ),
    "build": Verb(
        "edgemamba.export.commands.build:build",
        "Build a TensorRT engine into a bundle; RTX ones need no GPU.",
        "export",
    ),
    "verify": Verb(
        "edgemamba.export.commands.verify:verify", "Compare PyTorch with every engine on the same inputs.", "export"
    ),
    "inspect": Verb("edgemamba.runtime.commands.inspect:inspect", "Show what a bundle holds and check its digests."),
    "run": Verb(
        "edgemamba.runtime.commands.run:run", "Stream a video, camera, folder or DICOM source through a bundle."
    ),
    "bench": Verb("edgemamba.runtime.commands.bench:bench", "Measure latency, throughput and memory of a bundle."),
    "doctor": Verb(
        "edgemamba.runtime.commands.doctor:doctor", "Say what can be used on this machine, and why not the rest."
    ),
}

# What shells report of a command that SIGINT ended.
_INTERRUPTED = 130

USAGE = """Vision-Mamba backbones from PyTorch checkpoints to engines and streams, with proof of parity.

Usage: edgemamba VERB [OPTIONS]      edgemamba VERB --help      edgemamba --version
"""
EXAMPLES = """
  edgemamba demo
  edgemamba export vim_t_midclstok_76p1acc.pth --model vim_tiny -o vim_tiny/
  edgemamba verify vim_tiny/ --inputs photos/
  edgemamba run vim_tiny/ --source clip.mp4 --out result.mp4
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 bad usage or input (one line on stderr), 130 interrupted.

    Verbs are dispatched here rather than by a typer group, because a group imports all its commands to print its help.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h", "help"):
        print(_help())
        return
    if verb == "--version":
        print(f"edgemamba {__version__}")
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; choose one of: {', '.join(VERBS)}"
        _fail(f"there is no verb {verb!r}{hint}", 2)
    sys.exit(_run(verb, arguments[1:]))


def _run(verb: str, arguments: list[str]) -> int:
    """Import the verb's function, run it under typer, and turn what it raises into an exit code and one line."""
    try:
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(name=verb)(_load(VERBS[verb]))
        status = app(arguments, prog_name=f"edgemamba {verb}", standalone_mode=False)
        # Depending on its version, typer turns Ctrl-C into an Abort or into this status.
        if status == _INTERRUPTED:
            _fail("interrupted", _INTERRUPTED)
        return status if isinstance(status, int) else 0
    except EdgeMambaError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if not top or top == "edgemamba":
            raise
        _fail(missing_message(top, f"`edgemamba {verb}`", VERBS[verb].extra), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", _INTERRUPTED)
    except SystemExit as stop:
        # `edgemamba models | head`: typer ends with 1, which here means that a check failed.
        if isinstance(stop.__context__, BrokenPipeError):
            return 0
        raise
    except Exception as error:
        # Usage errors come from click or from the copy of click inside newer typers: told apart by what they can do.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        _fail(f"{explain()} (see `edgemamba {verb} --help`)", 2)


def _load(verb: Verb) -> Callable[..., Any]:
    """Import the verb. Ctrl-C ends the process at once meanwhile: nothing is open yet, and libraries that are interrupted
    half-imported may swallow the interrupt, or fail in ways of their own."""

    def stop(number: int, frame: object) -> None:
        os.write(2, b"edgemamba: error: interrupted\n")
        os._exit(_INTERRUPTED)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        return verb.load()
    signal.signal(signal.SIGINT, stop)
    try:
        return verb.load()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return f"{USAGE}\nVerbs:\n{verbs}\n\nExamples:{EXAMPLES}"


def _fail(message: str, status: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"edgemamba: error: {line}", file=sys.stderr)
    sys.exit(status)
