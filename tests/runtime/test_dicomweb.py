"""The DICOMweb source, with Orthanc's DICOMweb plugin on loopback."""

from __future__ import annotations

import contextlib
import http.server
import logging
import shutil
import socket
import ssl
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dicomweb_client")
import pydicom
from pydicom.uid import generate_uid
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import Orthanc, make_series, orthanc, run

from edgemamba.runtime.dicom_network import web
from edgemamba.runtime.dicom_network.web import first_part
from edgemamba.runtime.errors import MissingExtraError, SourceError
from edgemamba.runtime.privacy import hashed
from edgemamba.runtime.sources import open_source
from edgemamba.runtime.sources.dicomweb import Instance, in_slice_order, open_dicomweb

STUDY, CINE_STUDY = generate_uid(), generate_uid()


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with a study of two CT series and a report, and a study of one cine."""
    folder = tmp_path_factory.mktemp("orthanc")
    with orthanc(folder) as server:
        server.upload(*make_series(folder / "ct", 6, study=STUDY))
        server.upload(*make_series(folder / "short", 2, study=STUDY, number=9))
        report = pydicom.dcmread(dicom_file("reportsi.dcm"))
        report.StudyInstanceUID = STUDY
        report.save_as(folder / "report.dcm")
        cine = pydicom.dcmread(dicom_file("examples_ybr_color.dcm"))
        cine.StudyInstanceUID = CINE_STUDY
        cine.save_as(folder / "cine.dcm")
        server.upload(folder / "report.dcm", folder / "cine.dcm")
        server.folder = folder
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.01)


def url(peer: Orthanc, path: str, *, secret: str = "tester:pass%3Aw%40rd@", port: int | None = None) -> str:
    return f"dicomweb://{secret}127.0.0.1:{port or peer.http_port}/dicom-web/studies/{path}"


def uids(folder: Path) -> list[str]:
    """Of a series' files, by position in space."""
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    return [str(item.SOPInstanceUID) for item in sorted(datasets, key=lambda item: item.ImagePositionPatient[2])]


