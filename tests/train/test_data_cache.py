"""The cache of decoded pictures: the same pixels, bounded, shared, and indifferent to damage."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file
from training_toys import tiny, write_npz

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.train.data import ImageDataset, PictureSet, open_dataset
from edgemamba.train.data.cache import PictureCache, cached
from edgemamba.train.data.loading import EvaluationItems
from edgemamba.train.training import train


def quiet(line: str) -> None:
    assert line.startswith("cache: ")


@pytest.fixture
def data(tmp_path: Path) -> ImageDataset:
    """JPEG, 8- and 16-bit PNG, float TIFF and DICOM, of several sizes."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "1.jpg"), rng.integers(0, 255, (40, 30, 3), np.uint8))
            cv2.imwrite(str(folder / "2.png"), rng.integers(0, 255, (20, 50), np.uint8))
            cv2.imwrite(str(folder / "3.png"), rng.integers(0, 65535, (20, 50), np.uint16))
            cv2.imwrite(str(folder / "4.tif"), rng.random((9, 9)).astype(np.float32))
            for file in ("CT_small.dcm", "examples_ybr_color.dcm"):
                (folder / file).write_bytes(Path(str(get_testdata_file(file, download=False))).read_bytes())
    return open_dataset(tmp_path / "data")


def same_pixels(one: PictureSet, two: PictureSet) -> bool:
    pairs = [(one.read(index), two.read(index)) for index in range(len(one))]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("where", ["ram", "folder"])
def test_no_pixel_changes(data: ImageDataset, tmp_path: Path, where: str) -> None:
    kept = cached(data, "RAM" if where == "ram" else str(tmp_path / "new" / "cache"), 1.0, quiet)
    assert kept.counts() == data.counts()
    for part in ("train", "val"):
        plain, twice = data.parts[part], kept.parts[part]
        assert same_pixels(plain, twice)
        assert same_pixels(plain, twice)
        assert [twice.name(i) for i in range(len(plain))] == [plain.name(i) for i in range(len(plain))]


def folder_of(dataset: ImageDataset) -> Path:
    cache: PictureCache = dataset.train.cache  # type: ignore[attr-defined]
    return cache.folder


def test_second_reading_decodes_nothing(data: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a later run, and in another division of the set."""
    kept = cached(data, str(tmp_path / "cache"), 1.0, quiet)
    pixels = [kept.train.read(index) for index in range(len(kept.train))]
    monkeypatch.setattr("edgemamba.train.data.pictures.read_file", None)
    again = cached(data, str(tmp_path / "cache"), 1.0, quiet)
    assert all(np.array_equal(again.train.read(index), was) for index, was in enumerate(pixels))
    with pytest.raises(TypeError):
        again.val.read(0)


def test_a_changed_file_is_read_anew(data: ImageDataset, tmp_path: Path) -> None:
    kept = cached(data, str(tmp_path / "cache"), 1.0, quiet)
    before = kept.train.read(0)
    path = Path(kept.train.name(0))
    cv2.imwrite(str(path), 255 - before)
    os.utime(path, ns=(1, 1))
    assert np.array_equal(kept.train.read(0), data.train.read(0))
    assert not np.array_equal(kept.train.read(0), before)


def test_unreadable_pictures_stay_unreadable(data: ImageDataset, tmp_path: Path) -> None:
    kept = cached(data, str(tmp_path / "cache"), 1.0, quiet)
    Path(kept.train.name(0)).write_bytes(b"")
    Path(kept.train.name(1)).unlink()
    for index in (0, 0, 1, 1):
        with pytest.raises(SourceError, match=r"\.(jpg|png|dcm)"):
            kept.train.read(index)


def test_damage_is_noticed(data: ImageDataset, tmp_path: Path) -> None:
    kept = cached(data, str(tmp_path / "cache"), 1.0, quiet)
    assert same_pixels(data.train, kept.train)
    files = sorted(folder_of(kept).glob("??/*.npy"))
    assert files
    rng = np.random.default_rng(0)
    for file in files:
        content = bytearray(file.read_bytes())
        content[int(rng.integers(len(content)))] ^= 0x10
        file.write_bytes(rng.choice([bytes(content), bytes(content[:50]), b"", b"\0" * len(content)]))
    assert same_pixels(data.train, kept.train)
    assert same_pixels(data.train, kept.train)


def test_it_is_bounded(data: ImageDataset, tmp_path: Path) -> None:
    kept = cached(data, str(tmp_path / "cache"), 12e3 / 1e9, quiet)
    for _ in range(2):
        assert same_pixels(data.train, kept.train)
    size = sum(file.stat().st_size for file in folder_of(kept).glob("??/*"))
    assert 3000 < size <= 12e3
    assert size == kept.train.cache.used  # type: ignore[attr-defined]
    # A later run counts what is there.
    assert PictureCache(folder_of(kept), 1 << 30).used == size


def _fill(folder: str, start: int) -> None:
    cache = PictureCache.__new__(PictureCache)
    cache.__dict__ |= {"folder": Path(folder), "limit": 200_000, "_salt": ""}
    for index in range(start, start + 100):
        cache.read(f"{index}", lambda: np.zeros((20, 50, 1), np.uint8))


def test_processes_share_the_bound(tmp_path: Path) -> None:
    """Three processes with 300 pictures of about 1.1 kB want 340 kB of the 200 kB that there are."""
    folder = tmp_path / "cache"
    cache = PictureCache(folder, 200_000)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(str(folder), 100 * number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    size = sum(file.stat().st_size for file in folder.glob("??/*.npy"))
    assert size == cache.used
    assert 198_000 < size <= 200_000


def test_a_cache_that_vanishes_only_costs_time(data: ImageDataset, tmp_path: Path) -> None:
    import shutil

    kept = cached(data, str(tmp_path / "cache"), 1.0, quiet)
    shutil.rmtree(folder_of(kept))
    assert same_pixels(data.train, kept.train)


def test_memory_is_given_back(data: ImageDataset) -> None:
    kept = cached(data, "ram", 1.0, quiet)
    folder = folder_of(kept)
    loader = torch.utils.data.DataLoader(
        EvaluationItems(kept.train, lambda pixels: torch.zeros(3, 1, 1)), num_workers=2, collate_fn=list
    )
    assert len(list(loader)) == len(kept.train)
    assert len(list(folder.glob("??/*.npy"))) == len(kept.train)
    leftover = folder.with_name("edgemamba-cache-999999999-dead")
    leftover.mkdir()
    other = cached(data, "ram", 1.0, quiet)
    assert folder_of(other) != folder
    assert not leftover.exists()
    assert folder.is_dir()
    del kept, loader
    assert not folder.exists()


def test_a_cache_that_cannot_be(data: ImageDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--cache .*file/x cannot be written"):
        cached(data, str(tmp_path / "file" / "x"), 1.0, quiet)


def test_runs_with_and_without_are_the_same(data: ImageDataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 4}
    plain = train(tiny(Path(data.origin), tmp_path / "plain", **options))
    kept = train(tiny(Path(data.origin), tmp_path / "kept", **options, workers=1, cache=str(tmp_path / "cache")))
    assert plain is not None
    assert kept is not None
    assert len(list((tmp_path / "cache").glob("??/*.npy"))) == 24
    for one, two in zip(plain.history, kept.history, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-6)


def test_arrays_are_not_cached(tmp_path: Path) -> None:
    kept = cached(open_dataset(write_npz(tmp_path / "x.npz")), str(tmp_path / "cache"), 1.0, quiet)
    kept.train.read(0)
    assert not list((tmp_path / "cache").glob("??"))
