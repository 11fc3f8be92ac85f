"""`edgemamba run` over files full of what names a patient, into every sink at once: nothing of it comes out unless asked for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("highdicom")
pytest.importorskip("onnxruntime")
import pydicom
from runtime.dicom_peers import free_port, listening, run
from runtime.test_dicom_objects import OTHERS, SECRETS, objects, patient_file
from runtime.waiting import wait_for

PAGES = ("", "state.json", "frame.jpg", "metrics")
# In the letters of both character sets that are in play; "F" and the like stand in every file.
NAMING = [value for value in (*SECRETS.values(), *OTHERS.values()) if len(value) > 2]


def everything(bundle: Path, folder: Path, count: int, *arguments: str) -> bytes:
    """All that a run over ``folder/in`` says, serves and writes to ``folder/out``: bytes to be searched."""
    out, port = folder / "out", free_port()
    out.mkdir()
    sinks = ["o.jsonl", "o.csv", "o.mkv", "pictures"]
    command = [
        sys.executable,
        "-m",
        "edgemamba",
        "run",
        str(bundle),
        "--source",
        f"watch://{folder}/in?existing=1&settle=0.1&patience=0.1",
    ]
    command += [part for name in sinks for part in ("--out", str(out / name))]
    command += ["--out", f"dicom://{out}/objects", "--web", str(port), "--json", *arguments]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        wait_for(lambda: listening(port) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        wait_for(lambda: (out / "o.csv").read_text().count("\n") == 1 + count)
        served = b""
        for page in PAGES:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=20) as answer:
                served += str(answer.headers).encode() + answer.read()
        process.send_signal(signal.SIGTERM)
        said = b"".join(process.communicate(timeout=60))
    finally:
        process.kill()
    assert process.returncode == 130, said
    written = b"".join(path.name.encode() + path.read_bytes() for path in out.rglob("*") if path.is_file())
    return served + said + written


def phi_folder(folder: Path) -> list[pydicom.Dataset]:
    """Three good instances of different kinds, and one that is cut short; named as archives do, by their UIDs."""
    folder.mkdir()
    made = []
    for name in ("CT_small.dcm", "examples_overlay.dcm", "SC_rgb_small_odd.dcm", "MR_small.dcm"):
        path = folder / "draft"
        dataset = patient_file(path, name)
        path.rename(folder / f"{dataset.SOPInstanceUID}.dcm")
        made.append(dataset)
    torso = folder / f"{made.pop().SOPInstanceUID}.dcm"
    torso.write_bytes(torso.read_bytes()[:-900])
    return made


def test_nothing_of_the_patient_leaves(colour_bundle: Path, tmp_path: Path) -> None:
    made = phi_folder(tmp_path / "in")
    found = everything(colour_bundle, tmp_path, len(made))
    assert found.count(b"skipped: ") == 1
    for value in NAMING:
        assert value.encode() not in found, value
        assert value.encode("latin-1") not in found, value
    outside = tmp_path / "out" / "objects"
    uids = [str(dataset[name].value) for dataset in made for name in ("SOPInstanceUID", "StudyInstanceUID")]
    dicom = b"".join(path.read_bytes() for path in outside.iterdir())
    for uid in uids:  # which DICOM objects retain, as they state, and nothing else
        assert uid.encode() in dicom
        assert found.count(uid.encode()) == dicom.count(uid.encode())


def test_its_dicom_objects_refer_to_the_files(colour_bundle: Path, tmp_path: Path) -> None:
    made = phi_folder(tmp_path / "in")
    found = everything(colour_bundle, tmp_path, len(made), "--include-phi")
    assert SECRETS["PatientID"].encode() in found
    folder = tmp_path / "out" / "objects"
    sources = {str(dataset.SOPInstanceUID): dataset for dataset in made}
    captures, reports = objects(folder, "sc"), objects(folder, "sr")
    assert len(captures) == len(reports) == len(made)
    for written in captures:
        (item,) = written.SourceImageSequence
        source = sources[item.ReferencedSOPInstanceUID]
        assert item.ReferencedSOPClassUID == source.SOPClassUID
        assert (written.StudyInstanceUID, written.PatientID) == (source.StudyInstanceUID, source.PatientID)
    for written in reports:
        (study,) = written.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        (item,) = series.ReferencedSOPSequence
        source = sources[item.ReferencedSOPInstanceUID]
        assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (source.StudyInstanceUID, source.SeriesInstanceUID)
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (apt-get install dicom3tools)")
    for path in folder.iterdir():
        assert "Error -" not in run("dciodvfy", "-new", path).stderr, path.name