def test_study_in_slice_order(peer: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemamba.runtime.sources import dicomweb

    monkeypatch.setattr(dicomweb, "_PAGE", 4)  # so that the first series takes two answers
    with open_dicomweb(url(peer, STUDY)) as source:
        frames = list(source)
        assert len(list(source)) == 8  # it can be iterated again
    expected = [*uids(peer.folder / "ct"), *uids(peer.folder / "short")]
    assert [frame.source for frame in frames] == [hashed(uid) for uid in expected]
    assert [frame.index for frame in frames] == list(range(8))
    with open_source(dicom_file("CT_small.dcm")) as original:
        pixels = next(iter(original)).pixels
    assert all((frame.pixels == pixels).all() for frame in frames)
    assert source.skipped.count == 0
    assert (source.live, source.describe()["instances"]) == (False, 8)


def test_one_series(peer: Orthanc) -> None:
    series = pydicom.dcmread(next((peer.folder / "short").iterdir())).SeriesInstanceUID
    with open_dicomweb(url(peer, f"{STUDY}/series/{series}")) as source:
        assert [frame.source for frame in source] == [hashed(uid) for uid in uids(peer.folder / "short")]


def test_cine_keeps_its_clock(peer: Orthanc) -> None:
    with open_dicomweb(url(peer, CINE_STUDY)) as source, open_source(dicom_file("examples_ybr_color.dcm")) as original:
        for frame, expected in zip(source, original, strict=True):
            assert (frame.pixels == expected.pixels).all()
            assert frame.timestamp == pytest.approx(expected.timestamp)
            assert frame.metadata == expected.metadata


def test_too_large_instances_are_skipped(peer: Orthanc) -> None:
    with (
        open_dicomweb(url(peer, f"{STUDY}?max_mb=0.02")) as source,
        pytest.raises(SourceError, match=r"none of its 8 pictures can be read; uid-\w+: it is larger than 0 MiB"),
    ):
        list(source)
    assert source.skipped.count == 8


def test_nothing_identifying_is_shown(
    peer: Orthanc, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("edgemamba.runtime").setLevel(logging.DEBUG)
    with open_dicomweb(url(peer, STUDY)) as source:
        shown = "".join(repr(frame) for frame in source) + str(source.describe())
    with pytest.raises(SourceError) as unknown:
        open_dicomweb(url(peer, "1.2.3.4.5.6"))
    with pytest.raises(SourceError) as wrong:
        open_dicomweb(url(peer, STUDY, secret="tester:false-word@"))
    shown += str(unknown.value) + str(wrong.value) + caplog.text + "".join(capfd.readouterr())
    assert "HTTP 401" in str(wrong.value)
    assert "EDGEMAMBA_DICOMWEB_USER" in str(wrong.value)
    for secret in ("Secret", "SECRET", "pass:w@rd", "pass%3A", "false-word", STUDY, "1.2.3.4.5.6"):
        assert secret not in shown


def test_credentials_from_the_environment(peer: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMAMBA_DICOMWEB_USER", peer.user)
    monkeypatch.setenv("EDGEMAMBA_DICOMWEB_PASSWORD", peer.password)
    with open_dicomweb(url(peer, CINE_STUDY, secret="")) as source:
        assert len(list(source)) == 30


class Proxy:
    """In front of a service: turns away the first request for each path, and everything from the ``limit``-th on."""

    def __init__(self, port: int, limit: int = 1 << 30, tls: ssl.SSLContext | None = None) -> None:
        seen: Counter[str] = Counter()
        outer = self
        self.requests = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                seen[self.path] += 1
                if seen[self.path] == 1 or outer.requests > limit:
                    self.send_error(503)
                    return
                headers = {name: self.headers[name] for name in ("Authorization", "Accept")}
                request = urllib.request.Request(f"http://127.0.0.1:{port}{self.path}", headers=headers)
                with urllib.request.urlopen(request) as answer:
                    body = answer.read()
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers["Content-Type"])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_tries_again(peer: Orthanc) -> None:
    proxy = Proxy(peer.http_port)
    with open_dicomweb(url(peer, STUDY, port=proxy.port)) as source:
        assert len(list(source)) == 8
    proxy.close()
    assert proxy.requests == 2 * (1 + 2 + 8)  # series, instances of two, and each of them: twice


def test_service_that_falls_silent(peer: Orthanc) -> None:
    proxy = Proxy(peer.http_port, limit=2 * (1 + 2 + 3))
    source = open_dicomweb(url(peer, STUDY, port=proxy.port))
    with pytest.raises(SourceError, match=r"HTTP 503 .*\(5 attempts\); after 3 frames"):
        list(source)
    source.close()
    proxy.close()
    with pytest.raises(SourceError, match=r"dicomweb://127\.0\.0\.1:\d+/dicom-web: the connection fails"):
        open_dicomweb(url(peer, STUDY, port=proxy.port))


def test_service_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(SourceError, match="does not answer in time"):
            open_dicomweb(f"dicomweb://127.0.0.1:{port}/studies/1.2.3?timeout=0.05")


def test_encrypted(tmp_path: Path, peer: Orthanc) -> None:
    """TLS with a certificate that is not of a known authority: refused, unless it is named."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
    )
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy = Proxy(peer.http_port, tls=context)
    target = url(peer, CINE_STUDY, port=proxy.port).replace("dicomweb://", "dicomwebs://")
    with pytest.raises(SourceError, match="certificate is not trusted"):
        open_dicomweb(target)
    with pytest.raises(SourceError, match="does not speak TLS"):
        open_dicomweb(target.replace(str(proxy.port), str(peer.http_port)))
    with open_dicomweb(f"{target}?ca={certificate}") as source:
        assert len(list(source)) == 30
    proxy.close()


class Answering:
    """A stand-in for a service: gives the same body for everything that it is asked."""

    def __init__(self, body: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/dicom+json")
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"dicomweb://127.0.0.1:{self._server.server_address[1]}/studies/1.2.3"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>hello</html>", "the answer is no DICOMweb"),
        (b"7", r"the answer is no DICOMweb \(no list\)"),
        (b'"text"', r"the answer is no DICOMweb \(no list\)"),
        (b"[1, null, [], {}]", "the service knows no picture of it"),
        (b'[{"0020000E": {"Value": 3}}, {"0020000E": {"Value": [{"a": 1}]}}]', "the service knows no picture of it"),
        (b'[{"0020000E": {"Value": ["../../etc"]}}]', "the service knows no picture of it"),
        (b"[" + b" " * (65 << 20) + b"]", "an answer of more than 64 MiB"),
    ],
    ids=["html", "number", "text", "oddities", "values", "path", "huge"],
)
def test_answers_that_are_none(body: bytes, message: str) -> None:
    with contextlib.closing(Answering(body)) as service, pytest.raises(SourceError, match=message):
        open_dicomweb(service.url)


def test_instances_that_are_none() -> None:
    """The search is in order; what is fetched is the search's JSON again, and no instance."""
    entry = b'{"0020000E": {"Value": ["1.2"]}, "00080018": {"Value": ["1.3"]}, "00200032": {"Value": ["x", 2, null]}}'
    with contextlib.closing(Answering(b"[" + entry + b"]")) as service:
        source = open_dicomweb(service.url)
        with pytest.raises(SourceError, match=r"none of its 1 pictures can be read; uid-\w+: this is not a DICOM file"):
            list(source)
        source.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("dicomweb://host/base", "name a study"),
        ("dicomweb://u:secret@host/studies/12a", "UID is not made of digits and dots"),
        ("dicomweb://u:secret@host:99999/studies/1.2", "port is not a number"),
        ("dicomweb:///studies/1.2", "give dicomweb://host:port/base/studies/UID"),
        ("dicomweb://u:secret@host/studies/1.2?color=1", "unknown option color; known are ca, max_mb, timeout"),
        ("dicomweb://host/studies/1.2?timeout=soon", "timeout=soon: give a positive number"),
        ("dicomweb://host/studies/1.2?ca=/none.pem", "ca=/none.pem is no file"),
    ],
)
def test_bad_urls(address: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_dicomweb(address)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    with pytest.raises(
        MissingExtraError, match="dicomweb_client is needed for DICOMweb and is not installed: pip install"
    ):
        open_dicomweb("dicomweb://127.0.0.1/studies/1.2.3")


def test_slice_order() -> None:
    axial = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    instances = [Instance("1", f"1.{i}", (i * 2) % 5, (0.0, 0.0, -3.0 * i), axial) for i in range(5)]
    assert [item.uid for item in in_slice_order(instances)] == ["1.4", "1.3", "1.2", "1.1", "1.0"]
    coronal = Instance("1", "1.9", 9, (0.0, 5.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    assert [item.number for item in in_slice_order([*instances, coronal])] == [0, 1, 2, 3, 4, 9]
    unplaced = [Instance("1", "1.8", None), *instances[:2], Instance("1", "1.7", 1)]
    assert [item.uid for item in in_slice_order(unplaced)] == ["1.0", "1.7", "1.1", "1.8"]
    assert in_slice_order([]) == []


BODY = b"DICM\r\n--nearly\r\n\r\n--bound" * 20
MESSAGE = b"preamble\r\n--boundary\r\nContent-Type: application/dicom\r\n\r\n" + BODY + b"\r\n--boundary--\r\nrest"


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_multipart(size: int) -> None:
    pieces = [MESSAGE[i : i + size] for i in range(0, len(MESSAGE), size)]
    assert b"".join(first_part(iter(pieces), b"boundary")) == BODY
    for cut in (b"", MESSAGE[:20], MESSAGE[: MESSAGE.rindex(b"--boundary")]):
        with pytest.raises(ValueError):
            b"".join(first_part(iter([cut[i : i + size] for i in range(0, len(cut), size)]), b"boundary"))
    with pytest.raises(ValueError):
        b"".join(first_part(iter([b"x" * (1 << 16)] * 100), b"boundary"))
