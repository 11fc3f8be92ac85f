"""Data sets that are tables: a CSV or Parquet file that names pictures (DICOM or other) and their labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgemamba.runtime.errors import DataError
from edgemamba.runtime.extras import require
from edgemamba.train.data.dataset import PART_OF, ImageDataset, Part
from edgemamba.train.data.division import Division
from edgemamba.train.data.pictures import FilePictures, Sample

REQUIRED = ("path", "label")
GROUPS = ("patient", "group")
COLUMNS = (*REQUIRED, "split", *GROUPS, "frame")
#: Rows of a Parquet file, whose header may promise any number of them in a few bytes.
MOST_ROWS = 50_000_000


@dataclass(frozen=True)
class _Row:
    place: str  # what messages call it: "line 3"
    path: Path
    label: str
    part: Part | None
    group: str | None
    frame: int


def open_table(table: Path, division: Division = Division()) -> ImageDataset:
    """Open a CSV or Parquet file with the columns ``path,label[,split][,patient or group][,frame]``.

    ``path`` is relative to the table. ``label`` is a class's name; where every label is a whole number, the classes are
    0 to the largest. ``split`` is train, val or test. Pictures of one ``patient`` (or ``group``) never lie in two
    parts. ``frame`` counts from 0 in files of several frames; where it is left out, the first frame is taken. Any other
    column is refused, because a misspelt ``patient`` would let patients leak between the parts unseen.

    Raises:
        DataError: the file is neither, a column is missing or unknown, a file does not exist, a label or split is not
            valid, a picture has two labels, or a group lies in two parts. Messages name lines of the table, never the
            patient.
        MissingExtraError: it is a Parquet file, and pyarrow is not installed.
    """
    rows = [_row(table, place, cells) for place, cells in (_parquet if is_parquet(table) else _csv)(table)]
    if not rows:
        raise DataError(f"{table} has no rows")
    class_names = names_of_classes({row.label: f"{table}, {row.place}" for row in reversed(rows)}, str(table))
    _check_files(table, rows)
    _check_labels(table, rows)
    _check_groups(table, rows)
    number = {name: index for index, name in enumerate(class_names)}

    parts: dict[Part, list[_Row]] = {}
    for row in rows:
        parts.setdefault(row.part or "train", []).append(row)
    if "train" not in parts:
        raise DataError(f"{table} has no row whose split is train")
    divided = division.apply(
        {
            part: FilePictures([Sample(row.path, number[row.label], row.frame, row.group) for row in found])
            for part, found in parts.items()
        },
        origin=str(table),
        has_parts=any(row.part for row in rows),
    )
    return ImageDataset(str(table), class_names, divided)


def is_parquet(table: Path) -> bool:
    """By the suffix, as people name such files."""
    return table.suffix.lower() in (".parquet", ".pq")


def _csv(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its cells."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            reader.fieldnames = _header(table, reader.fieldnames or ())
            for fields in reader:
                place = f"line {reader.line_num}"
                # DictReader files surplus cells under None and gives None for absent ones.
                if None in fields:
                    raise DataError(f"{table}, {place}: more cells than columns")
                yield place, {name: value or "" for name, value in fields.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV (UTF-8): {error}") from None


def _parquet(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The same of a Parquet file. Only known columns are read, and only plain values: no extension type is ever revived."""
    arrow = require("pyarrow", purpose="reading Parquet tables")
    parquet = require("pyarrow.parquet", purpose="reading Parquet tables")
    try:
        with parquet.ParquetFile(table) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise DataError(f"{table} says it has {file.metadata.num_rows} rows; up to {MOST_ROWS} are read")
            stored = file.schema_arrow.names
            columns = _header(table, stored)
            for name, kind in zip(columns, file.schema_arrow.types, strict=True):
                if arrow.types.is_nested(kind) or isinstance(kind, arrow.BaseExtensionType):
                    raise DataError(f"{table}: column {name!r} is {kind}; text or numbers are needed")
            row = 0
            for batch in file.iter_batches():
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    row += 1
                    yield f"row {row}", {name: _text(cell) for name, cell in zip(columns, cells, strict=True)}
    except (OSError, arrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as Parquet: {error}") from None


def _text(cell: object) -> str:
    """A cell as CSV would have it: nothing for null, and whole numbers without the ``.0`` that pandas gives to columns with
    gaps."""
    if cell is None or cell != cell:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _header(table: Path, names: Iterable[str]) -> list[str]:
    columns = [name.strip().lower() for name in names]
    for name in REQUIRED:
        if name not in columns:
            raise DataError(f"{table} has no column {name!r}; it has: {', '.join(columns) or 'none'}")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise DataError(f"{table} has a column {unknown[0]!r} that is not known; known are: {', '.join(COLUMNS)}")
    if all(name in columns for name in GROUPS):
        raise DataError(f"{table} has both a patient and a group column; one of them is needed")
    if len(set(columns)) != len(columns):
        raise DataError(f"{table} has two columns of one name")
    return columns


def _row(table: Path, place: str, fields: Mapping[str, str]) -> _Row:
    cells = {name: value.strip() for name, value in fields.items()}
    path, label = cells["path"], cells["label"]
    if not path or not label:
        raise DataError(f"{table}, {place}: {'path' if not path else 'label'} is empty")
    split = cells.get("split", "").lower()
    if split and split not in PART_OF:
        raise DataError(f"{table}, {place}: split is {split!r}; train, val or test is needed")
    frame = cells.get("frame", "") or "0"
    if not frame.isdecimal():
        raise DataError(f"{table}, {place}: frame is {frame!r}; a whole number from 0 is needed")
    group = cells.get("patient", "") or cells.get("group", "")
    return _Row(place, table.parent / path, label, PART_OF.get(split), group or None, int(frame))


def names_of_classes(found: Mapping[str, str], origin: str) -> tuple[str, ...]:
    """The classes that labels written as text mean: numbers from 0 to the largest where all are whole numbers, else names in
    alphabetic order.

    Args:
        found: each label, and where it first stands.
        origin: the data set, for messages.

    Raises:
        DataError: numbers that are negative, fractions, written in another way, or with gaps.
    """
    if not all(map(_is_number, found)):
        return tuple(sorted(found))
    for label, place in found.items():
        if not label.isdecimal() or label != str(int(label)):
            raise DataError(f"{place}: label is {label!r}; classes are named, or numbered 0, 1, 2, ...")
    highest = max(map(int, found))
    if highest >= len(found):
        gap = next(number for number in range(highest) if str(number) not in found)
        raise DataError(
            f"{origin}: labels go up to {highest} and there is none of label {gap}; class numbers have no gaps"
        )
    return tuple(map(str, range(highest + 1)))


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _check_files(table: Path, rows: list[_Row]) -> None:
    missing = [row for row in rows if not row.path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise DataError(f"{table}, {missing[0].place}: {missing[0].path} does not exist{more}")


def _check_labels(table: Path, rows: list[_Row]) -> None:
    """A picture may be named twice (the data sheet tells), but not as two classes."""
    first: dict[tuple[str, int], _Row] = {}
    for row in rows:
        seen = first.setdefault((os.path.normpath(row.path), row.frame), row)
        if seen.label != row.label:
            raise DataError(
                f"{table}: {seen.place} and {row.place} name the same picture with different labels "
                f"({seen.label} and {row.label})"
            )


def _check_groups(table: Path, rows: list[_Row]) -> None:
    """A group in two parts is a leak; a group of which some rows have no split would become one."""
    first: dict[str, _Row] = {}
    for row in rows:
        if row.group is None:
            continue
        seen = first.setdefault(row.group, row)
        if seen.part != row.part:
            raise DataError(
                f"{table}: {seen.place} and {row.place} are of one patient and lie in different parts "
                f"({seen.part or 'none'} and {row.part or 'none'})"
            )
