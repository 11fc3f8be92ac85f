"""The bundle's parity report in the few figures that fit beside a live picture."""

from __future__ import annotations

import json
import math
from typing import Any

from edgemamba.runtime.bundle import Bundle
from edgemamba.runtime.errors import BundleError

__all__ = ["parity_summary"]

_REPORT = "parity.json"
_LARGEST = 1 << 26


def parity_summary(bundle: Bundle) -> dict[str, Any] | None:
    """What ``edgemamba verify`` found; None where it never ran.

    Returns:
        JSON-able: ``passed``, ``date``, ``reference``, ``inputs`` (how many), and ``backends``: for each its name, ``passed``,
        ``max_abs_error`` and ``tolerance_used`` (largest error as a share of what is allowed) of the worst output, and ``top1``
        agreement. Without a readable report: the manifest's summary alone.
    """
    card = bundle.manifest.parity
    if card is None:
        return None
    summary: dict[str, Any] = {
        "passed": card.passed,
        "date": card.date,
        "reference": "PyTorch",
        "inputs": None,
        "backends": [
            {"name": name, "passed": None, "max_abs_error": error, "tolerance_used": None, "top1": None}
            for name, error in card.max_abs_error.items()
        ],
    }
    try:
        path = bundle.file(_REPORT)
        if path.stat().st_size > _LARGEST:
            return summary
        report = json.loads(path.read_bytes())
        summary["reference"] = str(report["reference"]["name"])
        summary["inputs"] = len(report["inputs"]["samples"])
        summary["backends"] = [_backend(entry) for entry in report["backends"]]
    except (BundleError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # an older or a foreign report: the manifest's figures stand
    return summary


def _backend(entry: dict[str, Any]) -> dict[str, Any]:
    outputs = entry.get("outputs") or []
    agreement = entry.get("agreement") or {}
    return {
        "name": str(entry["backend"]),
        "passed": bool(entry["passed"]),
        "max_abs_error": _worst(outputs, "max_abs_error"),
        "tolerance_used": _worst(outputs, "max_of_tolerance"),
        "top1": agreement.get("top1"),
    }


def _worst(outputs: list[dict[str, Any]], name: str) -> float | None:
    values = [float(output[name]) for output in outputs if output.get(name) is not None]
    finite = [value for value in values if math.isfinite(value)]
    return max(finite) if finite and len(finite) == len(values) else None
