"""What can be used on this machine, and why not the rest: the findings of ``edgemamba doctor``."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from edgemamba.runtime import __version__, native
from edgemamba.runtime.cpu import cpu_name, usable_threads
from edgemamba.runtime.engines import available, cuda_driver
from edgemamba.runtime.engines.cuda_ort import scan_unavailable
from edgemamba.runtime.engines.tensorrt_library import TENSORRT, TENSORRT_RTX
from edgemamba.runtime.errors import EngineError, MissingExtraError, NativeLibraryError
from edgemamba.runtime.extras import EXTRA_OF, require
from edgemamba.runtime.provenance import commit, package_version
from edgemamba.runtime.trt_plugin import RTX_MAJOR, build_info, plugin_library

ENGINES = "engines"
_EXPORT_TOOLS = (
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "onnx",
    "onnxscript",
    "safetensors",
    "jinja2",
    "matplotlib",
)
# What `getBuildInformation` calls it -> what it is needed for.
_OPENCV_FEATURES = {
    "FFMPEG": "video files",
    "v4l/v4l2": "USB cameras",
    "GStreamer": "pipelines, and CSI cameras on a Jetson",
    "GUI": "windows on a screen",
}
# Decoders that the extra `dicom` brings, as pydicom spells them when they are missing; the rest is `dicom-gdcm`.
_DICOM_EXTRA = ("pillow", "pyjpegls", "pylibjpeg-openjpeg", "pylibjpeg-rle")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: what it belongs to: system, native library, engines, GPU, pictures and video, DICOM, training and export.
        usable: True: can be used; False: cannot; None: a fact, neither good nor bad.
        detail: the version or the fact; for what cannot be used the reason.
        remedy: what to do about it; empty where there is nothing to do.
    """

    section: str
    name: str
    usable: bool | None
    detail: str
    remedy: str = ""


def diagnose() -> Iterator[Finding]:
    """All findings, one after the other. Imports onnxruntime, OpenCV and pydicom where they are there; never torch."""
    yield from _system()
    yield from _native_library()
    yield from _engines()
    yield from _gpu()
    yield from _opencv()
    yield from _dicom()
    yield from _export_tools()


