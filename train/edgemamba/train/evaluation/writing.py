"""The files that an evaluation leaves: ``evaluation.json``, and of each candidate its pictures' probabilities and its sheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.privacy import without_uids
from edgemamba.runtime.sinks.table import plain_text
from edgemamba.runtime.whole_files import write_whole
from edgemamba.train.evaluation.predicting import Outcome

REPORT = "evaluation.json"


def prepare(folder: Path) -> None:
    """Make the folder, before minutes are spent on what is to be written there.

    Raises:
        SinkError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{REPORT}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SinkError(f"--out {folder} cannot be written: {error.strerror}") from None


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Write ``evaluation.json``."""
    _write(folder / REPORT, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_predictions(outcome: Outcome, class_names: Sequence[str], path: Path) -> None:
    """A row a picture (RFC 4180): its name as the data set has it (UIDs hashed), the truth, the choice, and the probabilities.

    Of metadata nothing is written, and no group: that may be a patient.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["picture", "label", "predicted", "right", *(f"p_{name}" for name in class_names)])
    for name, label, row in zip(outcome.names, outcome.labels, outcome.probabilities, strict=True):
        chosen = int(row.argmax())
        cells = [without_uids(name), class_names[label], class_names[chosen]]
        writer.writerow([*map(plain_text, cells), int(chosen == label), *(f"{value:.7f}" for value in row)])
    _write(path, buffer.getvalue())


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise SinkError(f"{path} cannot be written: {error.strerror}") from None
