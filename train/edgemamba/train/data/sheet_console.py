"""The data sheet on a console."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track
from rich.table import Table

from edgemamba.train.data.dataset import ImageDataset
from edgemamba.train.data.sheet import MOST_NAMED, DataSheet, examine
from edgemamba.train.data.unreadable import check_unreadable

# A data set of many classes has its largest and its smallest shown.
_MOST_CLASSES = 24


def check_data(dataset: ImageDataset, console: Console, *, strict: bool = False, listing: bool = False) -> DataSheet:
    """Look at a data set, say what it holds, and refuse what cannot be trained on.

    Args:
        dataset: what to look at.
        console: gets the sheet, and progress where it is a terminal.
        strict: refuse leaks too.
        listing: name every picture that cannot be read; a run names those that it comes upon by itself.

    Raises:
        DataError: more pictures than a run accepts cannot be read; or, if ``strict``, a picture or patient lies in two
            parts.
    """
    sheet = examine(
        dataset,
        track=lambda found, total: track(
            found, "looking at the data", total, console=console, transient=True, disable=not console.is_terminal
        ),
    )
    show(sheet, console)
    for name, reason in sheet.unreadable.items() if listing else ():
        line = f"unreadable: {reason if name in reason else f'{name}: {reason}'}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if strict:
        sheet.refuse_leaks()
    check_unreadable(sheet.unreadable, sheet.pictures)
    return sheet


def show(sheet: DataSheet, console: Console) -> None:
    """Print the sheet: counts, balance, what pictures are like; then, where there is any, trouble."""
    console.print(_table(sheet))
    for line in _lines(sheet):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in sheet.warnings():
        console.print(f"WARNING, data leak: {line}", style="bold red", highlight=False, markup=False, soft_wrap=True)


def _table(sheet: DataSheet) -> Table:
    table = Table("class", *sheet.parts, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    train = sheet.parts["train"].classes
    names = list(train)
    if len(names) > _MOST_CLASSES:
        by_size = sorted(names, key=lambda name: -train[name])
        names = [*by_size[: _MOST_CLASSES // 2], *by_size[-_MOST_CLASSES // 2 :]]
    for place, name in enumerate(names):
        if len(names) < len(train) and place == len(names) // 2:
            table.add_row(f"... {len(train) - len(names)} more", *("" for _ in sheet.parts))
        table.add_row(name, *(str(part.classes[name]) for part in sheet.parts.values()))
    return table


def _lines(sheet: DataSheet) -> Iterable[str]:
    train = sheet.parts["train"]
    share = f"{train.majority:.1%} of the training pictures"
    yield f"balance: the largest class is {share}" + (
        f", {train.imbalance:.1f} times the smallest" if train.imbalance is not None else ""
    )
    if any(part.patients is not None for part in sheet.parts.values()):
        yield "patients: " + ", ".join(f"{part.patients or 0} {name}" for name, part in sheet.parts.items())
    of = "all" if sheet.looked_at == sheet.pictures else f"{sheet.looked_at} of"
    sizes = list(sheet.sizes)
    more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    kinds = [
        f"{' and '.join(sheet.pixel_types)}, {' and '.join(sheet.bits)} bits stored",
        f"{', '.join(sizes[:3])}{more}",
    ]
    yield f"looked at {of} {sheet.pictures} pictures: {'; '.join(kinds)}"
    if any(sheet.repeated.values()):
        yield "the same pixels more than once: " + ", ".join(
            f"{n} in {part}" for part, n in sheet.repeated.items() if n
        )
    if sheet.contradictions:
        yield f"{len(sheet.contradictions)} pictures are there with different labels: " + "; ".join(
            sheet.contradictions[:MOST_NAMED]
        )
    if sheet.unreadable:
        yield f"{len(sheet.unreadable)} pictures cannot be read"
