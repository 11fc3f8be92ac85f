"""Data sets in WebDataset's layout: tar files with ``KEY.jpg`` beside ``KEY.cls`` (https://github.com/webdataset/webdataset).

Shards are not streamed. An index of where each member lies is made once (:mod:`edgemamba.train.data.tar_index`), and
pictures are then read at random, as files are: every epoch is shuffled exactly, an interrupted run goes on with the
very next batch, and ranks divide an epoch exactly, none of which holds for streams with a shuffle buffer. The price is
a seek for every picture.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.runtime.sources.pictures import DICOM_SUFFIXES, IMAGE_SUFFIXES, natural_key
from edgemamba.train.data.dataset import PART_OF, ImageDataset, Part
from edgemamba.train.data.division import Division
from edgemamba.train.data.pictures import Look, PictureSet, look_at_file, read_file
from edgemamba.train.data.table import names_of_classes
from edgemamba.train.data.tar_index import Member, tar_members

_PICTURES = IMAGE_SUFFIXES | DICOM_SUFFIXES
# Bytes of a label; a JSON file may carry a caption or boxes beside it.
_LARGEST_LABEL = 1 << 20
_LABEL_KEYS = ("label", "cls", "class")
_GROUP_KEYS = ("patient", "group")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class ShardSample:
    """One labelled picture in a shard; ``group`` is its patient."""

    shard: Path
    member: Member
    label: str
    group: str | None = None


class ShardPictures(PictureSet):
    """Pictures in shards, read through the runtime's one decode path.

    Args:
        samples: what to read.
        labels: class of each.
    """

    def __init__(self, samples: Sequence[ShardSample], labels: NDArray[np.int64]) -> None:
        self.samples = tuple(samples)
        self.labels = labels
        if any(sample.group is not None for sample in self.samples):
            self.groups = tuple(sample.group for sample in self.samples)

    def name(self, index: int) -> str:
        sample = self.samples[index]
        return f"{sample.shard}/{sample.member.name}"

    def read(self, index: int) -> NDArray[np.generic]:
        with self._file(index) as path:
            return read_file(path)

    def look(self, index: int) -> Look:
        with self._file(index) as path:
            return look_at_file(path)

    def bulk(self, index: int) -> Hashable:
        return self.samples[index].member.size, 0

    def stamp(self, index: int) -> str | None:
        sample = self.samples[index]
        stat = sample.shard.stat()
        return f"{sample.shard.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{sample.member.offset}"

    @contextmanager
    def _file(self, index: int) -> Iterator[Path]:
        """The picture as a file of its own for as long as it is read: the runtime's decoders take paths."""
        sample = self.samples[index]
        name = self.name(index)
        try:
            with sample.shard.open("rb") as shard:
                content = sample.member.read(shard)
        except OSError as error:
            raise SourceError(f"{name} cannot be read: {error.strerror}") from None
        with tempfile.NamedTemporaryFile(suffix=PurePosixPath(sample.member.name).suffix) as file:
            file.write(content)
            file.flush()
            try:
                yield Path(file.name)
            except SourceError as error:
                raise SourceError(str(error).replace(file.name, name)) from None


def shards_of(path: Path) -> list[Path]:
    """The shards that a path means: a ``.tar``, a pattern (``train-{000..019}.tar``), or a folder with ``.tar`` files in it or in its
    ``train``, ``val`` and ``test`` folders. Empty where it means none.

    Raises:
        DataError: a shard of the pattern is not there.
    """
    if found := _RANGE.search(path.name):
        first, last = found[1], found[2]
        if not 0 <= int(last) - int(first) < _MOST_SHARDS:
            raise DataError(f"{path}: {found[0]} is no range of shards")
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        shards = [
            path.with_name(f"{path.name[: found.start()]}{number}{path.name[found.end() :]}") for number in numbers
        ]
        if missing := [shard for shard in shards if not shard.is_file()]:
            raise DataError(
                f"{missing[0]} does not exist; {path} means {len(shards)} shards, of which {len(missing)} are missing"
            )
        return shards
    if path.is_dir():
        folders = [path, *(folder for folder in _folders(path) if folder.name.lower() in PART_OF)]
        if any(inner not in folders for folder in folders for inner in _folders(folder)):
            return []  # a tree of classes, in which somebody left an archive
        found_shards = [shard for folder in folders for shard in folder.glob("*.tar") if not shard.name.startswith(".")]
        return sorted(found_shards, key=lambda shard: natural_key(str(shard.relative_to(path))))
    return [path] if path.suffix.lower() == ".tar" else []


def _folders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]