def _system() -> Iterator[Finding]:
    section = "system"
    yield Finding(section, "edgemamba", None, " ".join(filter(None, (__version__, commit()))))
    yield Finding(section, "Python", None, f"{platform.python_version()} ({sys.executable})")
    yield Finding(section, "system", None, f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding(section, "CPU", None, f"{cpu_name()}, {usable_threads()} usable cores")


def _native_library() -> Iterator[Finding]:
    section = "native library"
    try:
        native.load_library()
    except NativeLibraryError as error:
        detail, _, remedy = str(error).partition("; ")
        yield Finding(section, "libedgemamba", False, detail, remedy)
        return
    yield Finding(section, "libedgemamba", True, f"{native.library_path()}, ABI {native.ABI_VERSION}")
    yield Finding(section, "instruction set", None, f"{native.isa()}, of {', '.join(native.available_isas())}")


def _engines() -> Iterator[Finding]:
    for name, reason in available().items():
        yield _explained(ENGINES, name, reason or "")
    try:
        ort = require("onnxruntime")
    except ImportError:
        return
    providers = ", ".join(provider.removesuffix("ExecutionProvider") for provider in ort.get_available_providers())
    yield Finding(ENGINES, "onnxruntime", None, f"{ort.__version__}, providers: {providers}")


def _gpu() -> Iterator[Finding]:
    """The GPU and what engines for it are built from; none of the libraries is loaded, they are large."""
    section = "GPU"
    reason = cuda_driver.unavailable()
    if reason is None:
        device = cuda_driver.device()
        detail = f"{device.name}, compute capability {device.capability}, driver for CUDA {device.driver}"
        yield Finding(section, "device", True, detail)
    else:
        yield _explained(section, "device", reason)
    yield _explained(section, "scan kernel", scan_unavailable() or "")
    for library in (TENSORRT, TENSORRT_RTX):
        if find_spec(library.module) is None:
            yield Finding(section, library.title, False, "not installed", f'pip install "{_extra(library.module)}"')
        else:
            found = package_version(library.module.replace("_", "-")) or "installed"
            yield Finding(section, library.title, True, found)
    try:
        path = plugin_library(RTX_MAJOR)
        yield Finding(section, "TensorRT plugin", True, f"{path}: {build_info(path)}")
    except EngineError as error:
        detail, _, remedy = str(error).partition(": ")
        yield Finding(section, "TensorRT plugin", False, detail, remedy)


def _explained(section: str, name: str, reason: str) -> Finding:
    """A finding from a reason that may end in a pip command; no reason: usable."""
    detail, _, remedy = reason.partition(": pip install ")
    return Finding(section, name, not reason, detail or "ready", f"pip install {remedy}" if remedy else "")


def _extra(module: str) -> str:
    return f"edgemamba[{EXTRA_OF[module]}]"


def _opencv() -> Iterator[Finding]:
    section = "pictures and video"
    try:
        cv2 = require("cv2", purpose="pictures, video and cameras")
    except MissingExtraError as error:
        yield _missing(section, "OpenCV", error)
        return
    except ImportError as error:  # the desktop build without libGL
        remedy = "install opencv-python-headless instead, or the system library that is named"
        yield Finding(section, "OpenCV", False, " ".join(str(error).split()), remedy)
        return
    yield Finding(section, "OpenCV", True, cv2.__version__)
    build = cv2.getBuildInformation()
    for feature, purpose in _OPENCV_FEATURES.items():
        found = re.search(rf"^\s*{re.escape(feature)}:\s*(\S+)", build, re.MULTILINE)
        state = found[1] if found else "NO"
        usable = state not in ("NO", "NONE")
        remedy = "" if usable else f"{purpose} need an OpenCV that was built with it"
        yield Finding(section, f"OpenCV {feature}", usable, purpose if usable else "not in this build", remedy)


def _dicom() -> Iterator[Finding]:
    section = "DICOM"
    try:
        pydicom = require("pydicom", purpose="DICOM")
        decoders = require("pydicom.pixels").get_decoder
        known = require("pydicom.uid").AllTransferSyntaxes
    except MissingExtraError as error:
        yield _missing(section, "pydicom", error)
        return
    yield Finding(section, "pydicom", True, pydicom.__version__)
    for syntax in known:
        try:
            decoder = decoders(syntax)
        except NotImplementedError:  # video and other syntaxes that pydicom has no decoder for
            continue
        if decoder.is_available:
            plugins = ", ".join(decoder.available_plugins) or "built in"
            yield Finding(section, _brief(syntax), True, plugins)
        else:
            extra = "dicom" if any(word in str(decoder.missing_dependencies) for word in _DICOM_EXTRA) else "dicom-gdcm"
            yield Finding(section, _brief(syntax), False, "no decoder installed", f'pip install "edgemamba[{extra}]"')


def _brief(syntax: Any) -> str:
    """A transfer syntax's name without the words that all have in common."""
    name = str(syntax.name).replace(" Image Compression", "").replace("High-Throughput JPEG 2000", "HTJ2K")
    return re.sub(r"[ ,]+Non-Hierarchical|, First-Order Prediction|Process 14 (?=\[)|[][]", "", name)


def _export_tools() -> Iterator[Finding]:
    section = "training and export"
    for name in _EXPORT_TOOLS:
        # Looked up, not imported: torch alone takes seconds, and the runtime never needs it.
        if find_spec(name) is None:
            yield Finding(section, name, False, "not installed", f'pip install "edgemamba[{EXTRA_OF[name]}]"')
        else:
            found = package_version(name)
            yield Finding(section, name, True, found or "installed")


def _missing(section: str, name: str, error: MissingExtraError) -> Finding:
    detail, _, remedy = str(error).partition(": ")
    return Finding(section, name, False, detail, remedy)
