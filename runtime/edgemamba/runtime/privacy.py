"""What may be shown to others: nothing that names a patient, unless the user asks for it.

Frames of DICOM files may carry identifying metadata, because DICOM outputs must refer to their sources. All other outputs
(JSON Lines, CSV, pictures, video, web page, metrics) and the log get frames through a :class:`Redactor`:

* of the metadata, the keys of :data:`PUBLIC_METADATA` pass, and keys of the user's own that begin with ``x_``;
* of keys that end in ``_uid``, and of UIDs inside names and messages (DICOM files are often called after theirs), a salted
  hash passes: ``uid-`` and :func:`~edgemamba.runtime.dicom_network.pseudonyms.pseudonym`, so that lines about the same
  instance can be matched, and whoever holds the salt can find an instance of theirs again.

Names of files and folders are shown as they are otherwise: a path is the user's, and no attribute of the picture. Text that is
burned into the pixels stays in them.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

from edgemamba.runtime.dicom_network.pseudonyms import pseudonym
from edgemamba.runtime.frames import Frame
from edgemamba.runtime.results import Result

__all__ = ["PUBLIC_METADATA", "LogFilter", "Redactor", "guard_log", "hashed", "without_uids"]

#: Metadata that say how a picture was made and stored, and nothing of whom it shows.
PUBLIC_METADATA = frozenset(
    (
        "bits_stored",
        "codec",
        "columns",
        "fps",
        "frame_number",
        "modality",
        "number_of_frames",
        "photometric_interpretation",
        "pixel_aspect_ratio",
        "pixel_spacing",
        "reconnects",
        "rows",
        "slice_position",
        "slice_thickness",
        "transfer_syntax",
        "voi",
    )
)
_OWN_PREFIX = "x_"

# PS3.5 section 9.1, and with the leading zeros that some write all the same; also within a name such as MR.1.2.826.0.1.dcm. An IP
# address has four components, a UID of an instance more.
_UID = re.compile(r"(?<!\d)(?<!\d\.)[0-2](?:\.\d+){4,}")
# PS3.6 annex A: UIDs of the standard itself (transfer syntaxes, SOP classes) name no instance.
_STANDARD = "1.2.840.10008."
_LONGEST_UID = 64


def hashed(uid: str) -> str:
    """``uid-`` and the UID's pseudonym."""
    return f"uid-{pseudonym(uid)}"


def without_uids(text: str) -> str:
    """The text with every instance's UID replaced by its hash."""
    return _UID.sub(_hide, text)


def _hide(match: re.Match[str]) -> str:
    uid = match[0]
    if uid.startswith(_STANDARD) or len(uid) > _LONGEST_UID:
        return uid
    return hashed(uid)


class Redactor:
    """Takes from results what may identify a patient.

    Args:
        include_phi: leave everything as it is.
    """

    def __init__(self, include_phi: bool = False) -> None:
        self.include_phi = include_phi

    def text(self, text: str) -> str:
        """A name or a message without UIDs of instances."""
        return text if self.include_phi else without_uids(text)

    def metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Only what is public, UIDs hashed."""
        if self.include_phi:
            return metadata
        public: dict[str, Any] = {}
        for key, value in metadata.items():
            if key.endswith("_uid"):
                public[key] = hashed(str(value))
            elif key in PUBLIC_METADATA or key.startswith(_OWN_PREFIX):
                public[key] = without_uids(value) if isinstance(value, str) else value
        return public

    def result(self, result: Result) -> Result:
        """The result as others may see it: with a plain frame, for a DICOM frame holds its instance's header."""
        if self.include_phi:
            return result
        frame = result.frame
        name, metadata = self.text(frame.source), self.metadata(frame.metadata)
        return replace(result, frame=Frame(frame.pixels, frame.index, frame.timestamp, name, metadata))


class LogFilter(logging.Filter):
    """Replaces the UIDs in log records by their hashes."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        public = without_uids(message)
        if public != message:
            record.msg, record.args = public, None
        return True


_FILTER = LogFilter()


def guard_log(include_phi: bool) -> None:
    """Put the filter onto the runtime's logger, or take it off. For the process: the last stream decides."""
    logger = logging.getLogger("edgemamba.runtime")
    (logger.removeFilter if include_phi else logger.addFilter)(_FILTER)
