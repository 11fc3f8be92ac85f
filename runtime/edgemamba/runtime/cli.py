"""The `edgemamba` command. Verbs live beside what they do and are imported only when they are called."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import click
import typer
from typer.core import TyperGroup

from edgemamba.runtime import __version__
from edgemamba.runtime.errors import EdgeMambaError
from edgemamba.runtime.extras import missing_message


@dataclass(frozen=True)
class Verb:
    """Where a verb is implemented (``module:function``) and the line that `edgemamba --help` shows for it."""

    target: str
    help: str


# The order of a user's work. The short helps stand here so that `edgemamba --help` imports nothing heavy.
VERBS = {
    "demo": Verb("edgemamba.export.commands.demo:demo", "Train, export, verify and stream a small model on real data, in minutes."),
    "models": Verb("edgemamba.train.commands.models:models", "List the backbones that can be created."),
    "train": Verb("edgemamba.train.commands.train:train", "Train a backbone on a folder, a MedMNIST .npz or a CSV of DICOM files."),
    "export": Verb("edgemamba.export.commands.export:export", "Turn a checkpoint into a bundle: ONNX graph, manifest, digests."),
    "verify": Verb("edgemamba.export.commands.verify:verify", "Compare PyTorch with every engine on the same inputs."),
    "inspect": Verb("edgemamba.runtime.commands.inspect:inspect", "Show what a bundle holds and check its digests."),
    "run": Verb("edgemamba.runtime.commands.run:run", "Stream a video, camera, folder or DICOM source through a bundle."),
    "bench": Verb("edgemamba.runtime.commands.bench:bench", "Measure latency, throughput and memory of a bundle."),
    "doctor": Verb("edgemamba.runtime.commands.doctor:doctor", "Say what can be used on this machine, and why not the rest."),
}


class _LazyVerbs(TyperGroup):
    """A command group that imports a verb's module when the verb is called or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, function = VERBS[cmd_name].target.partition(":")
        verb = typer.Typer(add_completion=False, rich_markup_mode="rich")
        verb.command(name=cmd_name)(getattr(importlib.import_module(module), function))
        command = typer.main.get_command(verb)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's plain layout: typer's rich one would import every verb to print its help.
        click.Group.format_help(self, ctx, formatter)


app = typer.Typer(cls=_LazyVerbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgemamba {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Vision-Mamba backbones from PyTorch checkpoints to engines and streams, with proof of parity.

    Start with `edgemamba demo`; then `edgemamba export CKPT -o DIR`, `edgemamba verify DIR`,
    `edgemamba run DIR --source clip.mp4 --out result.mp4`.
    """


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 bad usage or input (one line on stderr), 130 interrupted."""
    try:
        app(prog_name="edgemamba")
    except EdgeMambaError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if not top or top == "edgemamba":
            raise
        _complain(missing_message(top, f"`edgemamba {' '.join(sys.argv[1:2])}`"))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)


def _complain(message: str) -> None:
    line = " ".join(message.split())
    print(f"edgemamba: error: {line}", file=sys.stderr)
