"""Watched folders: real files, written at once, slowly, under other names, again, and never to their end."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from runtime.bundled_dicom import dicom_file
from runtime.waiting import Reader, wait_for

from edgemamba.runtime import open_source, stream
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.sources.watch import WatchSource

cv2 = pytest.importorskip("cv2")
pytest.importorskip("pydicom")

QUICK = "settle=0.1&poll=0.02"


def jpeg(value: int = 100, size: int = 32) -> bytes:
    noise = np.random.default_rng(value).integers(0, 256, (size, size, 3), np.uint8)
    data: bytes = cv2.imencode(".jpg", noise)[1].tobytes()
    return data


def watch(folder: Path, options: str = QUICK) -> WatchSource:
    source = open_source(f"watch://{folder}?{options}")
    assert isinstance(source, WatchSource)
    return source


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(options: str = QUICK) -> Reader:
        made.append(Reader(watch(tmp_path, options)))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def test_new_files_in_order_of_arrival(tmp_path: Path, reading: Callable[..., Reader]) -> None:
    (tmp_path / "old.jpg").write_bytes(jpeg())
    reader = reading()
    assert not reader.source.live
    assert reader.source.length is None
    for count, name in enumerate(("z.jpg", "b.png", "a.jpg"), 1):
        (tmp_path / name).write_bytes(jpeg() if name.endswith("jpg") else cv2.imencode(".png", np.zeros((8, 8)))[1])
        wait_for(lambda count=count: len(reader.frames) == count)  # type: ignore[misc]
    assert reader.close() == ["z.jpg", "b.png", "a.jpg"]
    assert [frame.index for frame in reader.frames] == [0, 1, 2]
    times = [frame.timestamp for frame in reader.frames]
    assert times[0] == 0
    assert times == sorted(times)


def test_existing_files_on_request_by_time_of_change(tmp_path: Path) -> None:
    for i, name in enumerate(("c.jpg", "a.jpg", "b.jpg")):
        (tmp_path / name).write_bytes(jpeg(i))
    for name, moment in (("c.jpg", 10), ("a.jpg", 30), ("b.jpg", 20)):
        os.utime(tmp_path / name, (moment, moment))
    with watch(tmp_path, f"existing=1&{QUICK}") as source:
        assert [frame.source for frame in islice(source, 3)] == ["c.jpg", "b.jpg", "a.jpg"]


@pytest.mark.parametrize("kind", ["jpeg", "dicom", "cine"])
def test_a_file_that_is_written_slowly_is_waited_for(
    kind: str, tmp_path: Path, reading: Callable[..., Reader], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the writer rests for longer than the settling time in the middle."""
    content = {
        "jpeg": lambda: jpeg(size=200),
        "dicom": lambda: dicom_file("MR_small.dcm").read_bytes(),
        "cine": lambda: dicom_file("rtdose_rle.dcm").read_bytes(),
    }[kind]()
    reader = reading()
    parts = 6
    with (
        caplog.at_level(logging.WARNING),
        (tmp_path / "slow").with_suffix(".jpg" if kind == "jpeg" else ".dcm").open("wb") as file,
    ):
        for i in range(parts):
            file.write(content[i * len(content) // parts : (i + 1) * len(content) // parts])
            file.flush()
            time.sleep(0.4 if i == 2 else 0.05)
            assert i == parts - 1 or not reader.frames
    wait_for(lambda: len(reader.frames) == (15 if kind == "cine" else 1))
    assert reader.source.skipped.count == 0
    assert not caplog.text


def test_a_file_that_never_ends_is_skipped_and_its_neighbours_go_on(
    tmp_path: Path, reading: Callable[..., Reader]
) -> None:
    reader = reading(f"{QUICK}&patience=0.5")
    whole = jpeg(size=100)
    (tmp_path / "cut.jpg").write_bytes(whole[:-200])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "good.jpg").write_bytes(whole)
    wait_for(lambda: reader.source.skipped.count == 2 and len(reader.frames) == 1)
    assert [frame.source for frame in reader.frames] == ["good.jpg"]
    # The writer comes back after all.
    (tmp_path / "cut.jpg").write_bytes(whole)
    wait_for(lambda: len(reader.frames) == 2)
    assert reader.close() == ["good.jpg", "cut.jpg"]


def test_renaming_into_place_subfolders_and_what_is_left_alone(tmp_path: Path, reading: Callable[..., Reader]) -> None:
    reader = reading()
    (tmp_path / "study").mkdir()
    for name in (".hidden.jpg", "a.jpg.part", "b.tmp", "c.jpg~", "notes.txt"):
        (tmp_path / "study" / name).write_bytes(jpeg())
    shutil.copy(dicom_file("CT_small.dcm"), tmp_path / "study" / "IM1.part")
    (tmp_path / "study" / "IM1.part").rename(tmp_path / "study" / "IM1")
    (tmp_path / "study" / "a.jpg.part").rename(tmp_path / "study" / "a.jpg")
    wait_for(lambda: len(reader.frames) == 2)
    assert sorted(reader.close()) == ["study/IM1", "study/a.jpg"]
    assert reader.source.skipped.count == 0
    image = next(frame for frame in reader.frames if frame.source == "study/IM1")
    assert image.pixels.dtype == np.uint16
    assert image.metadata["modality"] == "CT"
    assert getattr(image, "header", None) is not None  # for sinks that write DICOM objects about it


def test_a_file_that_is_replaced_is_new_and_deleted_ones_are_forgotten(
    tmp_path: Path, reading: Callable[..., Reader]
) -> None:
    reader = reading()
    for count in range(1, 4):
        (tmp_path / "latest.new").write_bytes(jpeg(count))
        (tmp_path / "latest.new").rename(tmp_path / "latest.jpg")
        wait_for(lambda count=count: len(reader.frames) == count)  # type: ignore[misc]
    (tmp_path / "latest.jpg").unlink()
    wait_for(lambda: not reader.source._known)
    assert reader.close() == ["latest.jpg"] * 3


def test_the_folder_goes_away_and_returns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a mount does. What was read is not read again."""
    folder = tmp_path / "mount"
    folder.mkdir()
    with caplog.at_level(logging.WARNING):
        reader = Reader(watch(folder))
        (folder / "1.jpg").write_bytes(jpeg(1))
        wait_for(lambda: len(reader.frames) == 1)
        folder.rename(tmp_path / "elsewhere")
        wait_for(lambda: "waiting for it" in caplog.text)
        (tmp_path / "elsewhere" / "2.jpg").write_bytes(jpeg(2))
        (tmp_path / "elsewhere").rename(folder)
        wait_for(lambda: len(reader.frames) == 2)
        assert reader.close() == ["1.jpg", "2.jpg"]
    assert caplog.text.count("waiting for it") == caplog.text.count("is there again") == 1


def test_many_files_at_once_none_is_lost(tmp_path: Path, reading: Callable[..., Reader]) -> None:
    reader = reading("settle=0.05&poll=0.02")
    data = jpeg(size=16)
    for i in range(300):
        (tmp_path / f"{i:03}.tmp").write_bytes(data)
        (tmp_path / f"{i:03}.tmp").rename(tmp_path / f"{i:03}.jpg")
    wait_for(lambda: len(reader.frames) == 300)
    assert sorted(reader.close()) == [f"{i:03}.jpg" for i in range(300)]


def test_a_stream_over_a_folder_ends_when_it_is_stopped(
    tmp_path: Path, colour_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while it waits for files: nothing is left behind."""
    with stream(watch(tmp_path), colour_engine, batch=4, batch_wait=0.1) as results:
        for i in range(3):
            (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
        assert sorted(result.frame.source for result in islice(results, 3)) == ["0.jpg", "1.jpg", "2.jpg"]
        results.stop()
        assert list(results) == []
    assert "left behind" not in caplog.text
    assert results.report.dropped == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("colour=1", "unknown option colour; known are existing, patience, poll, settle"),
        ("poll=x", "poll=x is no number"),
    ],
)
def test_wrong_options(options: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(f"watch://{tmp_path}?{options}")


def test_a_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="what is watched must exist"):
        open_source(f"watch://{tmp_path}/nowhere")
