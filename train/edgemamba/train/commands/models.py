"""`edgemamba models`: which backbones there are."""

from __future__ import annotations

import itertools
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgemamba.runtime.errors import ModelError
from edgemamba.train.registry import ModelEntry, families, list_models, model_entry


def models(
    pattern: Annotated[
        str, typer.Argument(help="Shell pattern of names, quoted: 'vim*'. Upstream's names match too.")
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")] = False,
) -> None:
    """List the backbones that can be created, trained and exported, by family and size.

    Parameters are counted, classifier included, with the number of classes shown. Top-1 is the published accuracy on
    ImageNet-1k of the official weights, which are not part of this package. --json adds upstream's names.

    Example: edgemamba models 'vim_*' --json
    """
    names = list_models(pattern)
    if not names:
        raise ModelError(f"no model matches {pattern!r}; all of them: edgemamba models")
    entries = [model_entry(name) for name in names]
    groups = [[entry for entry in entries if entry.family == family] for family in families()]
    ordered = [entry for group in groups for entry in sorted(group, key=lambda entry: (entry.params, entry.name))]
    if as_json:
        print(json.dumps([_describe(entry) for entry in ordered], indent=2))
    else:
        _print(ordered)


def _describe(entry: ModelEntry) -> dict[str, Any]:
    family = families()[entry.family]
    return {
        "name": entry.name,
        "family": entry.family,
        "title": family.title,
        "paper": family.paper,
        "params": entry.params,
        "input_size": list(entry.preprocessing.size),
        "num_classes": entry.config.num_classes,
        "d_state": getattr(entry.config, "d_state", None),
        "top1": entry.top1,
        "source": entry.source,
        "aliases": list(entry.aliases),
    }


def _print(entries: list[ModelEntry]) -> None:
    """A table a family, the smallest model first; what the sources of its models have in common stands above it."""
    console = Console()
    width = max(len(entry.name) for entry in entries)
    for name, group in itertools.groupby(entries, key=lambda entry: entry.family):
        models, family = list(group), families()[name]
        sources = {entry.source.partition(", ")[0] for entry in models}
        common = sources.pop() if len(sources) == 1 else ""
        heading = Text(family.title, style="bold")
        heading.append(f"  {family.paper}{f'; {common}' if common else ''}", style="not bold dim")
        console.print(heading)
        console.print(_table(models, width, common))
        console.print()


def _table(entries: list[ModelEntry], width: int, common: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("Name", min_width=width, no_wrap=True)
    for heading, least in (("Params", 8), ("Input", 7), ("Classes", 7), ("Top-1", 6)):
        table.add_column(heading, justify="right", min_width=least, no_wrap=True)
    table.add_column("")
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.params / 1e6:.2f} M",
            "x".join(map(str, entry.preprocessing.size)),
            str(entry.config.num_classes),
            "-" if entry.top1 is None else f"{entry.top1:.1f} %",
            entry.source.removeprefix(common).removeprefix(", "),
        )
    return table
