"""From a PyTorch backbone to a bundle, and the proof that every engine says what PyTorch said.

:func:`export` writes a bundle; :func:`verify` compares its engines with PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemamba.export.exporting import export
    from edgemamba.export.verification import verify

__all__ = ["export", "verify"]


def __getattr__(name: str) -> Any:
    # Loaded on demand: edgemamba.export.function and .graph need only onnx, and importing torch takes seconds.
    if name == "export":
        from edgemamba.export.exporting import export

        return export
    if name == "verify":
        from edgemamba.export.verification import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
