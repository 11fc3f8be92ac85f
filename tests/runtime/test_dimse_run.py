"""`edgemamba run` between a modality and an archive, as a process that is interrupted, killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
pytest.importorskip("onnxruntime")
import pydicom
from runtime.dicom_peers import client, free_port, listening, make_series, ready, storescp
from runtime.waiting import wait_for


class Running:
    """A process of `edgemamba run` that receives on :attr:`port`."""

    def __init__(self, bundle: Path, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        source = f"dimse://EM@127.0.0.1:{self.port}?folder={folder / 'spool'}"
        environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-m", "edgemamba", "run", str(bundle), "--source", source, *arguments]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        wait_for(lambda: listening(self.port) or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """Send a signal; the exit code, and what was said on stderr."""
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextlib.contextmanager
def running(bundle: Path, folder: Path, *arguments: str) -> Iterator[Running]:
    server = Running(bundle, folder, *arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def send(port: int, paths: list[Path]) -> list[str]:
    """The SOP Instance UIDs of those that were acknowledged."""
    association = client(port)
    done = []
    for path in paths:
        with contextlib.suppress(RuntimeError):
            if association.send_c_store(path).get("Status", -1) == 0:
                done.append(str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID))
    if association.is_established:
        association.release()
    return done


def referred(folder: Path) -> list[str]:
    """The instances that reports in a folder are about."""
    found = []
    for path in folder.iterdir():
        evidence = pydicom.dcmread(path).CurrentRequestedProcedureEvidenceSequence[0]
        found.append(str(evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID))
    return found


def test_from_a_modality_to_an_archive(tmp_path: Path, colour_bundle: Path) -> None:
    """Ctrl-C ends it at once though it waits, with everything sent and nothing of the patient said."""
    paths = make_series(tmp_path / "series", 5)
    with storescp(tmp_path / "in") as archive:
        out = f"dimse://STORESCP@127.0.0.1:{archive}?queue={tmp_path}/queue&objects=sr"
        lines = tmp_path / "out.jsonl"
        with running(colour_bundle, tmp_path, "--out", out, "--out", str(lines)) as server:
            acknowledged = send(server.port, paths)
            wait_for(lambda: lines.exists() and len(lines.read_text().splitlines()) == 5)
            code, said = server.end(signal.SIGINT)
        assert code == 130
        assert "does not answer" not in said
        assert sorted(referred(tmp_path / "in")) == sorted(acknowledged)
    assert len(acknowledged) == 5
    assert ready(tmp_path / "spool") == []
    shown = said + lines.read_text()
    assert "5 sent, 0 wait" in said
    assert not any(secret in shown for secret in ("Secret", "SECRET", *acknowledged))
    assert all(json.loads(line)["source"].startswith("uid-") for line in lines.read_text().splitlines())


def test_killed_and_started_again(tmp_path: Path, colour_bundle: Path) -> None:
    """Each acknowledged instance has its report in the end, some perhaps twice: what was not confirmed is given again."""
    paths = make_series(tmp_path / "series", 30)
    out = f"dicom://{tmp_path}/reports?objects=sr"
    with running(colour_bundle, tmp_path, "--out", out) as server:
        acknowledged = send(server.port, paths[:20])
        wait_for(lambda: len(list((tmp_path / "reports").glob("*.dcm"))) >= 3)
        code, _ = server.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    with running(colour_bundle, tmp_path, "--out", out) as server:
        acknowledged += send(server.port, paths[20:])
        wait_for(lambda: not ready(tmp_path / "spool"))
        code, _ = server.end(signal.SIGTERM)
    assert code == 130
    assert len(acknowledged) == 30
    assert set(referred(tmp_path / "reports")) == set(acknowledged)


def test_bad_addresses_are_one_line(tmp_path: Path, colour_bundle: Path) -> None:
    def said(*arguments: str) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "edgemamba", "run", str(colour_bundle), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr.splitlines()

    with running(colour_bundle, tmp_path) as server:
        code, lines = said("--source", f"dimse://EM@127.0.0.1:{server.port}?folder={tmp_path}/other")
        assert (code, len(lines)) == (2, 1)
        assert re.search(r"dimse://EM@127\.0\.0\.1:\d+ cannot listen: Address already in use", lines[0])
    code, lines = said("--source", f"dicomweb://u:secret@127.0.0.1:{free_port()}/base/studies/1.2.3?timeout=1")
    assert (code, len(lines)) == (2, 1)
    assert "secret" not in lines[0]
    assert "1.2.3" not in lines[0]
