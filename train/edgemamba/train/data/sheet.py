"""The data sheet: what a data set holds, and what is wrong with it, said before the first step.

Cheap facts (counts, balance) are of the whole set. Decoding is bounded: of a large set, pictures spread evenly over it
are looked at, and those that may be duplicates, because their files are as large as another's. The sheet says how many
that were.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations, islice
from typing import Any, TypeVar

import numpy as np

from edgemamba.runtime.dicom_network.pseudonyms import pseudonym
from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.train.data.dataset import PARTS, ImageDataset, Part

#: Pictures that are decoded at most to see what they are like, and as many again to find duplicates.
MOST_LOOKED_AT = 5000
#: How many of each kind of trouble are named in ``data.json``, and how many in a line.
MOST_LISTED = 1000
MOST_NAMED = 5
_THREADS = 4

#: A picture: its part, and its index there.
Place = tuple[Part, int]
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class PartSheet:
    """One part of a data set.

    Attributes:
        pictures: how many.
        classes: how many of each class.
        majority: share of the largest class.
        imbalance: how many times the largest class is the smallest; None where a class is absent.
        patients: how many, where the data set names them.
    """

    pictures: int
    classes: dict[str, int]
    majority: float
    imbalance: float | None
    patients: int | None


@dataclass(frozen=True)
class Overlap:
    """What two parts share although they should not.

    Attributes:
        parts: the two, as in ``("train", "val")``.
        count: pictures of the second part that are in the first too, or patients in both.
        named: the first few: pairs of pictures (``a = b``), or pseudonyms of patients.
    """

    parts: tuple[Part, Part]
    count: int
    named: tuple[str, ...]


@dataclass(frozen=True)
class DataSheet:
    """What :func:`examine` found. JSON-able by :meth:`summary`; nothing in it identifies a patient, if no path does.

    Attributes:
        origin: path of the data set.
        parts: by name.
        pictures, looked_at: how many there are, and how many of them were decoded.
        sizes: ``HxW`` to how many pictures, the most frequent first.
        pixel_types: ``uint8``, ``uint16`` or ``float32`` to how many pictures.
        bits: of each value as stored, to how many pictures.
        repeated: by part, how many pictures are there once more, pixel for pixel.
        leaks: pictures in two parts.
        contradictions: pictures that are there more than once, with different labels.
        shared_patients: patients in two parts, by the table or by the files' Patient ID.
        unreadable: names of pictures that could not be read, with the reason.
    """

    origin: str
    parts: dict[Part, PartSheet]
    pictures: int
    looked_at: int
    sizes: dict[str, int]
    pixel_types: dict[str, int]
    bits: dict[str, int]
    repeated: dict[Part, int]
    leaks: tuple[Overlap, ...]
    contradictions: tuple[str, ...]
    shared_patients: tuple[Overlap, ...]
    unreadable: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """As it is written to ``data.json``."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """What makes figures of the validation wrong: a line for each."""
        lines = [
            f"{overlap.count} of {self.parts[overlap.parts[1]].pictures} pictures of {overlap.parts[1]} are in "
            f"{overlap.parts[0]} too, pixel for pixel: {'; '.join(overlap.named[:MOST_NAMED])}"
            for overlap in self.leaks
        ]
        lines += [
            f"{overlap.count} patients lie in {overlap.parts[0]} and in {overlap.parts[1]}: {', '.join(overlap.named[:MOST_NAMED])}"
            for overlap in self.shared_patients
        ]
        return lines

    def refuse_leaks(self) -> None:
        """What ``--strict-data`` does.

        Raises:
            DataError: a picture or a patient lies in two parts.
        """
        if lines := self.warnings():
            raise DataError(f"{self.origin}: {lines[0]}; refused because of --strict-data")


@dataclass(frozen=True)
class _Seen:
    size: str
    pixel_type: str
    bits: int
    digest: bytes
    patient: str | None


def examine(
    dataset: ImageDataset,
    *,
    most: int = MOST_LOOKED_AT,
    track: Callable[[Iterable[_Seen | str], int], Iterable[_Seen | str]] = lambda found, total: found,
) -> DataSheet:
    """Look at a data set.

    Args:
        dataset: what to look at.
        most: pictures to decode in order to know them, and as many again in order to compare them.
        track: shows progress: is given what comes in one by one and how much will, and gives it on.
    """
    places: list[Place] = [
        (part, i) for part in PARTS if part in dataset.parts for i in range(len(dataset.parts[part]))
    ]
    chosen = sorted({*_spread(places, most), *islice(_suspects(dataset, places, most), most)}, key=_order)
    pool = ThreadPoolExecutor(_THREADS)
    try:
        looks = list(track(pool.map(lambda place: _look(dataset, place), chosen), len(chosen)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    seen = {place: look for place, look in zip(chosen, looks, strict=True) if isinstance(look, _Seen)}
    failed = {_name(dataset, place): look for place, look in zip(chosen, looks, strict=True) if isinstance(look, str)}
    copies = [
        group for group in _grouped((look.digest, place) for place, look in seen.items()).values() if len(group) > 1
    ]
    return DataSheet(
        origin=dataset.origin,
        parts={part: _part_sheet(dataset, part) for part in PARTS if part in dataset.parts},
        pictures=len(places),
        looked_at=len(chosen),
        sizes=_most_common(look.size for look in seen.values()),
        pixel_types=_most_common(look.pixel_type for look in seen.values()),
        bits=_most_common(str(look.bits) for look in seen.values()),
        repeated={
            part: sum(max(0, sum(p == part for p, _ in group) - 1) for group in copies) for part in dataset.parts
        },
        leaks=_leaks(dataset, copies),
        contradictions=_contradictions(dataset, copies),
        shared_patients=_shared_patients(dataset, seen),
        unreadable=failed,
    )


def _look(dataset: ImageDataset, place: Place) -> _Seen | str:
    """What there is to know of a picture, or why it cannot be read."""
    part, index = place
    try:
        look = dataset.parts[part].look(index)
    except SourceError as error:
        return str(error)
    pixels = np.ascontiguousarray(look.pixels)
    digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    size = f"{pixels.shape[0]}x{pixels.shape[1]}"
    return _Seen(size, str(pixels.dtype), look.bits, digest.digest(), look.patient)


def _spread(places: Sequence[Place], most: int) -> list[Place]:
    """All of them, or so many at even distances."""
    if len(places) <= most:
        return list(places)
    return [places[i] for i in np.linspace(0, len(places) - 1, most).round().astype(int)]


def _suspects(dataset: ImageDataset, places: Iterable[Place], most: int) -> Iterator[Place]:
    """Pictures that may have a copy, the most suspicious first: files of a size that few share. Of many of one size, so many."""

    def bulks() -> Iterator[tuple[Any, Place]]:
        for part, index in places:
            try:
                yield dataset.parts[part].bulk(index), (part, index)
            except OSError:  # it is gone, or cut short: whoever reads it says so
                continue

    alike = [group for group in _grouped(bulks()).values() if len(group) > 1]
    for group in sorted(alike, key=len):
        yield from _spread(group, most)


def _grouped(pairs: Iterable[tuple[_Key, Place]]) -> dict[_Key, list[Place]]:
    groups: dict[_Key, list[Place]] = defaultdict(list)
    for key, place in pairs:
        groups[key].append(place)
    return groups


def _part_sheet(dataset: ImageDataset, part: Part) -> PartSheet:
    counts = dataset.counts()[part]
    groups = dataset.parts[part].groups
    return PartSheet(
        pictures=sum(counts),
        classes=dict(zip(dataset.class_names, counts, strict=True)),
        majority=round(max(counts) / sum(counts), 4),
        imbalance=round(max(counts) / min(counts), 2) if min(counts) else None,
        patients=None if groups is None else len(set(groups) - {None}),
    )


def _leaks(dataset: ImageDataset, copies: Sequence[Sequence[Place]]) -> tuple[Overlap, ...]:
    found = []
    for parts in combinations([part for part in PARTS if part in dataset.parts], 2):
        count, named = 0, []
        for group in copies:
            first, second = ([place for place in group if place[0] == part] for part in parts)
            if first:
                count += len(second)
                named += [f"{_name(dataset, place)} = {_name(dataset, first[0])}" for place in second]
        if count:
            found.append(Overlap(parts, count, tuple(named[:MOST_LISTED])))
    return tuple(found)


def _contradictions(dataset: ImageDataset, copies: Sequence[Sequence[Place]]) -> tuple[str, ...]:
    lines = []
    for group in copies:
        labels = {int(dataset.parts[part].labels[index]): (part, index) for part, index in reversed(group)}
        if len(labels) > 1:
            lines.append(
                " = ".join(f"{_name(dataset, place)} ({dataset.class_names[label]})" for label, place in labels.items())
            )
    return tuple(lines[:MOST_LISTED])


def _shared_patients(dataset: ImageDataset, seen: Mapping[Place, _Seen]) -> tuple[Overlap, ...]:
    """By the groups of the data set, and by what the files that were looked at say."""
    by_table: dict[str, set[Part]] = defaultdict(set)
    for part, pictures in dataset.parts.items():
        for group in pictures.groups or ():
            if group is not None:
                by_table[group].add(part)
    by_file: dict[str, set[Part]] = defaultdict(set)
    for (part, _), look in seen.items():
        if look.patient is not None:
            by_file[look.patient].add(part)
    if len(by_file) == 1:  # what an anonymiser wrote into all of them names nobody
        by_file.clear()
    found = []
    for parts in combinations([part for part in PARTS if part in dataset.parts], 2):
        # The two may name the same patients differently: they are not added up.
        both = max(
            ([name for name, where in known.items() if where >= set(parts)] for known in (by_table, by_file)), key=len
        )
        if both:
            named = sorted(f"patient-{pseudonym(patient)}" for patient in both)
            found.append(Overlap(parts, len(both), tuple(named[:MOST_LISTED])))
    return tuple(found)


def _name(dataset: ImageDataset, place: Place) -> str:
    return dataset.parts[place[0]].name(place[1]).removeprefix(f"{dataset.origin}/")


def _order(place: Place) -> tuple[int, int]:
    return PARTS.index(place[0]), place[1]


def _most_common(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
