"""How much memory this process has used, where the system tells (Linux)."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int | None:
    """Memory that the process holds now (VmRSS); None where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """The most it has held (VmHWM) since it began, or since :func:`reset_peak`; None where the system does not tell."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Set the peak back to what is held now. False where the system does not allow it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # "123 kB"
    return None
