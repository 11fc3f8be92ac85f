"""`edgemamba doctor`: true on this machine, and with things taken away."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from edgemamba.runtime import native
from edgemamba.runtime.cli import main
from edgemamba.runtime.diagnosis import Finding, diagnose
from edgemamba.runtime.errors import NativeLibraryError


def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose()}


def test_says_what_this_machine_has() -> None:
    import onnxruntime

    found = findings()
    assert found["libedgemamba"].usable
    assert found["ort-cpu"].usable
    assert found["ort-function"].usable
    assert found["instruction set"].detail.startswith(native.isa())
    assert found["onnxruntime"].detail.startswith(onnxruntime.__version__)
    assert found["Python"].detail.startswith(sys.version.split()[0])


def test_decoders_are_those_that_pydicom_would_use() -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels import get_decoder

    found = findings()
    assert found["pydicom"].detail == pydicom.__version__
    assert found["Explicit VR Little Endian"].usable
    assert found["JPEG 2000"].usable == get_decoder(pydicom.uid.JPEG2000).is_available
    assert found["HTJ2K"].usable == get_decoder(pydicom.uid.HTJ2K).is_available
    syntaxes = [finding for finding in diagnose() if finding.section == "DICOM"]
    assert len({finding.name for finding in syntaxes}) == len(syntaxes) > 10, "names stay apart"


def test_what_cannot_be_used_has_a_reason_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "cv2", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)

    def absent() -> object:
        raise NativeLibraryError("libedgemamba.so is not installed; install a compiler")

    monkeypatch.setattr(native, "load_library", absent)
    found = findings()
    for name, remedy in {
        "libedgemamba": "install a compiler",
        "ort-cpu": 'pip install "edgemamba[cpu]"',
        "ort-function": 'pip install "edgemamba[cpu]"',
        "OpenCV": 'pip install "edgemamba[video]"',
        "pydicom": 'pip install "edgemamba[dicom]"',
    }.items():
        assert found[name].usable is False
        assert found[name].detail
        assert found[name].remedy == remedy


def test_a_missing_decoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    uid = pytest.importorskip("pydicom.uid")
    import pydicom.pixels

    class Missing:
        is_available = False

        def __init__(self, *missing: str) -> None:
            self.missing_dependencies = list(missing)

    lossless = Missing("gdcm - requires gdcm>=3.0.10", "pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-libjpeg>=2.1")
    jpeg_ls = Missing("gdcm - requires gdcm>=3.0.10", "pyjpegls - requires pyjpegls>=1.2")

    def get_decoder(syntax: Any) -> Missing:
        if syntax not in (uid.JPEGLossless, uid.JPEGLSLossless):
            raise NotImplementedError
        return lossless if syntax == uid.JPEGLossless else jpeg_ls

    monkeypatch.setattr(pydicom.pixels, "get_decoder", get_decoder)
    remedies = [f.remedy for f in diagnose() if f.section == "DICOM" and not f.usable]
    assert remedies == ['pip install "edgemamba[dicom-gdcm]"', 'pip install "edgemamba[dicom]"']


def test_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert ended.value.code == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"section", "name", "usable", "detail", "remedy"} == set(listed[0])
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for finding in ("ort-cpu", "OpenCV FFMPEG", "native library"):
        assert finding in text


def test_exit_1_where_nothing_can_run_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1


def test_imports_neither_torch_nor_onnx() -> None:
    script = (
        "import sys\nfrom edgemamba.runtime.diagnosis import diagnose\nlist(diagnose())\n"
        "sys.exit(', '.join({'torch', 'onnx'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
