"""`edgemamba models`: which backbones there are."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edgemamba.runtime.errors import ModelError
from edgemamba.train.registry import ModelEntry, families, list_models, model_entry


def models(
    pattern: Annotated[
        str, typer.Argument(help="Shell pattern of names, quoted: 'vim*'. Upstream's names match too.")
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")] = False,
) -> None:
    """List the backbones that can be created, trained and exported.

    Parameters are counted, classifier included, with the number of classes shown. Top-1 is the published accuracy on
    ImageNet-1k of the official weights, which are not part of this package. --json adds upstream's names and the papers.

    Example: edgemamba models 'vim_*' --json
    """
    names = list_models(pattern)
    if not names:
        raise ModelError(f"no model matches {pattern!r}; all of them: edgemamba models")
    entries = [model_entry(name) for name in names]
    if as_json:
        print(json.dumps([_describe(entry) for entry in entries], indent=2))
    else:
        Console().print(_table(entries))


def _describe(entry: ModelEntry) -> dict[str, Any]:
    family = families()[entry.family]
    return {
        "name": entry.name,
        "family": entry.family,
        "paper": family.paper,
        "params": entry.params,
        "input_size": list(entry.preprocessing.size),
        "num_classes": entry.config.num_classes,
        "d_state": entry.config.d_state,
        "top1": entry.top1,
        "source": entry.source,
        "aliases": list(entry.aliases),
    }


def _table(entries: list[ModelEntry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Name", "Params", "Input", "Classes", "States", "Top-1", "Published"):
        table.add_column(
            heading, justify="left" if heading in ("Name", "Published") else "right", no_wrap=heading == "Name"
        )
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.params / 1e6:.2f} M",
            "x".join(map(str, entry.preprocessing.size)),
            str(entry.config.num_classes),
            str(entry.config.d_state),
            "-" if entry.top1 is None else f"{entry.top1:.1f} %",
            entry.source,
        )
    return table