def open_shards(path: Path, shards: Sequence[Path], division: Division = Division()) -> ImageDataset:
    """Open shards as a data set.

    Members that share a key (all before the first dot of the file's name) are one sample: a picture (any format that the
    runtime reads; the first frame of a DICOM file) and its label: ``.cls`` with a class's number or name, or ``.json`` with
    it under ``label``, ``cls`` or ``class`` and optionally a ``patient`` (or ``group``), or ``.txt``. Other members are
    passed over. A shard is of the part that a word of its name says (``train-0001.tar``, ``val/0001.tar``).

    Args:
        path: what the user named, for messages.
        shards: of :func:`shards_of`.
        division: where no shard is for validation.

    Raises:
        DataError: a shard is damaged or hostile, a sample has no label or no picture, some shards name a part and
            others none, or a label cannot be used.
    """
    found: dict[Part | None, list[ShardSample]] = {}
    for shard in shards:
        found.setdefault(_part(shard, path), []).extend(_samples(shard))
    if None in found and len(found) > 1:
        nameless = next(shard for shard in shards if _part(shard, path) is None)
        raise DataError(f"{path}: some shards are named after a part and {nameless.name} is not (train, val or test)")
    if None not in found and "train" not in found:
        raise DataError(f"{path} has no shard for training (train-....tar)")
    first: dict[str, str] = {}
    for samples in found.values():
        for sample in samples:
            first.setdefault(sample.label, f"{sample.shard}/{sample.member.name}")
    if not first:
        raise DataError(f"{path}: there is no sample in {len(shards)} shards")
    class_names = names_of_classes(first, str(path))
    number = {name: index for index, name in enumerate(class_names)}
    parts: dict[Part, PictureSet] = {
        part or "train": ShardPictures(samples, np.array([number[sample.label] for sample in samples], np.int64))
        for part, samples in found.items()
    }
    return ImageDataset(str(path), class_names, division.apply(parts, origin=str(path), has_parts=None not in found))


def _part(shard: Path, root: Path) -> Part | None:
    """By the words of its name, and by its folder where that is one of the data set's."""
    words = re.split(r"[^a-z]+", shard.stem.lower())
    if shard.parent != root:
        words.append(shard.parent.name.lower())
    return next((PART_OF[word] for word in words if word in PART_OF), None)


def _samples(shard: Path) -> Iterator[ShardSample]:
    """The samples of a shard, in its order."""
    members: dict[str, dict[str, Member]] = {}
    for member in tar_members(shard):
        key, suffix = _key(member.name)
        if suffix in members.setdefault(key, {}):
            raise DataError(f"{shard}: {member.name!r} is there twice")
        members[key][suffix] = member
    try:
        with shard.open("rb") as file:
            for fields in members.values():
                if sample := _sample(shard, file, fields):
                    yield sample
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror}") from None


def _key(name: str) -> tuple[str, str]:
    """WebDataset's naming: the key ends, and the suffix begins, at the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    key, dot, suffix = base.partition(".")
    return f"{folder}/{key}", f"{dot}{suffix}".lower()


def _sample(shard: Path, file: BinaryIO, fields: Mapping[str, Member]) -> ShardSample | None:
    """The sample of the members of one key, by suffix; None where they have neither picture nor label."""
    pictures = [member for suffix, member in fields.items() if suffix in _PICTURES]
    if len(pictures) > 1:
        raise DataError(f"{shard}: {pictures[0].name!r} and {pictures[1].name!r} are two pictures of one sample")
    if not pictures:
        # Beside a picture, 0001.seg.png is another field; alone it is a picture whose name has a dot too many.
        wrong = next((m for s, m in fields.items() if PurePosixPath(s).suffix in _PICTURES or s == ".cls"), None)
        if wrong is not None:
            raise DataError(f"{shard}: {wrong.name!r} belongs to no picture (keys end at the first dot of a name)")
        return None
    label = group = None
    if ".json" in fields:
        label, group = _from_json(shard, file, fields[".json"])
    if ".cls" in fields:
        label = _text(shard, file, fields[".cls"]).strip()
    elif label is None and ".txt" in fields:
        label = _text(shard, file, fields[".txt"]).strip()
    if not label:
        raise DataError(f"{shard}: {pictures[0].name!r} has no label (a .cls, .txt or .json of the same name)")
    return ShardSample(shard, pictures[0], label, group)


def _from_json(shard: Path, file: BinaryIO, member: Member) -> tuple[str | None, str | None]:
    """Label and group; None where the object says nothing of them."""
    try:
        fields = json.loads(_text(shard, file, member))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}: {member.name!r} is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DataError(f"{shard}: {member.name!r} is no JSON object")
    found = [next((fields[key] for key in keys if key in fields), None) for keys in (_LABEL_KEYS, _GROUP_KEYS)]
    if any(isinstance(value, bool) or not isinstance(value, (str, int, type(None))) for value in found):
        raise DataError(f"{shard}: {member.name!r}: a label or group is neither text nor a whole number")
    label, group = ("" if value is None else str(value).strip() for value in found)
    return label or None, group or None


def _text(shard: Path, file: BinaryIO, member: Member) -> str:
    if member.size > _LARGEST_LABEL:
        raise DataError(f"{shard}: {member.name!r} has {member.size} bytes; labels have up to {_LARGEST_LABEL}")
    try:
        return member.read(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{shard}: {member.name!r} is not UTF-8") from None
