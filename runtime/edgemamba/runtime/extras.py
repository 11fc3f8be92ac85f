"""Optional dependencies: import them where they are used, and name the extra when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgemamba.runtime.errors import MissingExtraError

# Top-level import name -> the extra of pyproject.toml that brings it.
EXTRA_OF = {
    "cuda": "trt",
    "cv2": "video",
    "dicomweb_client": "dicom",
    "fastapi": "web",
    "highdicom": "dicom",
    "jinja2": "export",
    "lightning": "train",
    "matplotlib": "train",
    "monai": "seg",
    "nibabel": "volumes",
    "nilearn": "demo",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "prometheus_client": "web",
    "pyarrow": "parquet",
    "pydicom": "dicom",
    "pynetdicom": "dicom",
    "requests": "dicom",
    "safetensors": "train",
    "scipy": "seg",
    "tensorboard": "train",
    "tensorrt": "trt",
    "tensorrt_rtx": "trt-rtx",
    "timm": "train",
    "torch": "train",
    "torchmetrics": "train",
    "torchvision": "train",
    "uvicorn": "web",
    "yaml": "train",
}


def require(name: str, *, purpose: str = "") -> ModuleType:
    """Import the module ``name`` (dotted names allowed), or say which extra brings it.

    Raises:
        MissingExtraError: where the package itself is not installed. An import error *inside* an installed package is not
            hidden.
    """
    top = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != top:
            raise
        raise MissingExtraError(missing_message(top, purpose)) from None


def missing_message(name: str, purpose: str = "", extra: str | None = None) -> str:
    """One line that says what is missing, what for, and the pip command that brings it.

    ``extra``: what brings all that the purpose needs; by default what brings ``name``.
    """
    extra = extra or EXTRA_OF.get(name)
    what_for = f" for {purpose}" if purpose else ""
    how = f'pip install "edgemamba[{extra}]"' if extra else f"pip install {name}"
    return f"{name} is needed{what_for} and is not installed: {how}"
