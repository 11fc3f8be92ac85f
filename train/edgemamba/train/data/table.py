"""Data sets that are tables: a CSV file that names pictures (DICOM or other) and their labels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgemamba.runtime.errors import DataError
from edgemamba.train.data.dataset import PART_OF, ImageDataset, Part
from edgemamba.train.data.division import Division
from edgemamba.train.data.pictures import FilePictures, Sample

REQUIRED = ("path", "label")
GROUPS = ("patient", "group")
COLUMNS = (*REQUIRED, "split", *GROUPS, "frame")


@dataclass(frozen=True)
class _Row:
    line: int
    path: Path
    label: str
    part: Part | None
    group: str | None
    frame: int


def open_table(table: Path, division: Division = Division()) -> ImageDataset:
    """Open a CSV file with the columns ``path,label[,split][,patient or group][,frame]``.

    ``path`` is relative to the table. ``label`` is a class's name; where every label is a whole number, the classes are 0 to
    the largest. ``split`` is train, val or test. Pictures of one ``patient`` (or ``group``) never lie in two parts.
    ``frame`` counts from 0 in files of several frames; where it is left out, the first frame is taken. Any other column is
    refused, because a misspelt ``patient`` would let patients leak between the parts unseen.

    Raises:
        DataError: a column is missing or unknown, a file does not exist, a label or split is not valid, or a group lies in
            two parts. Messages name lines of the table, never the patient.
    """
    rows = _read(table)
    class_names = _class_names(table, rows)
    _check_files(table, rows)
    _check_groups(table, rows)

    parts: dict[Part, list[_Row]] = {}
    for row in rows:
        parts.setdefault(row.part or "train", []).append(row)
    if "train" not in parts:
        raise DataError(f"{table} has no row whose split is train")
    divided = division.apply(
        {
            part: FilePictures([Sample(row.path, class_names.index(row.label), row.frame, row.group) for row in found])
            for part, found in parts.items()
        },
        origin=str(table),
        has_parts=any(row.part for row in rows),
    )
    return ImageDataset(str(table), class_names, divided)


def _read(table: Path) -> list[_Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            reader.fieldnames = _header(table, reader.fieldnames or ())
            rows = [_row(table, reader.line_num, fields) for fields in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV (UTF-8): {error}") from None
    if not rows:
        raise DataError(f"{table} has no rows")
    return rows


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


def _row(table: Path, line: int, fields: Mapping[str | None, str | list[str] | None]) -> _Row:
    # DictReader files surplus cells under None and gives None for absent ones.
    if None in fields:
        raise DataError(f"{table}, line {line}: more cells than columns")
    cells = {name: (value or "").strip() for name, value in fields.items() if isinstance(value, str)}
    path, label = cells.get("path", ""), cells.get("label", "")
    if not path or not label:
        raise DataError(f"{table}, line {line}: {'path' if not path else 'label'} is empty")
    split = cells.get("split", "").lower()
    if split and split not in PART_OF:
        raise DataError(f"{table}, line {line}: split is {split!r}; train, val or test is needed")
    frame = cells.get("frame", "") or "0"
    if not frame.isdecimal():
        raise DataError(f"{table}, line {line}: frame is {frame!r}; a whole number from 0 is needed")
    group = cells.get("patient", "") or cells.get("group", "")
    return _Row(line, table.parent / path, label, PART_OF.get(split), group or None, int(frame))


def _class_names(table: Path, rows: list[_Row]) -> tuple[str, ...]:
    labels = {row.label for row in rows}
    if not all(label.lstrip("-").isdecimal() for label in labels):
        return tuple(sorted(labels))
    for row in rows:
        if row.label.startswith("-") or row.label != str(int(row.label)):
            raise DataError(f"{table}, line {row.line}: label is {row.label!r}; class numbers count from 0")
    highest = max(map(int, labels))
    if highest >= len(labels):
        gap = next(number for number in range(highest) if str(number) not in labels)
        raise DataError(f"{table}: labels go up to {highest} and no row has label {gap}; class numbers have no gaps")
    return tuple(map(str, range(highest + 1)))


def _check_files(table: Path, rows: list[_Row]) -> None:
    missing = [row for row in rows if not row.path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise DataError(f"{table}, line {missing[0].line}: {missing[0].path} does not exist{more}")


def _check_groups(table: Path, rows: list[_Row]) -> None:
    """A group in two parts is a leak; a group of which some rows have no split would become one."""
    first: dict[str, _Row] = {}
    for row in rows:
        if row.group is None:
            continue
        seen = first.setdefault(row.group, row)
        if seen.part != row.part:
            raise DataError(
                f"{table}: lines {seen.line} and {row.line} are of one patient and lie in different parts "
                f"({seen.part or 'none'} and {row.part or 'none'})"
            )
