"""An evaluation: one set of pictures, one or more candidates, the same figures of each, and engines held against the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.privacy import without_uids
from edgemamba.train.data import PARTS, ImageDataset, Part
from edgemamba.train.evaluation.candidates import EngineCandidate
from edgemamba.train.evaluation.classes import matched, same_count
from edgemamba.train.evaluation.comparison import TOLERANCE, Comparison, compare
from edgemamba.train.evaluation.figures import Figures, jsonable, judged_classes, measure, positive_class
from edgemamba.train.evaluation.predicting import Candidate, Outcome, join, passes, predict
from edgemamba.train.evaluation.thresholds import DEFAULT_RULES, Rule, Thresholds

FORMAT = 1
Which = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation.

    Attributes:
        part: of the data set; None for its test part, or where it has none its validation part.
        rules: how thresholds are chosen.
        thresholds: the part that they are chosen on, or thresholds that are given; None for the validation part where the test
            part is judged, else the pictures themselves.
        positive: name of the positive class of two.
        ordinal: the classes are grades, in their order.
        resamples, seed: of the bootstrap; None for as many as take seconds.
        flip: also show every picture mirrored.
        batch_size, workers: of decoding.
        max_unreadable: the share of a part's pictures that may be unreadable.
        tolerance: of a logit where engines are held against the first candidate; None for that of their precision.
    """

    part: Which | None = None
    rules: tuple[Rule, ...] = DEFAULT_RULES
    thresholds: Which | Thresholds | None = None
    positive: str | None = None
    ordinal: bool = False
    resamples: int | None = None
    seed: int = 0
    flip: bool = False
    batch_size: int = 32
    workers: int = 0
    max_unreadable: float = 0.01
    tolerance: float | None = None


@dataclass(frozen=True)
class Judged:
    """One candidate's logits, its classes in the order of the evaluation's, and figures."""

    label: str
    outcome: Outcome
    figures: Figures


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes:
        data: name of the data set, without its folder.
        part: that was judged.
        class_names: in the order of all figures.
        thresholds: that were applied.
        judged: one a candidate.
        comparisons: of engines with the first candidate.
        notes: what a reader of the figures must know.
    """

    data: str
    part: Which
    class_names: tuple[str, ...]
    thresholds: Thresholds
    judged: tuple[Judged, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def unreadable(self) -> dict[str, str]:
        """Name and reason of the pictures that were left out, without UIDs."""
        found = self.judged[0].outcome.unreadable
        return {without_uids(name): without_uids(reason) for name, reason in found.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON-able; None for figures that are not defined."""
        return {
            "format": FORMAT,
            "data": self.data,
            "part": self.part,
            "class_names": list(self.class_names),
            "thresholds": jsonable(self.thresholds),
            "unreadable": self.unreadable,
            "candidates": [{"label": judged.label, **judged.figures.to_json()} for judged in self.judged],
            "comparisons": jsonable(self.comparisons),
            "notes": list(self.notes),
        }


