"""Options that the verbs of training have in common."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL = "Model"
OPTIMISATION = "Optimisation"
AUGMENTATION = "Augmentation"
MACHINE = "Machine"

Out = Annotated[str | None, typer.Option(help="Folder of the run; runs/MODEL by default.")]
Resume = Annotated[
    str | None, typer.Option(metavar="auto|CKPT", help="Go on with a run: from its last.ckpt, or from a path.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A field of the model's config.", rich_help_panel=MODEL),
]
BatchSize = Annotated[int, typer.Option(help="Of each device.", rich_help_panel=OPTIMISATION)]
PeakRate = Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=OPTIMISATION)]
Optimiser = Annotated[str, typer.Option(help="Any optimiser of timm's.", rich_help_panel=OPTIMISATION)]
Schedule = Annotated[str, typer.Option(help="Any schedule of timm's.", rich_help_panel=OPTIMISATION)]
LeftRightFlips = Annotated[float, typer.Option(help="Probability of left-right flips.", rich_help_panel=AUGMENTATION)]
UpsideDownFlips = Annotated[float, typer.Option(help="Of upside-down flips.", rich_help_panel=AUGMENTATION)]
Precision = Annotated[str, typer.Option(metavar="32|bf16-mixed|16-mixed", rich_help_panel=MACHINE)]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, gpu, ...", rich_help_panel=MACHINE)]
Devices = Annotated[str, typer.Option(help="How many, or which (0,2).", rich_help_panel=MACHINE)]
FewBatches = Annotated[
    int | None, typer.Option(help="Stop epochs after so many batches (smoke tests).", rich_help_panel=MACHINE)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")]
