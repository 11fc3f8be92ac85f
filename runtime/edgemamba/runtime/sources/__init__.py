"""Where frames come from. :func:`open_source` picks the source from its argument."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgemamba.runtime.dicom_grayscale import Voi
from edgemamba.runtime.errors import SourceError
from edgemamba.runtime.sources.base import Source
from edgemamba.runtime.sources.files import open_dicom, open_path
from edgemamba.runtime.uris import Uri, parse_source

__all__ = ["Source", "open_source"]


def open_source(source: str | int | Path, *, voi: Voi = "auto") -> Source:
    """Open whatever ``source`` names.

    Args:
        source: a camera's number or device path (``0``, ``/dev/video0``); an image, DICOM or video file, recognised by
            what it holds; a folder of images and DICOM files (with its subfolders: images in natural order, DICOM series in
            slice order, see :mod:`edgemamba.runtime.dicom_series`); a DICOMDIR; a glob; a GStreamer pipeline; or a URI of a scheme in
            :data:`~edgemamba.runtime.uris.SOURCE_SCHEMES`, for instance ``rtsp://camera/stream`` or ``watch://folder``.
        voi: how grey DICOM pictures are shown: ``auto``, ``lut``, ``window``, ``full``, ``minmax``, or a
            :class:`~edgemamba.runtime.dicom_grayscale.Window`.

    Returns:
        An iterable of :class:`~edgemamba.runtime.frames.Frame`, which is also a context manager.

    Raises:
        SourceError: it does not exist, cannot be opened, holds nothing that can be read, or its scheme is unknown; one
            line says which.
        MissingExtraError: a package that it needs is not installed.
    """
    uri = parse_source(source)
    if uri.scheme == "file":
        return open_path(uri.location, voi)
    if uri.scheme == "dicom":
        return open_dicom(uri, voi)
    # Imported only when they are asked for.
    if uri.scheme == "v4l2":
        from edgemamba.runtime.sources.camera import CameraSource

        return CameraSource(uri)
    if uri.scheme in ("gst", "csi"):
        from edgemamba.runtime.sources.gstreamer import open_csi, open_gst

        return open_csi(uri) if uri.scheme == "csi" else open_gst(uri)
    if uri.scheme == "watch":
        from edgemamba.runtime.sources.watch import open_watch

        return open_watch(uri, voi)
    if uri.scheme in ("dimse", "dicomweb", "dicomwebs"):
        return _dicom_network(uri, voi)
    from edgemamba.runtime.sources.network_video import NetworkSource

    return NetworkSource(uri)


def _dicom_network(uri: Uri, voi: Voi) -> Source:
    """Their modules take the URL apart themselves."""
    kind = "dimse" if uri.scheme == "dimse" else "dicomweb"
    name = f"edgemamba.runtime.sources.{kind}"
    try:
        module: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise SourceError(f"{uri.scheme}:// sources are not part of this installation of edgemamba") from None
    opened: Source = getattr(module, f"open_{kind}")(uri.text, voi=voi)
    return opened