def evaluate(
    candidates: Sequence[Candidate],
    dataset: ImageDataset,
    request: Request,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Judge candidates on a part of a data set.

    Args:
        candidates: the first is the one that engines are held against.
        dataset: its classes are matched to the candidates' by name.
        request: what is asked.
        progress: told how many pictures were shown, of how many.

    Raises:
        DataError: the part does not exist, classes do not match, or pictures cannot be read.
        EngineError: an engine failed.
    """
    notes: list[str] = []
    class_names, columns, numbers = _classes(candidates, dataset, notes)
    positive = _positive(class_names, request.positive, notes)
    part = _part(dataset, request.part, notes)
    source = request.thresholds or ("val" if part in ("test", "train") else part)
    needed = dict.fromkeys(p for which in (part, source) if isinstance(which, str) for p in _parts(dataset, which))
    total = passes(candidates) * sum(len(dataset.parts[p]) for p in needed)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    shown = {
        p: predict(
            candidates,
            dataset.parts[p],
            batch_size=request.batch_size,
            workers=request.workers,
            flip=request.flip,
            max_unreadable=request.max_unreadable,
            progress=advance,
        )
        for p in needed
    }

    def outcome(which: Which, index: int) -> Outcome:
        joined = join([shown[p][index] for p in _parts(dataset, which)])
        return joined.with_classes(columns[index], numbers)

    if isinstance(source, Thresholds):
        thresholds = source
    else:
        chosen = outcome(source, 0)
        judged_names = judged_classes(class_names, positive)
        thresholds = Thresholds.choose(request.rules, chosen.probabilities, chosen.labels, judged_names, source)
        if set(_parts(dataset, source)) & set(_parts(dataset, part)):
            notes.append(
                f"thresholds were chosen on {source}, which is judged here: sensitivity and specificity there flatter the model"
            )
    if request.flip:
        notes.append("logits are means of each picture's and its mirror image's")
    judged = tuple(
        Judged(
            candidate.label,
            found := outcome(part, index),
            measure(
                found,
                class_names,
                thresholds,
                positive=positive,
                ordinal=request.ordinal,
                resamples=request.resamples,
                seed=request.seed,
            ),
        )
        for index, candidate in enumerate(candidates)
    )
    absent = [
        name for name, count in zip(class_names, judged[0].figures.confusion.sum(axis=1), strict=True) if not count
    ]
    if absent:
        notes.append(f"there is no picture of {', '.join(absent)}: figures of these classes are not defined")
    if judged[0].figures.resamples == 0:
        notes.append("no bootstrap intervals were made; --bootstrap 1000 makes them")
    return Evaluation(
        Path(dataset.origin).name,
        part,
        class_names,
        thresholds,
        judged,
        _compare(candidates, judged, request.tolerance),
        tuple(notes),
    )


def _classes(
    candidates: Sequence[Candidate], dataset: ImageDataset, notes: list[str]
) -> tuple[tuple[str, ...], list[NDArray[np.int64]], NDArray[np.int64]]:
    """The classes' names and order, where each candidate's logits have them, and the numbers of the data set's classes.

    They are the first candidate's that names any. Where none does, or one does not, classes are matched by position.
    """
    named = next((candidate for candidate in candidates if candidate.class_names), None)
    class_names = named.class_names if named is not None else dataset.class_names
    columns = []
    for candidate in candidates:
        if candidate.class_names:
            assert named is not None
            matched(candidate.class_names, class_names, candidate.label, named.label)
            columns.append(matched(class_names, candidate.class_names, named.label, candidate.label))
        else:
            whose = dataset.origin if named is None else named.label
            same_count(len(class_names), candidate.num_classes, whose, candidate.label)
            notes.append(f"{candidate.label} names no classes: they are taken in the order of {whose}")
            columns.append(np.arange(len(class_names)))
    numbers = matched(dataset.class_names, class_names, dataset.origin, named.label if named else dataset.origin)
    return class_names, columns, numbers


def _positive(class_names: Sequence[str], name: str | None, notes: list[str]) -> int | None:
    if name is not None:
        if len(class_names) != 2:
            raise DataError(f"--positive goes with two classes, and there are {len(class_names)}")
        if name not in class_names:
            raise DataError(f"--positive is {name!r}, which is no class; the classes are {', '.join(class_names)}")
    positive = positive_class(class_names, name)
    if positive is not None and name is None:
        notes.append(f"the positive class is {class_names[positive]}; --positive {class_names[0]} takes the other")
    return positive


def _part(dataset: ImageDataset, part: Which | None, notes: list[str]) -> Which:
    if part is None:
        part = "test" if "test" in dataset.parts else "val"
        if part == "val":
            notes.append(
                "there is no test part, so val is judged, which chose the checkpoint; --part all judges every picture"
            )
    elif part != "all" and part not in dataset.parts:
        raise DataError(
            f"{dataset.origin} has no {part} part; it has: {', '.join(p for p in PARTS if p in dataset.parts)}"
        )
    return part


def _parts(dataset: ImageDataset, which: Which) -> list[Part]:
    return [part for part in PARTS if part in dataset.parts and which in (part, "all")]


def _compare(
    candidates: Sequence[Candidate], judged: Sequence[Judged], tolerance: float | None
) -> tuple[Comparison, ...]:
    """Engines against the first candidate. Another checkpoint is another model, and may differ."""
    found: list[Comparison] = []
    for candidate, other in zip(candidates[1:], judged[1:], strict=True):
        if isinstance(candidate, EngineCandidate):
            weaker = "fp16" if "fp16" in (candidate.precision, candidates[0].precision) else "fp32"
            allowed = TOLERANCE[weaker] if tolerance is None else tolerance
            names = judged[0].label, other.label
            found.append(compare(names, judged[0].outcome, other.outcome, tolerance=allowed))
    return tuple(found)
