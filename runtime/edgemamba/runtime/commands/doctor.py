"""``edgemamba doctor``: what can be used here, and what to do about the rest."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from edgemamba.runtime.diagnosis import ENGINES, Finding, diagnose

_MARKS = {True: "[green]yes[/]", False: "[yellow]no[/]", None: ""}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what can be used on this machine, why not the rest, and what to do about it.

    Example: edgemamba doctor

    Exit code 1 where no engine can run a bundle here.
    """
    findings = list(diagnose())
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _print(findings)
    if not any(finding.usable for finding in findings if finding.section == ENGINES):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False)
    for section, members in groupby(findings, key=lambda finding: finding.section):
        console.print(f"[bold]{escape(section)}[/]")
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(min_width=3)
        table.add_column(overflow="fold")
        for finding in members:
            text = escape(finding.detail)
            if finding.remedy:
                text += f"\n[dim]-> {escape(finding.remedy)}[/]"
            table.add_row(escape(finding.name), _MARKS[finding.usable], text)
        console.print(Padding(table, (0, 0, 1, 2)))
