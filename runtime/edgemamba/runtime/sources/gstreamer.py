"""GStreamer pipelines as sources, among them the CSI cameras of a Jetson, through an OpenCV that was built with GStreamer."""

from __future__ import annotations

import re
from typing import Any

from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.extras import require
from edgemamba.runtime.sources.camera import SILENCE_SECONDS, CaptureSource
from edgemamba.runtime.uris import Uri, number, without_secrets

__all__ = ["GStreamerSource", "csi_pipeline", "has_gstreamer", "open_csi", "open_gst"]

# Only the newest frame: what the network cannot follow is dropped by the pipeline, and a queue here would only make it late.
_APPSINK = "videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"


class GStreamerSource(CaptureSource):
    """The frames of a GStreamer pipeline.

    Args:
        name: for people.
        pipeline: in gst-launch's notation; must end in an ``appsink`` that gets ``video/x-raw,format=BGR``.
        silence: seconds without a frame after which it counts as gone.

    Raises:
        SourceError: OpenCV has no GStreamer, or the pipeline does not start.
    """

    remedy = "try the pipeline with gst-launch-1.0"

    def __init__(self, name: str, pipeline: str, silence: float = SILENCE_SECONDS) -> None:
        cv2 = require("cv2", purpose="reading GStreamer pipelines")
        if not has_gstreamer(cv2):
            raise SourceError(
                f"{name}: this OpenCV ({cv2.__version__}) was built without GStreamer, as all wheels of PyPI are; use the "
                "system's (JetPack's, or apt install python3-opencv), and uninstall opencv-python* from this environment"
            )

        def open_capture() -> Any:
            return cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)

        super().__init__(name, open_capture, silence)


def has_gstreamer(cv2: Any) -> bool:
    """Whether this OpenCV can use GStreamer; OpenCV lists the backend also where its plugin is absent."""
    if hasattr(cv2.videoio_registry, "hasBackend"):
        return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))
    return re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()) is not None


def open_gst(uri: Uri) -> GStreamerSource:
    """``gst://PIPELINE``. A pipeline without an ``appsink`` gets one that keeps only the newest frame.

    Raises:
        SourceError: there is no pipeline, or see :class:`GStreamerSource`.
    """
    pipeline = uri.location.strip()
    if not pipeline:
        raise SourceError("gst:// needs a pipeline, as gst://v4l2src device=/dev/video0")
    if not re.search(r"(^|[\s!])appsink\b", pipeline):
        pipeline = f"{pipeline.rstrip('! ')} ! {_APPSINK}"
    return GStreamerSource(f"gst://{without_secrets(uri.location.strip())}", pipeline)


def open_csi(uri: Uri) -> GStreamerSource:
    """``csi://0?width=1280&height=720&fps=30&flip=0&timeout=5``: a Jetson's CSI camera by its sensor's number.

    Raises:
        SourceError: an option is no number, or see :class:`GStreamerSource`.
    """
    uri.allow(("flip", "fps", "height", "timeout", "width"), SourceError)
    sensor = uri.location.strip("/") or "0"
    if not sensor.isdecimal():
        raise SourceError(f"{uri.shown}: give a sensor's number, as csi://0")
    width, height, fps, flip = (
        int(number(uri, option, default, SourceError))
        for option, default in (("width", 1280), ("height", 720), ("fps", 30), ("flip", 0))
    )
    silence = number(uri, "timeout", SILENCE_SECONDS, SourceError, 0.1)
    return GStreamerSource(uri.shown.partition("?")[0], csi_pipeline(int(sensor), width, height, fps, flip), silence)


def csi_pipeline(sensor: int, width: int, height: int, fps: int, flip: int) -> str:
    """Argus' frames lie in the GPU's memory (NVMM); ``nvvidconv`` turns them and copies them out."""
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={fps}/1 ! nvvidconv flip-method={flip} ! video/x-raw,format=BGRx ! {_APPSINK}"
    )
