"""Sources: real files of every kind, what is skipped and what is refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runtime.bundled_dicom import dicom_file

from edgemamba.runtime import open_source
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.frames import NOMINAL_FPS
from edgemamba.runtime.sources.pictures import natural_key, read_image

cv2 = pytest.importorskip("cv2")
pytest.importorskip("pydicom")


def gradient(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """RGB with a different ramp in each channel, so that a swap of channels or axes shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, np.full_like(x, 200)], axis=2).astype(np.uint8)


def write(path: Path, pixels: NDArray[Any]) -> Path:
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "clip.mp4", frames: int = 12, fps: float = 25.0, codec: str = "mp4v") -> Path:
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (64, 48))
        assert writer.isOpened()
        for i in range(frames):
            writer.write(np.full((48, 64, 3), (0, 0, i * 20), np.uint8))  # red, in OpenCV's order
        writer.release()
        return path

    return make


# ---------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff", ".jpg"])
def test_image_file(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"picture{suffix}", gradient())
    with open_source(path) as source:
        (frame,) = source
    assert (source.length, source.live) == (1, False)
    assert (frame.index, frame.timestamp, frame.source) == (0, 0.0, path.name)
    assert frame.pixels.dtype == np.uint8
    tolerance = 12 if suffix in (".jpg", ".webp") else 0
    assert np.abs(frame.pixels.astype(int) - gradient()).max() <= tolerance


def test_kinds_of_image_pixels(tmp_path: Path) -> None:
    grey16 = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    assert (read_image(write(tmp_path / "grey16.png", grey16))[..., 0] == grey16).all()
    grey8 = read_image(write(tmp_path / "grey8.png", gradient()[..., 0]))
    assert grey8.shape == (40, 60, 3)
    assert (grey8[..., 2] == gradient()[..., 0]).all()
    rgb16 = read_image(write(tmp_path / "rgb16.png", gradient().astype(np.uint16) * 257))
    assert (rgb16 == gradient()).all()
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([gradient()[..., ::-1], np.zeros((40, 60), np.uint8)]))
    assert (read_image(tmp_path / "alpha.png") == gradient()).all()
    unit = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    assert (read_image(write(tmp_path / "unit.tiff", unit))[..., 0] == unit).all()
    with pytest.raises(SourceError, match=r"floats beyond 0\.\.1"):
        read_image(write(tmp_path / "wide.tiff", unit * 100))


def test_exif_orientation(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(gradient())
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "turned.jpg").shape == (60, 40, 3)


def test_content_decides_not_the_name(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    picture = write(tmp_path / "picture.png", gradient()).rename(tmp_path / "picture")
    assert next(iter(open_source(picture))).pixels.shape == (40, 60, 3)
    slice_ = Path(shutil.copy(dicom_file("CT_small.dcm"), tmp_path / "IM000001"))
    assert next(iter(open_source(slice_))).pixels.dtype == np.uint16
    video = make_video().rename(tmp_path / "recording")
    assert len(list(open_source(video))) == 12


def test_file_url_and_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a picture.png", gradient())
    assert len(list(open_source(f"file://{tmp_path}/a%20picture.png"))) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(list(open_source("~/a picture.png"))) == 1


def test_folder_of_images_and_dicom(tmp_path: Path) -> None:
    for name in ("slice_10.png", "slice_2.png", "slice_1.png"):
        write(tmp_path / name, gradient())
    (tmp_path / "series").mkdir()
    shutil.copy(dicom_file("examples_ybr_color.dcm"), tmp_path / "series" / "cine")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [frame.source for frame in frames] == [
        *["series/cine"] * 30,
        "slice_1.png",
        "slice_2.png",
        "slice_10.png",
    ]
    assert [frame.index for frame in frames] == list(range(33))
    times = [frame.timestamp for frame in frames]
    assert times == sorted(set(times))
    assert times[29] == pytest.approx(29 / 30, rel=1e-3)
    assert source.skipped.count == 0
    assert len(list(source)) == 33  # can be read again


def test_one_bad_file_is_skipped_said_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "1.png", gradient())
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "3.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "4.dcm").write_bytes(dicom_file("MR_small_RLE.dcm").read_bytes()[:1500])
    write(tmp_path / "5.png", gradient())
    with caplog.at_level(logging.WARNING), open_source(tmp_path) as source:
        frames = list(source)
    assert [(frame.source, frame.index) for frame in frames] == [("1.png", 0), ("5.png", 4)]
    assert source.skipped.count == 3
    assert all(name in reason for name, reason in zip(("2.png", "3.jpg", "4.dcm"), source.skipped.reasons, strict=True))
    assert len(caplog.records) == 3


