"""`edgemamba models`: which backbones there are."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
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
    """List the models that can be created, trained and exported, by family and size.

    Parameters are counted, classifier included, with the number of classes shown. Top-1 is the published accuracy on
    ImageNet-1k of the official weights, which are not part of this package. --json adds upstream's names.

    Example: edgemamba models 'vim_*' --json
    """
    names = list_models(pattern)
    if not names:
        raise ModelError(f"no model matches {pattern!r}; all of them: edgemamba models")
    entries = [model_entry(name) for name in names]
    # By family; a family's architectures, where it has two, one after the other; the smallest first.
    of_family, kinds = list(families()), [type(entry.config) for entry in entries]
    ordered = sorted(entries, key=lambda e: (of_family.index(e.family), kinds.index(type(e.config)), e.params, e.name))
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
        "task": entry.task,
        "input_size": list(entry.input_size),
        "num_classes": entry.config.num_classes,
        "d_state": getattr(entry.config, "d_state", None),
        "top1": entry.top1,
        "source": entry.source,
        "aliases": list(entry.aliases),
    }


def _print(entries: list[ModelEntry]) -> None:
    """A table a family; where most of its models were published stands above it, beside them what is special."""
    console = Console()
    width = max(len(entry.name) for entry in entries)
    for name, group in itertools.groupby(entries, key=lambda entry: entry.family):
        models, family = list(group), families()[name]
        ((source, _),) = Counter(re.split("[,;:] ", entry.source)[0] for entry in models).most_common(1)
        heading = Text(family.title, style="bold")
        heading.append(f"  {family.paper}; {source}", style="not bold dim")
        console.print(heading)
        console.print(_table(models, width, source, console.width))
        console.print()


def _table(entries: list[ModelEntry], width: int, source: str, terminal: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("Name", min_width=width, no_wrap=True)
    used = width + 2
    for heading, least in (("Params", 8), ("Input", 7), ("Classes", 7), ("Top-1", 6)):
        table.add_column(heading, justify="right", min_width=least, no_wrap=True)
        used += least + 2
    # Cut off at the terminal's edge; --json has all of it.
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=max(terminal - used, 8))
    repository = source.partition(" ")[0]
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.params / 1e6:.2f} M",
            "x".join(map(str, entry.input_size)),
            str(entry.config.num_classes),
            "-" if entry.top1 is None else f"{entry.top1:.1f} %",
            entry.source.removeprefix(source).removeprefix(repository).lstrip(",;: "),
        )
    return table
