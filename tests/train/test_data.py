"""Data sets: what is recognised, how it is split, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_toys import write_csv, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from training_toys import stripes, write_npz

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.train.data import ArrayPictures, FilePictures, Sample, open_dataset
from edgemamba.train.data.pictures import pixel_type
from edgemamba.train.data.split import spread


def ct(name: str = "CT_small.dcm") -> Path:
    return Path(str(get_testdata_file(name, download=False)))


# Folder trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_tree_with_parts(tmp_path: Path, val: str) -> None:
    counts = {"train/cat": 3, "train/dog": 2, f"{val}/cat": 1, f"{val}/dog": 2, "test/dog": 1}
    data = open_dataset(write_tree(tmp_path, counts))
    assert data.class_names == ("cat", "dog")
    assert data.counts() == {"train": [3, 2], "val": [1, 2], "test": [0, 1]}
    assert data.train.read(0).shape == (12, 10, 3)
    assert data.train.read(0).dtype == np.uint8


def test_tree_without_parts_is_split_by_seed(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat": 10, "dog": 20})
    first, again, other = (open_dataset(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first.counts() == {"train": [8, 16], "val": [2, 4]}
    names = [{data.val.name(i) for i in range(len(data.val))} for data in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert not names[0] & {first.train.name(i) for i in range(len(first.train))}


def test_natural_order_of_pictures(tmp_path: Path) -> None:
    data = open_dataset(write_tree(tmp_path, {"train/a": 12, "train/b": 1, "val/a": 1, "val/b": 1}))
    assert [Path(data.train.name(i)).stem for i in (2, 10)] == ["2", "10"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 2, "train/b": 0, "val/a": 1}, r"train/b has no picture"),
        ({"train/a": 2, "train/b": 2}, r"no validation part.*--val-fraction"),
        ({"train/a": 2, "train/b": 2, "val/c": 1}, r"val/c is a class that the training part does not have"),
        ({"a": 5}, r"only one class"),
        ({"val/a": 1, "val/b": 1}, r"no train folder"),
        ({"val/a": 1, "valid/a": 1, "train/a": 1}, r"two val parts"),
        ({"a": 1, "b": 1}, r"too few pictures"),
    ],
)
def test_bad_trees(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    write_tree(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_training_part_is_split_when_asked(tmp_path: Path) -> None:
    data = open_dataset(write_tree(tmp_path, {"train/a": 4, "train/b": 4}), val_fraction=0.5)
    assert data.counts() == {"train": [2, 2], "val": [2, 2]}


@pytest.mark.parametrize("name", ["nothing", "file.txt"])
def test_paths_that_are_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(DataError, match=name):
        open_dataset(tmp_path / name)
    with pytest.raises(DataError, match="no folder of a class"):
        open_dataset(tmp_path)


# MedMNIST --------------------------------------------------------------------------------------------------------------


def test_npz(tmp_path: Path) -> None:
    data = open_dataset(write_npz(tmp_path / "x.npz", test=6))
    assert data.class_names == ("0", "1", "2")
    assert data.counts() == {"train": [8, 8, 8], "val": [4, 4, 4], "test": [2, 2, 2]}
    assert data.val.read(3).shape == (32, 32, 3)


def test_npz_grey_with_names(tmp_path: Path) -> None:
    images, labels = stripes(12, 0)
    path = tmp_path / "grey.npz"
    np.savez(path, train_images=images[..., 0], train_labels=labels, class_names=np.array(["a", "b", "c"]))
    data = open_dataset(path, val_fraction=0.25)
    assert data.class_names == ("a", "b", "c")
    assert data.train.read(0).shape == (32, 32, 1)
    assert data.counts() == {"train": [3, 3, 3], "val": [1, 1, 1]}


IMAGES, LABELS = stripes(6, 0)
GOOD = {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES, "val_labels": LABELS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "several labels"),
        ({"train_labels": LABELS[:5]}, "5 for 6 images"),
        ({"train_labels": LABELS - 1}, "label -1"),
        ({"train_labels": LABELS.astype(float)}, "float64"),
        ({"val_labels": LABELS + 1}, "label 3 and the classes are 0 to 2"),
        ({"class_names": np.array(["a", "b"])}, "label 2 and the classes are 0 to 1"),
        ({"class_names": np.array([1, 2, 3])}, "list of strings"),
        ({"train_images": IMAGES.astype(np.float32)}, "float32"),
        ({"train_images": np.zeros((6, 8, 8, 8), np.uint8)}, r"\(6, 8, 8, 8\)"),
        ({"train_labels": LABELS * 0, "val_labels": LABELS * 0}, "only one class"),
        ({"train_labels": np.where(LABELS == 1, 2, LABELS)}, "no training picture of class 1"),
        ({"train_labels": None}, "no train_labels"),
        ({"train_images": None}, "no array train_images"),
        ({"train_images": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
        ({"val_images": IMAGES[:0], "val_labels": LABELS[:0]}, "the val part is empty"),
    ],
)
def test_bad_npz(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **{name: value for name, value in (GOOD | changes).items() if value is not None})
    with pytest.raises(DataError, match=message):
        open_dataset(path)


def test_broken_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz")
    whole = path.read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as"):
            open_dataset(path)


# Tables ----------------------------------------------------------------------------------------------------------------


def test_table_of_dicom_frames(tmp_path: Path) -> None:
    cine = ct("examples_ybr_color.dcm")
    (tmp_path / "one.dcm").write_bytes(ct().read_bytes())
    rows = [
        {"path": "one.dcm", "label": "ct", "split": "train", "frame": ""},
        {"path": str(cine), "label": "us", "split": "train", "frame": 0},
        {"path": str(cine), "label": "us", "split": "val", "frame": 29},
        {"path": "one.dcm", "label": "ct", "split": "validation", "frame": 0},
    ]
    data = open_dataset(write_csv(tmp_path / "table.csv", rows))
    assert data.class_names == ("ct", "us")
    assert data.counts() == {"train": [1, 1], "val": [1, 1]}
    assert data.train.read(0).dtype == np.uint16
    assert data.train.read(1).dtype == np.uint8
    assert not np.array_equal(data.train.read(1), data.val.read(0))
    assert pixel_type(data.train) == "uint16"


def test_twelve_bits_reach_the_tensor(tmp_path: Path) -> None:
    """More grey levels than 8 bits have, in the evaluation and in the training transform."""
    from edgemamba.runtime.preprocessing import Preprocessing
    from edgemamba.train.data.transforms import Augmentation, evaluation_transform, training_transform

    pixels = FilePictures([Sample(ct(), 0)]).read(0)
    levels = len(np.unique(pixels))
    assert levels > 256
    recipe = Preprocessing(size=(128, 128), resize="squash", dtype="uint16")
    assert len(np.unique(evaluation_transform(recipe)(pixels)[0])) == levels
    trained = training_transform(recipe, Augmentation(crop_scale=0.99, color_jitter=0, hflip=0))(pixels)
    assert trained.shape == (3, 128, 128)
    assert len(np.unique(trained[0].numpy())) > 256


def test_table_keeps_patients_together(tmp_path: Path) -> None:
    rows = []
    for index in range(40):
        Image.new("L", (4, 4)).save(tmp_path / f"{index}.png")
        rows.append({"path": f"{index}.png", "label": "ab"[index % 2], "patient": f"P{index // 4}"})
    data = open_dataset(write_csv(tmp_path / "table.csv", rows), val_fraction=0.3)
    patients = [{int(Path(part.name(i)).stem) // 4 for i in range(len(part))} for part in (data.train, data.val)]
    assert not patients[0] & patients[1]
    assert data.counts() == {"train": [14, 14], "val": [6, 6]}


def table_rows(tmp_path: Path) -> list[dict[str, Any]]:
    for index in range(4):
        Image.new("L", (4, 4)).save(tmp_path / f"{index}.png")
    return [
        {
            "path": f"{index}.png",
            "label": index % 2,
            "split": "train" if index < 2 else "val",
            "patient": f"SECRET{index}",
        }
        for index in range(4)
    ]


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (1, {"path": "gone.png"}, "line 3: .*gone.png does not exist"),
        (1, {"label": ""}, "line 3: label is empty"),
        (1, {"label": "-1"}, "line 3: label is '-1'"),
        (1, {"label": "3"}, "there is none of label"),
        (2, {"split": "tarin"}, "line 4: split is 'tarin'"),
        (2, {"patient": "SECRET0"}, "line 2 and line 4 are of one patient"),
        (2, {"split": "", "patient": "SECRET3"}, "different parts"),
    ],
)
def test_bad_rows(tmp_path: Path, row: int, changes: dict[str, Any], message: str) -> None:
    rows = table_rows(tmp_path)
    rows[row] |= changes
    with pytest.raises(DataError, match=message) as error:
        open_dataset(write_csv(tmp_path / "table.csv", rows))
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "no rows"),
        ("file,label\nx,y\n", "no column 'path'; it has: file, label"),
        ("path,label,pateint\nx,y,z\n", "'pateint' that is not known"),
        ("path,label,patient,group\nx,y,z,w\n", "both a patient and a group"),
        ("path,label\n0.png,a,b\n", "line 2: more cells"),
        ("path,label,frame\n0.png,a,-1\n", "frame is '-1'"),
        ("path,label\n\xff", "UTF-8"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    table_rows(tmp_path)
    table = tmp_path / "table.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        open_dataset(table)


def test_missing_frame_is_unreadable(tmp_path: Path) -> None:
    assert dcmread(ct()).get("NumberOfFrames") is None
    with pytest.raises(SourceError, match="no frame 1"):
        FilePictures([Sample(ct(), 0, frame=1)]).read(0)


def test_pixel_type_of_arrays() -> None:
    labels = np.zeros(3, np.int64)
    for dtype in ("uint8", "uint16"):
        assert pixel_type(ArrayPictures(np.zeros((3, 4, 4), dtype), labels, "x")) == dtype


# Splits ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_spread(rows: list[tuple[int, int]], fraction: float, seed: int) -> None:
    labels = [label for label, _ in rows]
    groups = [f"g{group}" for _, group in rows]
    held_out = spread(labels, groups, fraction, seed)
    assert held_out == spread(labels, groups, fraction, seed)
    sides: dict[str, set[bool]] = {}
    for group, out in zip(groups, held_out, strict=True):
        sides.setdefault(group, set()).add(out)
    assert all(len(side) == 1 for side in sides.values())
    # No class is held out whole.
    assert {label for label, out in zip(labels, held_out, strict=True) if not out} == set(labels)
    alone = spread(labels, None, fraction, seed)
    total, out_count = Counter(labels), Counter(label for label, out in zip(labels, alone, strict=True) if out)
    for label, count in total.items():
        wanted = max(1, round(fraction * count)) if count > 1 else 0
        assert out_count[label] == min(wanted, count - 1)
