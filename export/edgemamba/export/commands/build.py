"""`edgemamba build`: a bundle gets an engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from edgemamba.export.building.engine import build_engine
from edgemamba.export.building.options import BuildOptions, parse_sm
from edgemamba.export.building.tools import command_lines
from edgemamba.runtime.bundle import Bundle, EngineCard


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle: the folder that `edgemamba export` wrote.")],
    backend: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(help="tensorrt: on the device itself; tensorrt-rtx: desktop GPUs, built anywhere."),
    ],
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(help="By default the graph's. TensorRT 10 alone can lower it while building."),
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="MIN/OPT/MAX as 1x224x224/4x224x224/8x224x224, or batches alone: 1/4/8.")
    ] = "",
    sm: Annotated[str, typer.Option(help="tensorrt-rtx: compute capabilities to build for, as 86,89.")] = "",
    no_plugin: Annotated[
        bool, typer.Option("--no-plugin", help="Build the scan's function instead, for comparison; much slower.")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(help="tensorrt: a file that makes the next build faster; made where it is not there.")
    ] = None,
    print_commands: Annotated[
        bool, typer.Option("--print-commands", help="Only print the same build for trtexec and polygraphy.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the engine's record as JSON.")] = False,
) -> None:
    """Build a TensorRT engine from a bundle's graph and put it, with a record of how it was built, into the bundle.

    [bold]edgemamba build vim_tiny/ --backend tensorrt-rtx --sm 86,89 --shapes 1/4/8[/bold]
    """
    options = BuildOptions(
        backend=backend,
        precision=precision,
        shapes=shapes,
        sm=parse_sm(sm),
        plugin=not no_plugin,
        timing_cache=timing_cache,
    )
    loaded = Bundle.load(bundle)
    if print_commands:
        sys.stdout.write(command_lines(loaded, options) + "\n")
        return
    console = Console(stderr=True)
    with console.status("building") as status:
        card = build_engine(loaded, options, progress=lambda step: status.update(step))
    if as_json:
        sys.stdout.write(card.model_dump_json(indent=2) + "\n")
    else:
        _summary(Path(bundle), card, Console())


def _summary(folder: Path, card: EngineCard, console: Console) -> None:
    lines = [
        f"{folder / card.file}",
        f"  size     {(folder / card.file).stat().st_size / 2**20:.1f} MiB, built in {card.build_seconds:.1f} s",
        f"  runs on  {card.device or 'GPUs of compute capability ' + (', '.join(card.compute_capabilities) or '8.0 and newer')}",
        f"  shapes   {' / '.join('x'.join(map(str, shape)) for shape in card.shapes)}, {card.precision}",
        f"  scan     {'plugin ' + card.plugin if card.plugin else 'standard operators (no plugin)'}",
        f"  next     edgemamba verify {folder} --backend {card.backend}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
