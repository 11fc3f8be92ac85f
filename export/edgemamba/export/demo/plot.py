"""The demo's picture: what the model learned, how well it does, and what it looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgemamba.export.demo.planes import FULL_SCALE, PLANES, Pictures
from edgemamba.train.history import Row
from edgemamba.train.metrics import Scores

_SHOWN = 12


def plot_demo(
    path: Path, history: Sequence[Row], test: Scores, held_out: Pictures, predicted: NDArray[np.int64]
) -> None:
    """Draw losses, accuracy, the confusion matrix and some held-out pictures with what the engine said of them.

    Args:
        path: of the PNG.
        history: of the training run.
        test: scores of the test part.
        held_out: its pictures.
        predicted: labels that the engine gave them (N,).
    """
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))  # type: ignore[misc]
    losses, accuracy, matrix = top.subplots(1, 3)
    epochs = [row["epoch"] + 1 for row in history]
    losses.plot(epochs, [row["train_loss"] for row in history], marker=".", label="training")
    losses.plot(epochs, [row["val_loss"] for row in history], marker=".", label="validation")
    losses.set(xlabel="epoch", ylabel="cross entropy (nats)")
    accuracy.plot(epochs, [row["val_top1"] for row in history], marker=".", color="C1", label="validation")
    accuracy.axhline(1 / len(PLANES), color="grey", linestyle=":", label="chance")
    accuracy.set(xlabel="epoch", ylabel="top-1 accuracy", ylim=(0, 1.03))
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()

    matrix.imshow(test.confusion, cmap="Blues", vmin=0)
    matrix.set(
        xticks=range(len(PLANES)),
        yticks=range(len(PLANES)),
        xlabel="predicted",
        ylabel="true",
        title=f"test: {test.top1:.1%} of n = {test.count}",
    )
    matrix.set_xticklabels(PLANES)
    matrix.set_yticklabels(PLANES)
    for (row, column), count in np.ndenumerate(test.confusion):
        dark = count > test.confusion.max() / 2
        matrix.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")

    shown = np.linspace(0, len(held_out.images) - 1, _SHOWN).round().astype(int)
    for axes, index in zip(bottom.subplots(2, _SHOWN // 2).flat, shown, strict=True):
        axes.imshow(held_out.images[index], cmap="gray", vmin=0, vmax=FULL_SCALE)
        right = predicted[index] == held_out.labels[index]
        axes.set_title(PLANES[predicted[index]], fontsize=8, color="black" if right else "red", pad=2)
        axes.axis("off")
    bottom.suptitle("held-out slices, and what the exported engine says of them", fontsize=9)
    FigureCanvasAgg(figure).print_png(path)
