"""Cross-validation: folds that cover the set once, with classes divided alike and patients kept together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_toys import names, write_csv, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from training_toys import write_npz

from edgemamba.runtime.errors import DataError
from edgemamba.train.data import ImageDataset, open_dataset
from edgemamba.train.data.split import folds


def all_folds(path: Path, count: int, seed: int = 0) -> list[ImageDataset]:
    return [open_dataset(path, fold=(number, count), seed=seed) for number in range(1, count + 1)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=60),
    count=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_folds(rows: list[tuple[int, int | None]], count: int, seed: int) -> None:
    labels = [label for label, _ in rows]
    groups = [None if group is None else f"g{group}" for _, group in rows]
    units = len({group for group in groups if group is not None}) + groups.count(None)
    fold_of = folds(labels, groups, count, seed)
    assert fold_of.tolist() == folds(labels, groups, count, seed).tolist()
    for group in set(groups) - {None}:
        assert len({fold for fold, name in zip(fold_of, groups, strict=True) if name == group}) == 1
    if units >= count:
        assert set(fold_of.tolist()) == set(range(count))
    # Where every picture stands alone, each class is divided to within one picture.
    alone = folds(labels, None, count, seed)
    for label in set(labels):
        sizes = np.bincount(alone[np.array(labels) == label], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(alone, minlength=count)) <= 1


def test_groups_of_unequal_classes_are_balanced() -> None:
    """Sixty patients of one to seven pictures, a fifth of them ill: each of five folds gets about a fifth of both classes."""
    rng = np.random.default_rng(3)
    labels, groups = [], []
    for patient in range(60):
        size = int(rng.integers(1, 8))
        labels += [int(patient % 5 == 0)] * size
        groups += [f"p{patient}"] * size
    fold_of = folds(labels, groups, 5, seed=0)
    for label in (0, 1):
        share = np.bincount(fold_of[np.array(labels) == label], minlength=5) / labels.count(label)
        assert share.min() > 0.15
        assert share.max() < 0.25


def test_folds_of_a_tree(tmp_path: Path) -> None:
    """The training and the validation part are joined; every picture of either validates once; the test part stays."""
    write_tree(tmp_path, {"train/a": 7, "train/b": 3, "val/a": 3, "val/b": 2, "test/a": 1, "test/b": 1})
    whole = open_dataset(tmp_path)
    found = all_folds(tmp_path, 5)
    validated = [name for data in found for name in names(data.val)]
    assert sorted(validated) == sorted(names(whole.train) + names(whole.val))
    for data in found:
        assert not set(names(data.train)) & set(names(data.val))
        assert len(data.train) + len(data.val) == 15
        assert data.counts()["val"] == [2, 1]
        assert data.test is not None
        assert whole.test is not None
        assert names(data.test) == names(whole.test)
    assert names(open_dataset(tmp_path, fold=(2, 5)).val) == names(found[1].val)
    assert names(open_dataset(tmp_path, fold=(2, 5), seed=1).val) != names(found[1].val)


def test_folds_of_an_archive_keep_pixels_labels_and_names(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", train=24, val=12)
    whole = open_dataset(path)
    original = {whole.val.name(i): (whole.val.read(i), whole.val.labels[i]) for i in range(len(whole.val))}
    seen = set()
    for data in all_folds(path, 3):
        assert data.counts() == {"train": [8, 8, 8], "val": [4, 4, 4]}
        for index, name in enumerate(names(data.val)):
            seen.add(name)
            if name in original:
                assert np.array_equal(data.val.read(index), original[name][0])
                assert data.val.labels[index] == original[name][1]
    assert len(seen) == 36
    assert set(original) < seen


def patients_table(folder: Path, patients: int) -> Path:
    rows = []
    for index in range(3 * patients):
        (folder / f"{index}.png").write_bytes(b"never read here")
        rows.append({"path": f"{index}.png", "label": "ab"[index // 3 % 2], "patient": f"P{index // 3}"})
    return write_csv(folder / "table.csv", rows)


def test_folds_keep_patients_together(tmp_path: Path) -> None:
    for data in all_folds(patients_table(tmp_path, 10), 5):
        sides = [{int(Path(name).stem) // 3 for name in names(part)} for part in (data.train, data.val)]
        assert not sides[0] & sides[1]
        assert data.counts() == {"train": [12, 12], "val": [3, 3]}
        assert data.val.groups is not None
        assert set(data.val.groups) == {f"P{patient}" for patient in sides[1]}


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ((0, 5), r"--fold is 0/5; .*k from 1 to K"),
        ((6, 5), r"--fold is 6/5"),
        ((1, 1), r"--fold is 1/1; .*at least 2"),
        ((1, 5), r"has 4 patients .*cannot be divided into 5 folds"),
    ],
)
def test_folds_that_cannot_be(tmp_path: Path, fold: tuple[int, int], message: str) -> None:
    table = patients_table(tmp_path, 4)
    with pytest.raises(DataError, match=message):
        open_dataset(table, fold=fold)


def test_other_folds_that_cannot_be(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 3, "b": 1})
    with pytest.raises(DataError, match=r"has 4 pictures .*cannot be divided into 5 folds"):
        open_dataset(tmp_path, fold=(1, 5))
    with pytest.raises(DataError, match="--fold and --val-fraction"):
        open_dataset(tmp_path, fold=(1, 2), val_fraction=0.2)


def test_a_class_of_one_picture_cannot_be_folded(tmp_path: Path) -> None:
    """Its picture validates in one of the folds, and is then not there to train on."""
    write_tree(tmp_path, {"a": 3, "b": 1})
    with pytest.raises(DataError, match="no training picture of class b"):
        all_folds(tmp_path, 2)
