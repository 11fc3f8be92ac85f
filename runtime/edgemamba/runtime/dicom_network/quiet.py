"""Libraries whose logs and warnings quote data sets: their telling is left to our own log, which names no patient."""

from __future__ import annotations

import logging
import warnings


def quiet(library: str) -> None:
    """Silence a library's logger, unless someone has asked it for more than warnings, and its warnings about values."""
    logger = logging.getLogger(library)
    if logger.level in (logging.NOTSET, logging.WARNING):
        logger.setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", category=UserWarning, module=rf"{library}(\.|$)")
