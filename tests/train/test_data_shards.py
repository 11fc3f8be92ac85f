"""WebDataset shards: read at random like files, and hostile tars refused by name."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_toys import names, write_tree
from pydicom.data import get_testdata_file
from training_toys import tiny

from edgemamba.runtime.errors import DataError, SourceError
from edgemamba.train.data import open_dataset, tar_index
from edgemamba.train.data.cache import cached
from edgemamba.train.training import train


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))


def png(value: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((6, 5), value, np.uint8))[1])


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(start: int, count: int, **more: Any) -> dict[str, bytes]:
    """Pictures of one value each, whose class is its remainder by 2."""
    members = {}
    for index in range(start, start + count):
        members[f"{index:06}.png"] = png(index)
        members[f"{index:06}.cls"] = f"{index % 2}\n".encode()
        members |= {f"{index:06}.{name}": str(value).encode() for name, value in more.items()}
    return members


def write_shards(folder: Path, prefix: str = "shards-", count: int = 3, each: int = 8) -> Path:
    for shard in range(count):
        write_tar(folder / f"{prefix}{shard:03}.tar", samples(each * shard, each))
    return folder


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_pixels_labels_and_names(tmp_path: Path, format: int) -> None:
    long = "a folder whose name is long " * 3
    write_tar(
        tmp_path / "train-0.tar", samples(0, 8, txt="a caption") | {"README": b"x", f"{long}/9.tif.bak": b""}, format
    )
    write_tar(tmp_path / "val-0.tar", samples(8, 4), format)
    data = open_dataset(tmp_path)
    assert data.class_names == ("0", "1")
    assert data.counts() == {"train": [4, 4], "val": [2, 2]}
    for part in data.parts.values():
        for index, name in enumerate(names(part)):
            assert (part.read(index) == int(name[-10:-4])).all()
            assert part.read(index).shape == (6, 5, 3)
    assert names(data.val)[0] == str(tmp_path / "val-0.tar" / "000008.png")


@pytest.mark.parametrize(
    "where", ["", "shards-{000..002}.tar", "shards-{00..02}.tar", "shards-000.tar", "shards-{002..001}.tar", "gone.tar"]
)
def test_what_names_shards(tmp_path: Path, where: str) -> None:
    write_shards(tmp_path)
    if where in ("", "shards-{000..002}.tar", "shards-000.tar"):
        data = open_dataset(tmp_path / where)
        count = 8 if where == "shards-000.tar" else 24
        assert len(data.train) + len(data.val) == count
        assert data.counts()["val"] == ([1, 1] if count == 8 else [2, 2])
        return
    with pytest.raises(
        DataError, match=r"shards-00.tar does not exist; .*3 are missing|no range|gone.tar cannot be read"
    ):
        open_dataset(tmp_path / where)


def test_folders_of_parts(tmp_path: Path) -> None:
    write_shards(tmp_path / "a" / "training")
    write_shards(tmp_path / "a" / "validation", count=1)
    assert open_dataset(tmp_path / "a").counts() == {"train": [12, 12], "val": [4, 4]}
    with pytest.raises(DataError, match="no shard for training"):
        open_dataset(write_shards(tmp_path / "b", "val-"))
    write_tar(tmp_path / "a" / "loose.tar", samples(0, 2))
    with pytest.raises(DataError, match=r"loose\.tar is not \(train, val or test\)"):
        open_dataset(tmp_path / "a")


def test_a_tree_with_an_archive_in_it_is_a_tree(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    write_tar(tmp_path / "train" / "backup.tar", samples(0, 2))
    write_tar(tmp_path / "backup.tar", samples(0, 2))
    assert open_dataset(tmp_path).counts() == {"train": [2, 2], "val": [1, 1]}


def test_labels_in_json_dicom_and_patients(tmp_path: Path) -> None:
    ct = Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes()
    members = {}
    for index in range(12):
        members[f"x/{index}.DCM"] = ct
        fields = {"label": ["ill", "well"][index % 2], "patient": index // 2, "age": 1}
        members[f"x/{index}.json"] = json.dumps(fields).encode()
    data = open_dataset(write_tar(tmp_path / "all.tar", members), fold=(1, 3))
    assert data.class_names == ("ill", "well")
    assert data.train.read(0).dtype == np.uint16
    assert data.train.groups is not None
    assert data.val.groups is not None
    assert not set(data.train.groups) & set(data.val.groups)
    assert data.counts() == {"train": [4, 4], "val": [2, 2]}


def test_the_index_is_kept_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "all.tar", samples(0, 10))
    data = open_dataset(shard)
    kept = list((tmp_path / "user cache").rglob("*.json"))
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_walk", None)
        assert names(open_dataset(shard).train) == names(data.train)
    good = kept[0].read_text()
    for content in ("", "[]", "{}", good.replace('"version": 1', '"version": 0'), good.replace("512", "1e99"), "\xff"):
        kept[0].write_text(content, encoding="latin-1")
        assert names(open_dataset(shard).train) == names(data.train)
        assert kept[0].read_text() == good
    write_tar(shard, samples(0, 12))
    assert len(open_dataset(shard).train) == 10
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert len(open_dataset(shard).train) == 10


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "all.tar", samples(0, 10) | {"000003.png": b"junk", "000004.png": b""})
    data = open_dataset(shard, val_fraction=0.2)
    parts = [(part, index) for part in data.parts.values() for index in range(len(part))]
    for part, index in parts:
        if "000003" in part.name(index) or "000004" in part.name(index):
            with pytest.raises(SourceError, match=r"all\.tar/00000[34]\.png") as error:
                part.read(index)
            assert "/tmp/tmp" not in str(error.value)
    os.truncate(shard, 700)
    with pytest.raises(SourceError, match=r"all\.tar/00000"):
        data.train.read(7)
    shard.unlink()
    with pytest.raises(SourceError, match=r"all\.tar/00000\d\.png cannot be read"):
        data.train.read(0)


def test_training_and_cache(tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    kept = cached(data, str(tmp_path / "cache"), 1.0, lambda line: None)
    for _ in range(2):
        assert all(np.array_equal(kept.train.read(i), data.train.read(i)) for i in range(len(data.train)))
    result = train(tiny(tmp_path / "data", tmp_path / "run", epochs=1, workers=1))
    assert result is not None
    assert result.val.count == 4


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "no sample"),
        ({"README": b""}, "no sample"),
        ({"0.png": b""}, r"'0\.png' has no label"),
        ({"0.cls": b"1"}, r"'0\.cls' belongs to no picture"),
        ({"a.b.png": b"", "a.b.cls": b"0"}, r"'a\.b\.png' belongs to no picture \(keys end at the first dot"),
        ({"0.png": b"", "0.jpg": b"", "0.cls": b"0"}, "two pictures of one sample"),
        ({"0.png": b"", "0.cls": b" "}, "has no label"),
        ({"0.png": b"", "0.cls": b"\xff\xfe"}, r"'0\.cls' is not UTF-8"),
        ({"0.png": b"", "0.cls": b"0" * ((1 << 20) + 1)}, r"'0\.cls' has 1048577 bytes"),
        ({"0.png": b"", "0.json": b"{"}, r"'0\.json' is no JSON"),
        ({"0.png": b"", "0.json": b"[" * 100_000}, r"'0\.json' is no JSON"),
        ({"0.png": b"", "0.json": b"[]"}, r"'0\.json' is no JSON object"),
        ({"0.png": b"", "0.json": b'{"age": 3}'}, "has no label"),
        ({"0.png": b"", "0.json": b'{"label": [1]}'}, "neither text nor a whole number"),
        ({"0.png": b"", "0.cls": b"-1"}, r"all\.tar/0\.png: label is '-1'"),
        (samples(0, 4) | {"9.png": b"", "9.cls": b"7"}, "labels go up to 7 and there is none of label 2"),
        ({"0.png": b"", "0.cls": b"0", "1.png": b"", "1.cls": b"0"}, "only one class"),
        (samples(0, 8) | {"/etc/0.png": b""}, "'/etc/0.png' leads out of the shard"),
        (samples(0, 8) | {"a/../../0.png": b""}, r"'a/\.\./\.\./0.png' leads out of the shard"),
    ],
)
def test_bad_samples(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    shard = write_tar(tmp_path / "all.tar", members)
    with pytest.raises(DataError, match=message):
        open_dataset(shard, val_fraction=0.5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "'evil.png' is a link"),
        (tarfile.LNKTYPE, "'evil.png' is a link"),
        (tarfile.CHRTYPE, "'evil.png' is a device"),
        (tarfile.FIFOTYPE, "'evil.png' is a device"),
        (tarfile.GNUTYPE_SPARSE, "'evil.png' is a sparse file|damaged"),
    ],
)
def test_members_that_are_no_files(tmp_path: Path, kind: bytes, message: str) -> None:
    shard = tmp_path / "all.tar"
    with tarfile.open(shard, "w") as tar:
        info = tarfile.TarInfo("evil.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=message):
        open_dataset(shard)


def member_header(size: bytes, kind: bytes = b"0", name: bytes = b"0.png") -> bytes:
    """A header of 512 bytes with the field of the size as given."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108] = b"0000644\0"
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


