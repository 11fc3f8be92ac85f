"""The live page and the metrics, over real sockets and in a real Chromium."""

from __future__ import annotations

import gc
import http.client
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.waiting import wait_for

from edgemamba.runtime import stream
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.sinks import open_sink
from edgemamba.runtime.sinks.web import WebSink
from edgemamba.runtime.sources import Source
from edgemamba.runtime.web.address import Address, parse_address

cv2 = pytest.importorskip("cv2")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


class MockCamera(Source):
    """Frames of one colour after the other at 50 a second, until it is told to end."""

    live = True

    def __init__(self) -> None:
        super().__init__("mock <b>camera</b>")
        self.end = threading.Event()
        self.given = 0

    def __iter__(self) -> Iterator[Frame]:
        while not self.end.wait(0.02):
            pixels = np.zeros((240, 320, 3), np.uint8)
            pixels[..., (self.given // 25) % 3] = 255
            metadata = {"modality": "US", "patient_name": "Doe^Jane"}
            yield Frame(pixels, self.given, self.given / 50, self.name, metadata)
            self.given += 1


class Running:
    """A stream in a thread of its own, with one web sink."""

    def __init__(self, engine: Any, sink: Any) -> None:
        self.camera = MockCamera()
        self.results = stream(self.camera, engine, sinks=[sink])
        self.sink = sink
        self.port = sink._server.address.port
        self.count = 0
        self.thread = threading.Thread(target=self._consume)
        self.thread.start()

    def _consume(self) -> None:
        for _ in self.results:
            self.count += 1

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def stop(self) -> None:
        self.camera.end.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def run(colour_engine: Any) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(uri: str = "web://127.0.0.1:0", **options: Any) -> Running:
        started.append(Running(colour_engine, open_sink(uri, **options)))
        wait_for(lambda: started[-1].count > 2)
        return started[-1]

    yield start
    for running in started:
        running.stop()
    gc.collect()
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgemamba-")])


# ------------------------------------------------------------------------------------------------------------------- pages


def test_the_page_is_self_contained(run: Any) -> None:
    status, headers, body = run().get("/")
    assert status == 200
    page = body.decode()
    assert "src=" not in page.replace("image.src", "")
    assert 'href="http' not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"


def test_the_latest_frame_and_its_classes(run: Any) -> None:
    running = run()
    status, headers, body = running.get("/frame.jpg")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (240, 320, 3)
    facts = json.loads(headers["x-result"])
    assert facts["top"][0][0] in ("red", "green", "blue")
    colour = "bgr"[int(picture[200, 160].argmax())]
    assert facts["top"][0][0][0] == colour
    number = int(headers["x-number"])
    again = int(running.get(f"/frame.jpg?after={number}")[1]["x-number"])
    assert again > number


def test_the_figures(run: Any) -> None:
    running = run()
    wait_for(lambda: json.loads(running.get("/state.json")[2])["samples"])
    state = json.loads(running.get("/state.json")[2])
    assert (state["model"], state["backend"], state["source"]) == ("colour", "numpy", "mock <b>camera</b>")
    assert (state["live"], state["strategy"], state["ended"], state["parity"]) == (True, "DROP_OLDEST", False, None)
    assert state["frames"] > 0
    assert set(state["stages_ms"]) == {"source", "preprocess", "engine", "sink"}
    sample = state["samples"][-1]
    assert set(sample) == {"n", "fps", "p50", "p95", "dropped", "skipped"}
    assert sample["fps"] > 0
    later = json.loads(running.get(f"/state.json?since={sample['n']}")[2])
    assert all(step["n"] > sample["n"] for step in later["samples"])


def test_no_patient_attribute_is_served(run: Any) -> None:
    running = run()
    everything = b"".join(running.get(path)[2] for path in ("/", "/state.json", "/metrics"))
    everything += json.dumps(running.get("/frame.jpg")[1]).encode()
    assert b"Doe" not in everything


@pytest.mark.parametrize(
    ("path", "status"), [("/nowhere", 404), ("/frame.jpg?after=x", 422), ("/docs", 404), ("/openapi.json", 404)]
)
def test_other_paths(path: str, status: int, run: Any) -> None:
    assert run().get(path)[0] == status


# ----------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("uri", ["web://127.0.0.1:0", "metrics://127.0.0.1:0"])
def test_metrics_are_what_prometheus_reads(uri: str, run: Any) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    running = run(uri)
    status, headers, body = running.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    assert families["edgemamba_results"].samples[0].value > 0
    assert families["edgemamba_frames_dropped"].type == "counter"
    classes = {sample.labels["class"] for sample in families["edgemamba_class_results"].samples}
    assert classes <= {"red", "green", "blue"}
    stages = families["edgemamba_stage_seconds"]
    assert stages.type == "histogram"
    engine = [s for s in stages.samples if s.labels.get("stage") == "engine" and s.name.endswith("_bucket")]
    tallies = [sample.value for sample in engine]
    assert tallies == sorted(tallies)
    assert engine[-1].labels["le"] == "+Inf"
    count = next(s.value for s in stages.samples if s.labels.get("stage") == "engine" and s.name.endswith("_count"))
    assert count == tallies[-1] > 0
    assert {s.labels["model"] for s in families["edgemamba_stream_info"].samples} == {"colour"}
    if uri.startswith("metrics"):
        assert running.get("/")[0] == 404


# ------------------------------------------------------------------------------------------------------------------ access


def test_beyond_this_machine_a_token_is_needed(run: Any) -> None:
    running = run("web://0.0.0.0:0")
    token = running.sink.url.partition("?token=")[2]
    assert len(token) >= 32
    assert running.sink.url_elsewhere == f"http://{socket.gethostname()}:{running.port}/?token={token}"
    for path in ("/", "/frame.jpg", "/state.json", "/metrics"):
        assert running.get(path)[0] == 401
        assert running.get(f"{path}?token=wrong")[0] == 401
        assert running.get(path, Authorization=f"Bearer {token}")[0] == 200
    status, headers, _ = running.get(f"/?token={token}")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert running.get("/", Cookie=cookie.partition(";")[0])[0] == 200
    assert running.get("/", Cookie="edgemamba-1=x")[0] == 401
    assert token not in running.sink.describe()


def test_a_token_of_ones_own(run: Any) -> None:
    running = run("web://127.0.0.1:0", token="correct-horse")
    assert running.get("/")[0] == 401
    assert running.get("/", Authorization="Bearer correct-horse")[0] == 200


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("short", "the web token has 5 characters; 8 or more are needed"),
        ("with a space", "letters, digits and -._~ only"),
        ("semi;colon", "letters, digits and -._~ only"),
        ("schlüsselwort", "letters, digits and -._~ only"),
        ("line\nbreak", "letters, digits and -._~ only"),
    ],
)
def test_tokens_that_keep_nobody_out_or_break_a_header(token: str, reason: str, colour_engine: Any) -> None:
    with pytest.raises(SinkError, match=reason):
        stream(MockCamera(), colour_engine, sinks=[open_sink("web://127.0.0.1:0", token=token)])


