"""Network video from real servers: MJPEG over HTTP (Python's), H.264 over RTSP (GStreamer's); they die, return and fall silent."""

from __future__ import annotations

import logging
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgemamba.runtime import open_source, stream
from edgemamba.runtime.engines.base import Engine
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.sources.network_video import Backoff, NetworkSource

cv2 = pytest.importorskip("cv2")

PAUSE = 0.02  # between the server's frames, in seconds


class MjpegServer:
    """Serves /live (endless), /five (five frames, then an open connection and silence), /silent, and files of a folder.

    ``kill()`` cuts all connections, ``start()`` brings it back at the same port.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[str] = []
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._alive = threading.Event()

    def start(self) -> None:
        outer = self
        self._alive = alive = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the base class names it
                outer.paths.append(self.path)
                kind = self.path.partition("?")[0].strip("/")
                if kind in ("live", "five", "silent"):
                    self._stream({"live": 1 << 30, "five": 5, "silent": 0}[kind])
                elif (outer.folder / kind).is_file():
                    content = (outer.folder / kind).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                else:
                    self.send_error(404)

            def _stream(self, frames: int) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    for i in range(frames):
                        if alive.is_set():
                            break
                        picture = np.full((48, 64, 3), (0, 0, 40 + i % 200), np.uint8)  # red
                        data = cv2.imencode(".jpg", picture)[1].tobytes()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                        time.sleep(PAUSE)
                    if frames < 1 << 30:
                        alive.wait(60)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self) -> None:
        if self._server is not None:
            self._alive.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MjpegServer]:
    made = MjpegServer(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other quickly."""
    monkeypatch.setattr("edgemamba.runtime.sources.network_video.Backoff", lambda: Backoff(0.1, 0.4, random.Random(0)))


# --------------------------------------------------------------------------------------------------------------------- HTTP


def test_mjpeg(server: MjpegServer) -> None:
    with open_source(server.url("live")) as source:
        assert source.live
        assert source.length is None
        frames = list(islice(source, 5))
    assert [frame.index for frame in frames] == list(range(5))
    assert frames[0].timestamp == 0
    red, green, blue = frames[0].pixels.reshape(-1, 3).mean(axis=0)
    assert red > 30
    assert max(green, blue) < 15
    assert frames[0].source == server.url("live")


def test_a_server_that_dies_and_returns(server: MjpegServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), open_source(server.url("live#timeout=3")) as source:
        assert isinstance(source, NetworkSource)
        frames = iter(source)
        for _ in range(3):
            next(frames)
        for outage in (1, 2):
            server.kill()
            threading.Timer(0.5, server.start).start()
            seen = [next(frames) for _ in range(300) if source.reconnects < outage]  # some are still under way
            after = [next(frames) for _ in range(2)]
            assert source.reconnects == outage
            assert after[-1].metadata["reconnects"] == outage
        assert after[0].index > seen[-1].index
        assert source.describe()["reconnects"] == 2
    names = [thread.name for thread in threading.enumerate()]
    assert "edgemamba-network-video" not in names, "a connection's thread was left behind"
    assert "broken after" in caplog.text
    assert "connected after" in caplog.text


def test_retries_end(server: MjpegServer) -> None:
    with open_source(server.url("live#timeout=2&retries=2")) as source:
        frames = iter(source)
        next(frames)
        server.kill()
        with pytest.raises(SourceError, match=r"broke after \d+ frames; 2 attempts to connect again failed"):
            list(islice(frames, 1000))


def test_a_stream_that_freezes_is_connected_again(server: MjpegServer) -> None:
    """The connection stays open, and nothing comes: the read times out."""
    with open_source(server.url("five#timeout=0.7")) as source:
        frames = list(islice(source, 7))
    assert frames[-1].metadata["reconnects"] >= 1


def test_a_camera_that_opens_and_gives_nothing(server: MjpegServer) -> None:
    with pytest.raises(SourceError, match=r"no answer within 0\.7 s"):
        open_source(server.url("silent#timeout=0.7"))


def test_no_server_is_an_error_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceError, match="cannot be opened; is the address right, the server up"):
        open_source(f"http://127.0.0.1:{port}/live")


def test_no_server_yet_is_waited_for(server: MjpegServer) -> None:
    server.kill()
    with open_source(server.url("live#wait=1")) as source:
        threading.Timer(0.5, server.start).start()
        assert next(iter(source)).index == 0
        assert source.describe()["reconnects"] == 0


