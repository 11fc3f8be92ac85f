"""Draw what a segmenter says of a data set's test pictures: picture, mask and prediction, side by side.

python docs/draw_segmentation.py runs/brain/checkpoints/best.ckpt data/ docs/pictures/segmentation.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edgemamba.train.checkpoint import read_training_checkpoint
from edgemamba.train.data.pictures import read_file
from edgemamba.train.segmentation.cases import PictureCases
from edgemamba.train.segmentation.evaluating import predict_mask
from edgemamba.train.segmentation.pairs import find_pairs


def draw(checkpoint: Path, data: Path, out: Path) -> None:
    """One row a test picture."""
    model, names, preprocessing = read_training_checkpoint(checkpoint)
    if preprocessing is None:
        raise SystemExit(f"{checkpoint} is of volumes; this draws pictures")
    parts = find_pairs(data).parts
    cases = PictureCases(parts["test"] if "test" in parts else parts["val"], len(names), preprocessing, resize=True)
    figure = Figure(figsize=(7, 2.6 * len(cases)), layout="constrained")
    rows = figure.subplots(len(cases), 3, squeeze=False)
    for index, row in enumerate(rows):
        case = cases.read(index)
        shown = (read_file(cases.pairs[index].image), case.truth, predict_mask(model, case, patch=None))
        for axes, pixels, title in zip(row, shown, ("picture", "mask", "prediction"), strict=True):
            grey = title == "picture"
            axes.imshow(
                np.squeeze(pixels), cmap="gray" if grey else "viridis", vmin=0, vmax=None if grey else len(names) - 1
            )
            axes.set_title(title if index == 0 else "", fontsize=9)
            axes.axis("off")
    FigureCanvasAgg(figure).print_png(out)


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:4]))
