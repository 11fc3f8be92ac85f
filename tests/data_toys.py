"""Data sets of a few small files, which the tests of data share."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from PIL import Image

from edgemamba.train.data import PictureSet


def write_tree(root: Path, counts: dict[str, int]) -> Path:
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (10, 12), 20 * index).save(root / folder / f"{index}.png")
    return root


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def names(pictures: PictureSet) -> list[str]:
    return [pictures.name(index) for index in range(len(pictures))]
