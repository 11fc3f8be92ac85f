"""Tables in Parquet: the same data set as from CSV, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_toys import names, write_csv
from PIL import Image

from edgemamba.runtime.errors import DataError
from edgemamba.train.data import open_dataset

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def columns(tmp_path: Path) -> dict[str, list[Any]]:
    for index in range(12):
        Image.new("L", (4, 4), index).save(tmp_path / f"{index}.png")
    return {
        "path": [f"{index}.png" for index in range(12)],
        "label": [index % 2 for index in range(12)],
        "patient": [f"SECRET{index // 2}" for index in range(12)],
    }


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".PQ"])
def test_the_same_as_from_csv(tmp_path: Path, columns: dict[str, list[Any]], suffix: str) -> None:
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    one = open_dataset(write_csv(tmp_path / "table.csv", rows), val_fraction=0.3)
    two = open_dataset(write(tmp_path / f"table{suffix}", columns), val_fraction=0.3)
    assert two.class_names == one.class_names == ("0", "1")
    for part in ("train", "val"):
        assert names(two.parts[part]) == names(one.parts[part])
        assert two.parts[part].labels.tolist() == one.parts[part].labels.tolist()
        assert two.parts[part].groups == one.parts[part].groups
        assert np.array_equal(two.parts[part].read(0), one.parts[part].read(0))


def test_what_pandas_writes(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    """Categories, nulls, and a column of whole numbers that became floats because of its gaps."""
    columns |= {
        "Label": pa.array(["no", "yes"] * 6).dictionary_encode(),
        "split": ["train"] * 6 + ["val"] * 6,
        "frame": [0.0, float("nan"), None] * 4,
    }
    del columns["label"]
    data = open_dataset(write(tmp_path / "table.parquet", columns))
    assert data.class_names == ("no", "yes")
    assert data.counts() == {"train": [3, 3], "val": [3, 3]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "no column 'label'; it has: path, patient"),
        ({"pateint": [""] * 12}, "'pateint' that is not known"),
        ({"label": [-1] + [0, 1] * 5 + [0]}, "row 1: label is '-1'"),
        ({"label": [0.5] + [0, 1] * 5 + [0]}, "row 1: label is '0.5'"),
        ({"label": [5] + [0, 1] * 5 + [0]}, "labels go up to 5 and there is none of label 2"),
        ({"label": [None] + [0, 1] * 5 + [0]}, "row 1: label is empty"),
        ({"label": [[0]] * 12}, "column 'label' is list"),
        ({"path": ["gone.png"] + [f"{i}.png" for i in range(1, 12)]}, "row 1: .*gone.png does not exist"),
        ({"path": ["1.png", "./1.png"] + [f"{i}.png" for i in range(2, 12)]}, "row 1 and row 2 name the same picture"),
        ({"split": ["train", "val"] * 6}, "row 1 and row 2 are of one patient"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: dict[str, list[Any]], changes: dict[str, Any], message: str) -> None:
    columns = {name: values for name, values in (columns | changes).items() if values is not None}
    path = write(tmp_path / "table.parquet", columns)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(path)
    assert "SECRET" not in str(error.value)


def test_files_that_are_no_parquet(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    path = write(tmp_path / "table.parquet", columns)
    whole = path.read_bytes()
    for content in (b"", b"path,label\n", whole[: len(whole) // 2], b"PAR1" + b"\xff" * 60 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            open_dataset(path)


def test_rows_are_bounded(tmp_path: Path, columns: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemamba.train.data.table.MOST_ROWS", 11)
    with pytest.raises(DataError, match="12 rows; up to 11 are read"):
        open_dataset(write(tmp_path / "table.parquet", columns))
