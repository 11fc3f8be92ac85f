"""Real DICOM peers on loopback: dcmtk's tools and Orthanc, each on a free port and in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid
from runtime.bundled_dicom import dicom_file
from runtime.waiting import Reader, wait_for

from edgemamba.runtime.sources.dimse import open_dimse

ORTHANC_DICOMWEB = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def installed(tool: str) -> str | None:
    """Where a program is; not this environment's own, because pynetdicom brings scripts that are named as dcmtk's programs."""
    own = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and Path(folder) != own]
    return shutil.which(tool, path=os.pathsep.join(folders))


def need(*tools: str) -> None:
    """Skip the test where a tool is not installed."""
    for tool in tools:
        if installed(tool) is None:
            package = "orthanc" if tool == "Orthanc" else "dcmtk"
            pytest.skip(f"{tool} is not installed (apt-get install {package})")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(*command), capture_output=True, text=True, timeout=60)


def words(*command: object) -> list[str]:
    """A command for subprocess, its program as :func:`installed` finds it."""
    program, *arguments = (str(part) for part in command)
    return [installed(program) or program, *arguments]


@contextlib.contextmanager
def receiving(folder: Path, options: str = "") -> Iterator[Reader]:
    reader = Reader(open_dimse(f"dimse://EM@127.0.0.1:0?folder={folder}{options}"))
    try:
        yield reader
    finally:
        reader.close()


def facts(reader: Reader) -> dict[str, Any]:
    return reader.source.describe()


def ready(folder: Path) -> list[Path]:
    return sorted((folder / "ready").iterdir())


def client(port: int, calling: str = "CLIENT") -> Any:
    """An association of pynetdicom's SCU, to see every answer."""
    import pynetdicom

    entity = pynetdicom.AE(calling)
    entity.dimse_timeout = 3  # of a server that was killed
    entity.add_requested_context(pynetdicom.sop_class.CTImageStorage)
    return entity.associate("127.0.0.1", port, ae_title="EM")


# The option by which dcmtk's storescu proposes a transfer syntax; uncompressed ones need none.
_PROPOSE = {
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}


def storescu(
    port: int, *files: Path, calling: str = "STORESCU", called: str = "EM"
) -> subprocess.CompletedProcess[str]:
    """Send files one by one, each in its own transfer syntax; ends at the first that fails."""
    for path in files:
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        option = _PROPOSE.get(syntax, "-x=")
        sent = run("storescu", option, "-aet", calling, "-aec", called, "127.0.0.1", port, path)
        if sent.returncode:
            break
    return sent


def make_series(folder: Path, count: int = 5, *, study: str = "", number: int = 1) -> list[Path]:
    """A CT series of ``count`` slices, written and numbered in an order that is not theirs in space."""
    study = study or generate_uid()
    series = generate_uid()
    frame = generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesNumber = number
        dataset.InstanceNumber = (i * 3) % count + 1
        dataset.ImagePositionPatient = [0.0, 0.0, float(10 * i)]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PatientName, dataset.PatientID = "Secret^Patient", "SECRET-ID"
        path = folder / f"{count - i:03d}.dcm"
        dataset.save_as(path)
        paths.append(path)
    return paths


@contextlib.contextmanager
def process(*command: object, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; ended at the end, and its output shown where the test failed."""
    with (cwd / "peer.log").open("wb") as log:
        child = subprocess.Popen(words(*command), cwd=cwd, stdout=log, stderr=log)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """dcmtk's storage SCP ``STORESCP``, which writes what it receives into ``folder``."""
    need("storescp")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with process("storescp", "--fork", "-aet", "STORESCP", "-od", folder, port, cwd=folder.parent):
        wait_for(lambda: listening(port))
        yield port


@contextlib.contextmanager
def dcmqrscp(folder: Path) -> Iterator[int]:
    """dcmtk's archive ``QRSCP``, which keeps what it is sent in ``folder``."""
    need("dcmqrscp")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = folder.parent / "dcmqrscp.cfg"
    settings.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQRSCP {folder} RW (200, 1024mb) ANY\nAETable END\n"
    )
    with process("dcmqrscp", "-c", settings, cwd=folder.parent):
        wait_for(lambda: listening(port))
        yield port


class Orthanc:
    """A running Orthanc: its DICOM and HTTP ports, and its REST interface."""

    user, password = "tester", "pass:w@rd"
    folder: Path

    def __init__(self, dicom_port: int, http_port: int) -> None:
        self.dicom_port = dicom_port
        self.http_port = http_port

    def rest(self, path: str, data: bytes | None = None) -> Any:
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        url = f"http://127.0.0.1:{self.http_port}{path}"
        manager.add_password(None, url, self.user, self.password)
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        with opener.open(urllib.request.Request(url, data), timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if body[:1] in b"[{" else body

    def upload(self, *paths: Path) -> list[str]:
        return [self.rest("/instances", path.read_bytes())["ID"] for path in paths]


@contextlib.contextmanager
def orthanc(folder: Path, modalities: dict[str, list[Any]] | None = None) -> Iterator[Orthanc]:
    """Orthanc with its DICOMweb plugin, user and password; ``modalities`` are those that it may send to."""
    need("Orthanc")
    if not Path(ORTHANC_DICOMWEB).exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed (apt-get install orthanc-dicomweb)")
    folder.mkdir(parents=True, exist_ok=True)
    peer = Orthanc(free_port(), free_port())
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": "ORTHANC",
        "DicomPort": peer.dicom_port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "HttpPort": peer.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {peer.user: peer.password},
        "DicomModalities": modalities or {},
        "Plugins": [ORTHANC_DICOMWEB],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with process("Orthanc", folder / "orthanc.json", cwd=folder):
        wait_for(lambda: listening(peer.http_port) and listening(peer.dicom_port))
        yield peer
