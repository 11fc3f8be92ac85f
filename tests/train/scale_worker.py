"""One process of runs that end badly: ``python scale_worker.py PLAN.json``, also under torchrun.

The plan is a list of runs, one after the other: ``arguments`` of ``edgemamba``, and ``accident``, which happens to them:

    none
    interrupt:RANK:BATCH   Ctrl-C for that rank during that batch
    kill:RANK:BATCH        SIGKILL for that rank during that batch
    tear:WRITE             SIGKILL when half of that checkpoint (counted from 0) is written

Every rank writes the losses of its batches to ``PLAN.RUN.RANK.json``, as they come.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import before_batch, record_losses

from edgemamba.runtime.cli import main
from edgemamba.train import checkpoint_writing
from edgemamba.train.classifier import Classifier


def prepare(accident: str, patch: pytest.MonkeyPatch) -> None:
    kind, *numbers = accident.split(":")
    if kind == "tear":
        patch.setattr(checkpoint_writing, "torch", TornTorch(int(numbers[0])))
    elif kind != "none" and int(numbers[0]) == rank():
        number = signal.SIGINT if kind == "interrupt" else signal.SIGKILL
        hook = before_batch(int(numbers[1]), lambda: os.kill(os.getpid(), number))
        patch.setattr(Classifier, "on_train_batch_start", hook)


class TornTorch:
    """A ``torch`` whose ``save`` is killed half-way through one of its files."""

    def __init__(self, write: int) -> None:
        self.write = write
        self.writes = count()

    def save(self, content: Any, file: Any) -> None:
        if next(self.writes) != self.write:
            torch.save(content, file)
            return
        whole = io.BytesIO()
        torch.save(content, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def run(plan: Path) -> None:
    torch.set_num_threads(1)
    for number, step in enumerate(json.loads(plan.read_text())):
        losses: dict[int, float] = {}
        record = plan.with_suffix(f".{number}.{rank()}.json")

        def note(batch: int, loss: float, losses: dict[int, float] = losses, record: Path = record) -> None:
            losses[batch] = loss
            record.write_text(json.dumps(losses))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Classifier, "training_step", record_losses(note))
            prepare(step["accident"], patch)
            try:
                main(step["arguments"])
            except SystemExit as stop:
                print(f"run {number} ended with {stop.code or 0}", file=sys.stderr)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