HUGE = b"\x80" + struct.pack(">QH", 1 << 50, 0).rjust(11, b"\0")
NEGATIVE = b"\xff" * 12
END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or no tar"),
        (b"hello", "damaged, or no tar"),
        (b"\x1f\x8b\x08" + b"\0" * 600, "compressed .gzip"),
        (member_header(b"00000000010\0") + END, "labels|has no label|belongs|cut short|damaged"),
        (member_header(b"77777777777\0") + END, "'0.png' says it has 8589934591 bytes"),
        (member_header(b"00000777777\0") + END, "cut short: it ends within '0.png'"),
        (member_header(HUGE) + END, "says it has|damaged"),
        (member_header(NEGATIVE) + END, "says it has -1 bytes"),
        (member_header(HUGE, b"x") + END, "damaged"),
        (member_header(NEGATIVE, b"x") + END, "damaged"),
        (member_header(b"77777777777\0", b"x") + END, "damaged"),
        (member_header(b"77777777777\0", b"L") + END, "damaged"),
        (member_header(b"00000000001\0", b"L") * 3000, "damaged"),
        (member_header(b"00000000000\0", b"L") * 3000, "damaged"),
    ],
)
def test_hostile_headers(tmp_path: Path, content: bytes, message: str) -> None:
    shard = tmp_path / "all.tar"
    shard.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(shard)
    assert "all.tar" in str(error.value)


def test_truncated_and_damaged_shards(tmp_path: Path) -> None:
    """Cut anywhere, or with any header broken, a shard never passes for a shorter one."""
    shard = write_tar(tmp_path / "all.tar", samples(0, 6))
    whole = shard.read_bytes()
    data_end = len(whole.rstrip(b"\0"))
    for length in range(0, data_end, 300):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"all\.tar"):
            open_dataset(shard)
    for block in range(0, data_end, 512):
        if whole[block + 257 : block + 262] == b"ustar":
            shard.write_bytes(whole[:block] + b"\x07" + whole[block + 1 :])
            with pytest.raises(DataError, match="damaged"):
                open_dataset(shard)
