"""The history of a run: one row an epoch in ``metrics.csv``, and its curves in ``curves.png``."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.whole_files import write_whole
from edgemamba.train.training_module import TrainingModule

Row = dict[str, float]


class History(pl.Callback):
    """Writes ``metrics.csv`` at the end of every epoch, and ``curves.png`` when training stops for any reason.

    Lightning's ``CSVLogger`` deletes what was written before when a run is resumed, and puts training and validation on
    rows of their own; this keeps the rows of the epochs before the resumed one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self._start = 0.0

    @property
    def table(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def picture(self) -> Path:
        return self.folder / "curves.png"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        if trainer.global_step and self.table.is_file():
            self.rows = [row for row in read_history(self.table) if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        train_loss = float(pl_module.train_loss.compute())  # on every rank, because it is summed over them
        seen = trainer.callback_metrics
        row: Row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": train_loss,
            **{name: float(seen.get(name, math.nan)) for name in pl_module.scores},
            "seconds": time.monotonic() - self._start,
        }
        # A run that was interrupted after its last batch repeats the epoch's end.
        self.rows = [*(old for old in self.rows if old["epoch"] != row["epoch"]), row]
        if trainer.is_global_zero:
            write_history(self.table, self.rows)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rows and trainer.is_global_zero:
            assert isinstance(pl_module, TrainingModule)
            plot_history(self.rows, self.picture, pl_module.scores)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        with contextlib.suppress(OSError):  # a full disk: what is told is the exception
            self.on_train_end(trainer, pl_module)


def write_history(path: Path, rows: list[Row]) -> None:
    """Write the table so that a reader sees the old one or the new one, never half of it."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[-1]))
    writer.writeheader()
    writer.writerows({name: f"{value:.8g}" for name, value in row.items()} for row in rows)
    write_whole(path, table.getvalue().encode())


def read_history(path: Path) -> list[Row]:
    """The rows of a ``metrics.csv``, as numbers.

    Raises:
        TrainingError: it is no such table, or not any more.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise TrainingError(f"{path} cannot be read ({error}); move it away to go on without its rows") from None
    if any("epoch" not in row for row in rows):
        raise TrainingError(f"{path} has no column epoch; move it away to go on without its rows")
    return rows


def plot_history(rows: list[Row], path: Path, scores: Mapping[str, str]) -> None:
    """Losses on the left, the other figures of validation on the right, over epochs.

    Args:
        rows: one an epoch.
        path: of the PNG file.
        scores: of the :class:`TrainingModule`: column -> what it is called, the loss first.
    """
    # The object interface: pyplot would ask for a display and keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in rows]
    panels = (
        (left, "loss", {"training": "train_loss", "validation": "val_loss"}),
        (right, "validation", {label: column for column, label in scores.items() if column != "val_loss"}),
    )
    for axes, title, lines in panels:
        for label, column in lines.items():
            axes.plot(epochs, [row[column] for row in rows], marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend()
    right.set_ylim(top=1.02)
    FigureCanvasAgg(figure).print_png(path)
