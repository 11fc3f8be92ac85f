"""A DICOMDIR: the index of the images on a DICOM medium (PS3.3 annex F, PS3.10 section 8)."""

from __future__ import annotations

from pathlib import Path

from edgemamba.runtime.dicom_files import BoundedFile, is_dicom, parse_elements
from edgemamba.runtime.errors import SourceError

__all__ = ["is_dicomdir", "referenced_files"]

_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


def is_dicomdir(path: Path) -> bool:
    """Whether the file says that it is one, whatever it is called."""
    try:
        if not is_dicom(path):
            return False
        with BoundedFile(path) as file:
            return str(parse_elements(file, ()).file_meta.get("MediaStorageSOPClassUID")) == _MEDIA_STORAGE_DIRECTORY
    except Exception:  # damaged: its reader says so
        return False


def referenced_files(path: Path) -> tuple[list[Path], list[str]]:
    """The image files that a DICOMDIR names, in its order, and the names of those that are not there.

    File systems of media differ in case, and append ``;1``: names are matched regardless of both. A name that would lead out
    of the DICOMDIR's folder counts as not there.

    Raises:
        SourceError: it cannot be parsed.
    """
    try:
        with BoundedFile(path) as file:
            records = parse_elements(file, ("DirectoryRecordSequence",)).get("DirectoryRecordSequence") or []
            named = [_components(record) for record in records if record.get("DirectoryRecordType") == "IMAGE"]
    except SourceError:
        raise
    except Exception as error:  # any parser may stumble over damaged bytes
        raise SourceError(f"{path}: the DICOMDIR is damaged ({type(error).__name__})") from None
    found: list[Path] = []
    missing: list[str] = []
    listings: dict[Path, dict[str, Path]] = {}
    for components in named:
        file_path: Path | None = path.parent
        for component in components:
            file_path = _entry(file_path, component, listings) if file_path is not None else None
        if components and file_path is not None and file_path.is_file():
            found.append(file_path)
        else:
            missing.append("/".join(components))
    return list(dict.fromkeys(found)), missing


def _components(record: object) -> list[str]:
    value = getattr(record, "ReferencedFileID", None) or []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _entry(folder: Path, name: str, listings: dict[Path, dict[str, Path]]) -> Path | None:
    """The entry of a folder that is called so; only what the folder lists, so never ``..`` or a path."""
    if folder not in listings:
        try:
            listings[folder] = {_plain(entry.name): entry for entry in folder.iterdir()}
        except OSError:
            listings[folder] = {}
    return listings[folder].get(_plain(name))


def _plain(name: str) -> str:
    return name.partition(";")[0].rstrip(".").casefold()