def test_interrupt_ends_the_wait_for_a_server(server: MjpegServer) -> None:
    source = open_source(server.url("live"))
    frames = iter(source)
    next(frames)
    server.kill()
    threading.Timer(0.6, source.interrupt).start()
    assert len(list(frames)) < 100


def test_a_stream_goes_on_after_an_outage_and_can_be_stopped_in_one(
    server: MjpegServer, colour_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with stream(server.url("live#timeout=3"), colour_engine) as results:
        assert next(results).label == "red"
        server.kill()
        threading.Timer(0.4, server.start).start()
        after = next(result for result in results if result.frame.metadata["reconnects"] == 1)
        assert after.label == "red"
        server.kill()
        threading.Timer(0.8, results.stop).start()
        for _ in results:
            pass
    assert "left behind" not in caplog.text
    assert results.report.to_json()["source"]["reconnects"] == 1


def test_a_video_file_on_a_server_is_read_once(server: MjpegServer, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
    for i in range(12):
        writer.write(np.full((48, 64, 3), i * 20, np.uint8))
    writer.release()
    with open_source(server.url("clip.avi")) as source:
        assert not source.live
        assert len(list(source)) == source.length == 12
    assert source.skipped.count == 0


def test_the_query_is_the_servers_and_the_fragment_ours(server: MjpegServer) -> None:
    with open_source(server.url("live?fps=5&user=a#timeout=3")) as source:
        next(iter(source))
    assert server.paths == ["/live?fps=5&user=a"]
    with pytest.raises(SourceError, match="unknown option colour; known are retries, timeout, wait"):
        open_source(server.url("live#colour=1"))


@pytest.mark.parametrize("credentials", ["admin:s3cret@", "admin:s3/cr@et@"])
def test_passwords_are_never_shown(
    credentials: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError) as caught:
        open_source(f"http://{credentials}127.0.0.1:1/live?pwd=s3cret")
    everything = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    for secret in ("s3cret", "s3/cr", "cr@et", "admin"):
        assert secret not in everything


def test_backoff_doubles_to_its_limit_with_jitter() -> None:
    backoff = Backoff(0.5, 30.0, random.Random(1))
    pauses = [backoff.next() for _ in range(2000)]
    for i, pause in enumerate(pauses):
        whole = min(0.5 * 2 ** min(i, 50), 30.0)
        assert whole / 2 <= pause <= whole
    assert len(set(pauses)) == len(pauses)
    backoff.reset()
    assert backoff.next() <= 0.5


# --------------------------------------------------------------------------------------------------------------------- RTSP

RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
if not all(Gst.ElementFactory.find(name) for name in ("videotestsrc", "x264enc", "rtph264pay")):
    sys.exit("an element is missing")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=red ! video/x-raw,format=I420,width=160,height=120,framerate=20/1 ! "
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=1 ! rtph264pay name=pay0 config-interval=1 )")
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


def start_rtsp(port: int) -> subprocess.Popen[str]:
    """GStreamer's RTSP server, in the system's Python; its packages are Debian's."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no /usr/bin/python3 for GStreamer's RTSP server")
    process = subprocess.Popen(
        [python, "-c", RTSP_SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        process.kill()
        process.wait()
        pytest.skip("GStreamer's RTSP server is not installed: apt install python3-gi gir1.2-gst-rtsp-server-1.0 ...")
    return process


@pytest.fixture
def rtsp() -> Iterator[tuple[int, Callable[[], None], Callable[[], None]]]:
    """Its port, and functions that kill and start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [start_rtsp(port)]

    def kill() -> None:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        running.clear()

    yield port, kill, lambda: running.append(start_rtsp(port))
    kill()


@pytest.mark.slow
def test_rtsp_server_that_is_killed_and_returns(
    rtsp: tuple[int, Callable[[], None], Callable[[], None]], capfd: pytest.CaptureFixture[str]
) -> None:
    port, kill, start = rtsp
    with open_source(f"rtsp://admin:s3cret@127.0.0.1:{port}/live#timeout=4") as source:
        assert isinstance(source, NetworkSource)
        assert source.live
        assert source.name == f"rtsp://***@127.0.0.1:{port}/live"
        frames = iter(source)
        first = next(frames)
        red, green, blue = first.pixels.reshape(-1, 3).mean(axis=0)
        assert red > 200
        assert max(green, blue) < 60
        kill()
        threading.Timer(1.0, start).start()
        seen = first
        for frame in islice(frames, 500):
            if source.reconnects:
                break
            seen = frame
        assert frame.metadata["reconnects"] == 1
        assert frame.index == seen.index + 1
        assert frame.timestamp > seen.timestamp
    assert "s3cret" not in "".join(capfd.readouterr())