def test_a_cine_cut_short_gives_its_whole_frames(tmp_path: Path) -> None:
    content = dicom_file("examples_ybr_color.dcm").read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(content[: len(content) // 2])
    with open_source(cut) as source:
        frames = list(source)
    assert 5 < len(frames) < 25
    assert len(frames) + source.skipped.count == 30
    assert source.fps == pytest.approx(30, rel=1e-3)


def test_a_header_that_promises_millions_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the frames after it keep their places."""
    import pydicom

    dataset = pydicom.dcmread(dicom_file("MR_small.dcm"))
    dataset.NumberOfFrames = 1_000_000
    dataset.save_as(tmp_path / "1.dcm")
    write(tmp_path / "2.png", gradient())
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [(frame.source, frame.index) for frame in frames] == [("1.dcm", 0), ("2.png", 1_000_000)]
    assert source.skipped.count == 999_999
    assert len(caplog.records) == 1
    assert "1.dcm ends after 1 of the 1000000 frames that its header promises" in caplog.text


def test_glob(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.png", "a.bmp"):
        write(tmp_path / name, gradient())
    assert [frame.source for frame in open_source(str(tmp_path / "b*.png"))] == ["b9.png", "b10.png"]
    assert len(list(open_source(str(tmp_path / "*.bmp")))) == 1
    with pytest.raises(SourceError, match="no file matches"):
        open_source(str(tmp_path / "*.gif"))


def test_natural_order() -> None:
    assert sorted(["IM10", "im9", "a/2", "a/10", "a/1b"], key=natural_key) == ["a/1b", "a/2", "a/10", "im9", "IM10"]


def test_a_grey_dicom_keeps_sixteen_bits() -> None:
    (frame,) = open_source(dicom_file("CT_small.dcm"), voi="minmax")
    assert frame.pixels.dtype == np.uint16
    assert len(np.unique(frame.pixels)) > 1000
    assert frame.metadata["modality"] == "CT"


# ------------------------------------------------------------------------------------------------------------------- video


def test_video(make_video: Callable[..., Path]) -> None:
    with open_source(make_video()) as source:
        frames = list(source)
    assert (source.length, source.fps, source.skipped.count) == (12, 25.0, 0)
    assert [frame.timestamp for frame in frames] == pytest.approx([i / 25 for i in range(12)])
    red, green, blue = frames[-1].pixels.reshape(-1, 3).mean(axis=0)
    assert red > 180
    assert max(green, blue) < 30
    assert len(list(source)) == 12  # can be read again


def test_video_that_ends_early_is_read_as_far_as_it_goes(
    make_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = make_video("clip.avi", frames=40, codec="MJPG")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with open_source(path) as source:
        frames = list(source)
    assert 0 < len(frames) < 40
    if source.length == 40:  # OpenCV versions differ in whether they believe the header
        assert source.skipped.count == 40 - len(frames)
        assert "of the 40 frames that its header promises" in caplog.text


def test_truncated_mp4_is_refused(make_video: Callable[..., Path]) -> None:
    path = make_video()
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(SourceError, match="cannot be opened as a video"):
        open_source(path)


# ------------------------------------------------------------------------------------------------------------------ cameras


class MockCapture:
    """Stands in for OpenCV's capture where there is no camera: some frames, then nothing."""

    frames = 3
    opened = True

    def __init__(self, device: int | str, backend: int) -> None:
        self.device = device
        self.left = self.frames

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opened

    def get(self, requested: int) -> float:
        return 30.0 if requested == cv2.CAP_PROP_FPS else -1.0

    def set(self, _property: int, _value: float) -> bool:
        return True

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        self.left -= 1
        return (True, np.full((4, 4, 3), (1, 2, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        pass


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("edgemamba.runtime.sources.camera._PAUSE", 0.01)
    return


@pytest.mark.usefixtures("_no_pause")
@pytest.mark.parametrize("device", [0, "0", "/dev/video0", "v4l2://0", "v4l2:///dev/video0?width=640&fourcc=MJPG"])
def test_mock_camera(device: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", MockCapture)
    monkeypatch.setattr("edgemamba.runtime.sources.camera.SILENCE_SECONDS", 0.3)
    source = open_source(device)
    assert source.live
    assert source.fps == 30
    frames = iter(source)
    first = next(frames)
    assert first.timestamp == 0
    assert (first.pixels[0, 0] == (3, 2, 1)).all()
    with pytest.raises(SourceError, match="stopped giving frames after 3"):
        list(frames)


@pytest.mark.usefixtures("_no_pause")
def test_mock_camera_without_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", MockCapture)
    monkeypatch.setattr(MockCapture, "frames", 0)
    with pytest.raises(SourceError, match=r"opened, but gives no frames: none for 0.2 s"):
        list(open_source("v4l2://0?timeout=0.2"))
    monkeypatch.setattr(MockCapture, "opened", False)
    with pytest.raises(SourceError, match="camera 0 cannot be opened"):
        open_source(0)


# ------------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere/clip.mp4", "nowhere/clip.mp4 does not exist"),
        ("rtmp://host/stream", "rtmp:// is no source; give a camera number or a path, or one of: file://, v4l2://"),
        (-1, "a camera is a number from 0"),
    ],
)
def test_refused(source: Any, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(source)


@pytest.mark.parametrize("name", ["empty.png", "empty.mp4", "empty.dcm", "empty"])
def test_empty_files_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"is empty \(0 bytes\)"):
        open_source(tmp_path / name)


def test_folders_with_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no image or DICOM file$"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(SourceError, match="its 1 files are of other kinds"):
        open_source(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"none of its 2 pictures can be read; the first: .*a\.png is empty"):
        list(open_source(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_images_cut_short_are_refused(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"cut short|damaged"):
        list(open_source(path))


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", gradient())
    content = bytearray(path.read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") + (20000).to_bytes(4, "big")
    path.write_bytes(content)
    write(tmp_path / "b.jpg", gradient())
    jpeg = bytearray((tmp_path / "b.jpg").read_bytes())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    (tmp_path / "b.jpg").write_bytes(jpeg)
    for name, size in (("a.png", "30000 x 20000"), ("b.jpg", "65535 x 65535")):
        with pytest.raises(SourceError, match=f"{name} says it has {size} pixels"):
            list(open_source(tmp_path / name))


def test_paced_like_the_documentation_says(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", gradient())
    assert [frame.timestamp for frame in open_source(tmp_path)] == pytest.approx([i / NOMINAL_FPS for i in range(3)])
