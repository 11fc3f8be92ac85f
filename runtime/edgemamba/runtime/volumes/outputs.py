"""The files that a segmentation is written to, by their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgemamba.runtime.bundle import MODEL, Manifest
from edgemamba.runtime.errors import SinkError
from edgemamba.runtime.extras import require
from edgemamba.runtime.uris import parse_source
from edgemamba.runtime.volumes.dicom_seg import segmentation_sources, write_segmentation
from edgemamba.runtime.volumes.nifti import NIFTI_SUFFIXES, write_nifti_mask
from edgemamba.runtime.volumes.overview import check_pixels, write_overview
from edgemamba.runtime.volumes.reading import Study
from edgemamba.runtime.volumes.segmenting import Segmentation, volume_card

__all__ = ["MASK_SUFFIXES", "check_outputs", "check_study", "write_output"]

#: Of files that only a segmentation can be written to.
MASK_SUFFIXES = (".dcm", *NIFTI_SUFFIXES)
_SUFFIXES = (*MASK_SUFFIXES, ".png")
# What writes a file, by the end of its name.
_WRITERS = {".dcm": "highdicom", ".nii": "nibabel", ".gz": "nibabel", ".png": "cv2"}


def check_outputs(outs: Sequence[str], sources: Sequence[str], bundle: Path) -> list[Path]:
    """The paths to write, before any work is done.

    Raises:
        SinkError: one is of no known kind, given twice, in the bundle, a source, or in a folder that is not there or cannot be
            written to.
        MissingExtraError: what it needs is not installed.
    """
    named = [text.partition("=")[2] or text for text in sources]
    inputs = {Path(parse_source(text).location).expanduser().resolve() for text in (*sources, *named)}
    seen: set[Path] = set()
    for out in outs:
        path = Path(out).expanduser()
        resolved = path.resolve()
        if not out.lower().endswith(_SUFFIXES) or "://" in out:
            raise SinkError(
                f"{out}: a segmentation is written as DICOM SEG (.seg.dcm), NIfTI (.nii, .nii.gz) or a picture (.png)"
            )
        if resolved in seen:
            raise SinkError(f"{out} is given twice as an output")
        # A mask as NIfTI or a picture beside DICOM slices is no slice at the next run; a DICOM SEG would be.
        if resolved in inputs or (path.suffix.lower() == ".dcm" and inputs & set(resolved.parents)):
            raise SinkError(f"{out} is the source itself, or in its folder; write it elsewhere")
        if bundle.resolve() in resolved.parents:
            raise SinkError(f"{out} is in the bundle; write it elsewhere")
        if not resolved.parent.is_dir():
            raise SinkError(f"{out}: there is no folder {path.parent}")
        if resolved.is_dir():
            raise SinkError(f"{out} is a folder; name a file")
        if not os.access(resolved.parent, os.W_OK | os.X_OK):
            raise SinkError(f"{out}: the folder {path.parent} cannot be written to")
        require(_WRITERS[path.suffix.lower()], purpose=f"writing {path.suffix.lower()} files")
        seen.add(resolved)
    return [Path(out).expanduser() for out in outs]


def check_study(paths: Sequence[Path], study: Study, include_phi: bool) -> None:
    """Whether each output can be made of the study, before any work is done.

    Raises:
        SinkError: a DICOM SEG of a study that it could not refer to, or a picture of pixels that show who it is.
    """
    suffixes = {path.suffix.lower(): path for path in paths}
    if (path := suffixes.get(".dcm")) is not None:
        try:
            segmentation_sources(study, include_phi)
        except SinkError as error:
            raise SinkError(f"{path}: {error}") from None
    if (path := suffixes.get(".png")) is not None:
        check_pixels(path, study, include_phi)


def write_output(path: Path, result: Segmentation, manifest: Manifest, include_phi: bool) -> None:
    """Write one file, whole or not at all.

    Raises:
        SinkError: it cannot be written, or not of this source.
        MissingExtraError: what it needs is not installed.
    """
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        study = result.study
        write_nifti_mask(path, result.mask, study.grid, study.forms, flip_axes=bool(study.planes))
    elif name.endswith(".png"):
        write_overview(path, result, include_phi)
    else:
        write_segmentation(
            path,
            result,
            model=manifest.model.name,
            version=manifest.files[MODEL][:16],
            codes=volume_card(manifest).codes,
            include_phi=include_phi,
        )
