"""What is in the parts of a data set, and whether they are kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from edgemamba.train.data import Part
from edgemamba.train.segmentation.cases import Cases

_MOST_NAMED = 5


@dataclass(frozen=True)
class PartContents:
    """Of one part.

    Attributes:
        labels: in how many cases each label is, by its index as text.
        digests: names of the cases, by the SHA-256 of their pixels as the model sees them.
    """

    labels: dict[str, int]
    digests: dict[bytes, str]


def examine(cases: Cases) -> PartContents:
    """Read every case once, so that a run does not stop at the last of them.

    Raises:
        SourceError, DataError: a case cannot be used.
    """
    labels: dict[str, int] = {}
    digests = {}
    for index, pair in enumerate(cases.pairs):
        case = cases.read(index)
        for label in np.unique(case.truth):
            labels[str(label)] = labels.get(str(label), 0) + 1
        digests[hashlib.sha256(case.pixels.contiguous().numpy().data).digest()] = pair.name
    return PartContents(labels, digests)


def leaks(contents: Mapping[Part, PartContents]) -> list[str]:
    """A line for each two parts that have pictures or volumes in common, for the figures of one then say nothing of what
    the other taught. Slices of one patient are not seen here."""
    lines = []
    for (first, one), (second, other) in combinations(contents.items(), 2):
        names = [name for digest, name in other.digests.items() if digest in one.digests]
        if names:
            more = ", ..." if len(names) > _MOST_NAMED else ""
            lines.append(
                f"{len(names)} cases of {second} are in {first} too, pixel for pixel: {', '.join(names[:_MOST_NAMED])}{more}"
            )
    return lines