def test_a_foreign_name_is_not_this_machine(run: Any) -> None:
    """DNS rebinding: a page from elsewhere whose name was pointed at 127.0.0.1."""
    running = run()
    assert running.get("/state.json", Host="evil.example:80")[0] == 403
    for name in ("localhost", "127.0.0.1:8080", "[::1]:99"):
        assert running.get("/state.json", Host=name)[0] == 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", Address("127.0.0.1", 8080)),
        (":8080", Address("127.0.0.1", 8080)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("[::1]:9", Address("::1", 9)),
        ("jetson.local:9", Address("jetson.local", 9)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert address.is_loopback == (address.host in ("127.0.0.1", "::1"))


@pytest.mark.parametrize("text", ["", "host", "8080x", "host:", "1:2:3", "::1:9", "h:70000", "h:-1", "h:²"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(SinkError, match=r"is no address to listen on; give \[HOST:\]PORT"):
        WebSink(text)


def test_a_port_in_use_is_one_line(run: Any, colour_engine: Any) -> None:
    running = run()
    with pytest.raises(SinkError, match=f"port {running.port} of 127.0.0.1 is in use; choose another address"):
        stream(MockCamera(), colour_engine, sinks=[open_sink(f"web://127.0.0.1:{running.port}")])


def test_a_host_that_is_not_ours(colour_engine: Any) -> None:
    with pytest.raises(SinkError, match=r"port 8080 of 192\.0\.2\.1 cannot be listened on"):
        stream(MockCamera(), colour_engine, sinks=[open_sink("web://192.0.2.1:8080")])


# ------------------------------------------------------------------------------------------------------------- bad clients


def test_garbage_and_slow_clients_do_not_disturb_the_stream(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemamba.runtime.web.server._PATIENCE", 1.0)
    running = run()
    generator = np.random.default_rng(0)
    clients = []
    for kind in range(120):  # more than may connect
        client = socket.create_connection(("127.0.0.1", running.port), timeout=20)
        clients.append(client)
        try:
            if kind % 4 == 0:
                client.sendall(generator.bytes(2000))
            elif kind % 4 == 1:
                client.sendall(b"GET /frame.jpg HTTP/1.1\r\nHost: localhost\r\nX-Never-Ends: ")
            elif kind % 4 == 2:
                client.sendall(b"GET /frame.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)  # and never read
            else:
                client.sendall(b"POST /state.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\nx")
        except OSError:
            pass  # hung up on
    connections = running.sink._server._server.server_state.connections
    before, most = running.count, 0
    while running.count < before + 100:
        most = max(most, len(connections))
        time.sleep(0.01)
    assert 0 < most <= 64 + 17  # those that were just let in, and are about to be hung up on
    wait_for(lambda: len(connections) < 10)
    assert running.get("/state.json")[0] == 200
    for client in clients:
        client.close()


def test_nothing_is_left_open(colour_engine: Any) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("descriptors are listed on Linux only")

    def once() -> None:
        running = Running(colour_engine, open_sink("web://127.0.0.1:0"))
        wait_for(lambda: running.count > 1)
        running.get("/frame.jpg")
        running.stop()

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        once()
    gc.collect()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


# ---------------------------------------------------------------------------------------------------------------- Chromium

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_the_page_in_chromium(run: Any, browser: Any) -> None:
    running = run("web://0.0.0.0:0")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url)
            if "127.0.0.1" not in request.url and not request.url.startswith(("data:", "blob:"))
            else None
        ),
    )
    page.goto(running.sink.url)
    assert page.url == f"http://127.0.0.1:{running.port}/"  # the token has left the address bar
    wait_for(lambda: page.evaluate("document.querySelectorAll('#classes li').length === 3"))
    wait_for(lambda: page.evaluate("document.querySelector('#picture').naturalWidth === 320"))
    wait_for(lambda: page.evaluate("document.querySelector('#status').textContent === 'live'"))
    assert page.inner_text("#model") == "colour · fp32"
    assert page.inner_text("#source") == "mock <b>camera</b>"  # shown as text, not as markup
    assert "never verified" in page.inner_text("#parity")
    wait_for(lambda: page.evaluate("document.querySelectorAll('#latency polyline').length === 2"))
    assert len(page.query_selector_all("#stages tr")) == 5
    first = page.inner_text("#classes li:first-child span:nth-child(2)")
    assert first in ("red", "green", "blue")
    wait_for(lambda: page.evaluate(f"document.querySelector('#classes li span').textContent !== '{first}'"))
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1280
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    running.stop()
    wait_for(
        lambda: page.evaluate(
            "['ended', 'no answer from the stream'].includes(document.querySelector('#status').textContent)"
        )
    )
    page.close()
    network = [text for text in complaints if "ERR_" not in text and "Failed to load" not in text]
    assert network == []


def test_without_the_token_chromium_sees_nothing(run: Any, browser: Any) -> None:
    running = run("web://0.0.0.0:0")
    page = browser.new_page()
    answer = page.goto(f"http://127.0.0.1:{running.port}/")
    assert answer.status == 401
    assert "token is needed" in page.inner_text("body")
    page.close()
