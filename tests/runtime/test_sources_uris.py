"""What names a source or a sink, and what of it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemamba.runtime import open_source
from edgemamba.runtime.errors import SinkError, SourceError
from edgemamba.runtime.sources.gstreamer import has_gstreamer
from edgemamba.runtime.uris import SINK_SCHEMES, SOURCE_SCHEMES, parse_sink, parse_source, without_secrets


@pytest.mark.parametrize(
    ("text", "scheme", "location", "options"),
    [
        (0, "v4l2", "0", {}),
        ("2", "v4l2", "2", {}),
        ("/dev/video1", "v4l2", "/dev/video1", {}),
        ("v4l2://0", "v4l2", "0", {}),
        ("V4L2:///dev/video0?width=640", "v4l2", "/dev/video0", {"width": "640"}),
        ("csi://1?flip=2", "csi", "1", {"flip": "2"}),
        ("clip.mp4", "file", "clip.mp4", {}),
        ("C:/clips/a.mp4", "file", "C:/clips/a.mp4", {}),
        (Path("a://b"), "file", "a:/b", {}),
        ("slices/*.dcm", "file", "slices/*.dcm", {}),
        ("what?.png", "file", "what?.png", {}),
        ("file:///a%20b/c%3F.png", "file", "/a b/c?.png", {}),
        ("file://localhost/a.png", "file", "/a.png", {}),
        ("file://relative/a.png", "file", "relative/a.png", {}),
        ("dicom:///data/study?modality=CT&square=1", "dicom", "/data/study", {"modality": "CT", "square": "1"}),
        ("watch://in%20box?existing=1", "watch", "in box", {"existing": "1"}),
        ("rtsp://h:554/live?channel=1#timeout=2", "rtsp", "h:554/live?channel=1", {"timeout": "2"}),
        ("gst://videotestsrc ! x#y?z", "gst", "videotestsrc ! x#y?z", {}),
        ("rtspsrc location=rtsp://h/s ! appsink", "gst", "rtspsrc location=rtsp://h/s ! appsink", {}),
        (Path("a ! b"), "file", "a ! b", {}),
    ],
)
def test_sources(text: Any, scheme: str, location: str, options: dict[str, str]) -> None:
    uri = parse_source(text)
    assert (uri.scheme, uri.location, dict(uri.options)) == (scheme, location, options)


@pytest.mark.parametrize(
    ("text", "scheme", "location"),
    [
        ("out.jsonl", "file", "out.jsonl"),
        ("-", "file", "-"),
        ("file:///a%20b.csv", "file", "/a b.csv"),
        ("window://", "window", ""),
        ("web://:8080", "web", ":8080"),
        ("metrics://0.0.0.0:9090", "metrics", "0.0.0.0:9090"),
    ],
)
def test_sinks(text: str, scheme: str, location: str) -> None:
    uri = parse_sink(text)
    assert (uri.scheme, uri.location) == (scheme, location)


def test_unknown_schemes_name_the_known_ones() -> None:
    with pytest.raises(
        SourceError, match=r"^ftp:// is no source; give a camera number or a path, or one of: "
    ) as source:
        open_source("ftp://host/clip.mp4")
    assert all(f"{name}://" in str(source.value) for name in SOURCE_SCHEMES)
    with pytest.raises(SinkError, match=r"^rtsp:// is no sink; give a path, or one of: ") as sink:
        parse_sink("rtsp://host/stream")
    assert all(f"{name}://" in str(sink.value) for name in SINK_SCHEMES)
    for caught in (source, sink):
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [-1, True])
def test_what_is_no_camera(number: Any) -> None:
    with pytest.raises(SourceError, match="a camera is a number from 0"):
        parse_source(number)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:pass@10.0.0.5:554/live", "rtsp://***@10.0.0.5:554/live"),
        ("rtsp://admin:p@ss/w@rd@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
        ("http://cam/video?user=admin&pwd=pass", "http://cam/video"),
        ("https://user@cam/video#timeout=3", "https://***@cam/video"),
        ("dicomwebs://me:pass@host/dicom-web", "dicomwebs://***@host/dicom-web"),
        (
            "gst://rtspsrc location=rtsp://a:pass@h/s user-pw=pass ! decodebin",
            "gst://rtspsrc location=rtsp://***@h/s user-pw=*** ! decodebin",
        ),
        ("rtspsrc location=rtsp://a:pass@h/s ! appsink", "rtspsrc location=rtsp://***@h/s ! appsink"),
        ("clip.mp4", "clip.mp4"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    uri = parse_source(text)
    assert uri.shown == str(uri) == shown
    assert "pass" not in repr(uri)


@given(
    password=st.text(
        st.characters(codec="ascii", exclude_categories=["Cc", "Zs"], exclude_characters="?#\"'"), min_size=1
    )
)
def test_no_password_is_shown(password: str) -> None:
    text = f"rtsp://operator:{password}KEEP{password}@camera/live"
    shown = parse_source(text).shown
    assert shown == "rtsp://***@camera/live"
    assert "KEEP" not in without_secrets(f"cannot open {text}: no answer")


def test_gstreamer_is_refused_where_opencv_lacks_it() -> None:
    cv2 = pytest.importorskip("cv2")
    if has_gstreamer(cv2):
        pytest.skip("this OpenCV has GStreamer")
    for source, name in (("gst://videotestsrc", "gst://videotestsrc"), ("csi://0?flip=2", "csi://0")):
        with pytest.raises(SourceError, match="was built without GStreamer") as caught:
            open_source(source)
        assert str(caught.value).startswith(f"{name}: ")
    with pytest.raises(SourceError, match="needs a pipeline"):
        open_source("gst://")


def test_csi_pipeline() -> None:
    from edgemamba.runtime.sources.gstreamer import csi_pipeline

    pipeline = csi_pipeline(1, 1920, 1080, 60, 2)
    assert pipeline.startswith(
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=60/1 !"
    )
    assert "nvvidconv flip-method=2" in pipeline
    assert pipeline.endswith("appsink drop=true max-buffers=1 sync=false")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("v4l2://nonsense", "give a camera's number or device path"),
        ("v4l2://0?fourcc=MJPEG", "has not four characters"),
        ("v4l2://0?colour=1", "unknown option colour; known are fourcc, fps, height, timeout, width"),
        ("csi://front", "give a sensor's number"),
        ("csi://0?fps=many", "fps=many is no number"),
        ("rtsp:///live", "no host is named"),
        ("rtsp://[broken/live", "no host is named"),
        ("dicom://nowhere", "nowhere does not exist"),
        ("watch://", "watch:// needs a path"),
        ("dicom://?modality=CT", "dicom:// needs a path"),
        ("", "the source's name is empty"),
    ],
)
def test_refusals(source: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(source)


def test_a_camera_that_hangs_in_its_driver_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: its read never returns."""
    import threading

    cv2 = pytest.importorskip("cv2")
    free = threading.Event()

    class HangingMock:
        def __init__(self, *_: object) -> None: ...

        def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
            return True

        def get(self, _property: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, None]:
            free.wait(60)
            return False, None

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", HangingMock)
    with pytest.raises(SourceError, match=r"camera 0 opened, but gives no frames: none for 0\.3 s"):
        list(open_source("v4l2://0?timeout=0.3"))
    source = open_source("v4l2://0?timeout=30")
    threading.Timer(0.2, source.interrupt).start()
    assert list(source) == []
    free.set()
