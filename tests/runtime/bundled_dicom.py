"""The DICOM files that come with pydicom's wheel."""

from __future__ import annotations

from pathlib import Path

import pytest


def dicom_file(name: str) -> Path:
    """One of them. Skips the test where pydicom is not installed."""
    data = pytest.importorskip("pydicom.data")
    return Path(str(data.get_testdata_file(name, download=False)))


def dicom_folder() -> Path:
    """Where they lie."""
    return dicom_file("CT_small.dcm").parent
