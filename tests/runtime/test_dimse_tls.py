"""DICOM over TLS, with dcmtk's storescu and storescp and certificates made by openssl."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
from runtime.bundled_dicom import dicom_file
from runtime.dicom_peers import client, facts, free_port, listening, need, process, receiving, run
from runtime.test_dicom_objects import feed, given_up, write_all
from runtime.waiting import wait_for

from edgemamba.runtime import open_source
from edgemamba.runtime.errors import SinkError, SourceError
from edgemamba.runtime.sinks.dicom_objects import open_dicom_sink


class Identity:
    """A key and a certificate of its own for 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        need("openssl")
        self.key, self.certificate = folder / f"{name}.key", folder / f"{name}.pem"
        made = run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.key, "-out", self.certificate),
        )
        assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("ours"), "edgemamba")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("theirs"), "dcmtk")


def send(port: int, trust: Path, *identity: object) -> int:
    """storescu over TLS: its exit code."""
    secure = ("+tls", *identity) if identity else ("+tla",)
    return run(
        "storescu", *secure, "+cf", trust, "-aec", "EM", "127.0.0.1", port, dicom_file("CT_small.dcm")
    ).returncode


def test_storescu_sends_encrypted(tmp_path: Path, ours: Identity, theirs: Identity) -> None:
    need("storescu")
    with receiving(tmp_path, f"&cert={ours.certificate}&key={ours.key}") as reader:
        assert send(reader.source.port, ours.certificate, theirs.key, theirs.certificate) == 0
        reader.wait(1)
        assert not client(reader.source.port).is_established  # in the clear
        with socket.create_connection(("127.0.0.1", reader.source.port)):  # silent: holds up nobody
            assert send(reader.source.port, ours.certificate, theirs.key, theirs.certificate) == 0
        reader.wait(2)
        wait_for(lambda: facts(reader)["garbage"] == 2)


def test_only_certificates_of_the_named_authority(tmp_path: Path, ours: Identity, theirs: Identity) -> None:
    need("storescu")
    with receiving(tmp_path, f"&cert={ours.certificate}&key={ours.key}&ca={theirs.certificate}") as reader:
        assert send(reader.source.port, ours.certificate, ours.key, ours.certificate) != 0
        assert facts(reader)["received"] == 0
        assert send(reader.source.port, ours.certificate, theirs.key, theirs.certificate) == 0
        reader.wait(1)


def test_storescp_is_sent_to_encrypted(
    tmp_path: Path, ours: Identity, theirs: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    need("storescp")
    port = free_port()
    (tmp_path / "in").mkdir()
    secure = ("+tls", theirs.key, theirs.certificate, "+cf", ours.certificate)
    with process("storescp", *secure, "-aet", "STORESCP", "-od", tmp_path / "in", port, cwd=tmp_path):
        wait_for(lambda: listening(port))
        uri = f"dimse://STORESCP@127.0.0.1:{port}?queue={tmp_path}/q&objects=sr&cert={ours.certificate}&key={ours.key}"
        with open_source(dicom_file("CT_small.dcm")) as source:
            sink = open_dicom_sink(f"{uri}&ca={theirs.certificate}")
            write_all(sink, source)
            assert "1 sent, 0 wait" in sink.describe()
            doubting = open_dicom_sink(uri)  # the system's authorities do not know the peer
            feed(doubting, source)
            wait_for(lambda: "does not answer; trying again" in caplog.text)
            assert "0 sent, 1 wait" in given_up(doubting)
    assert len(list((tmp_path / "in").iterdir())) == 1


def test_files_that_are_of_no_use(tmp_path: Path, ours: Identity, theirs: Identity) -> None:
    (tmp_path / "empty.pem").touch()
    for options, message in (
        (f"key={ours.key}", "a receiver with TLS needs a certificate"),
        (f"cert={tmp_path}/nothing.pem", "nothing.pem is no file"),
        (f"cert={ours.certificate}", "no certificate (PEM) with its unencrypted private key"),
        (f"cert={ours.certificate}&key={theirs.key}", "no certificate (PEM) with its unencrypted private key"),
        (f"cert={ours.certificate}&key={ours.key}&ca={tmp_path}/empty.pem", "no certificates (PEM) in it"),
    ):
        with pytest.raises(SourceError, match=re.escape(message)):
            open_source(f"dimse://EM@127.0.0.1:0?folder={tmp_path}/spool&{options}")
    with pytest.raises(SinkError, match=r"ca=nowhere\.pem is no file"):
        open_dicom_sink(f"dimse://EM@127.0.0.1:104?queue={tmp_path}/q&ca=nowhere.pem")
