"""Which of a bundle's engines runs here, and why not the others."""

from __future__ import annotations

from edgemamba.runtime.bundle import MODEL, Bundle, EngineCard
from edgemamba.runtime.engines.cuda_driver import Device
from edgemamba.runtime.engines.tensorrt_library import Library
from edgemamba.runtime.errors import EngineError


def missing(bundle: Bundle, backend: str) -> str | None:
    """Why the bundle has nothing for a backend; None where it has an engine."""
    if any(card.backend == backend for card in bundle.manifest.engines):
        return None
    return f"{bundle.path} has no engine for {backend}: edgemamba build {bundle.path} --backend {backend}"


def choose(bundle: Bundle, library: Library, version: str, device: Device) -> EngineCard:
    """The engine to load: the last one built that fits this release and GPU, one with the plugin before one without.

    Args:
        version: of the library as installed.

    Raises:
        EngineError: none fits; the message says what is in the way of the one that is nearest, and the remedy.
    """
    reason = missing(bundle, library.backend)
    if reason is not None:
        raise EngineError(reason)
    cards = [card for card in bundle.manifest.engines if card.backend == library.backend]
    fitting = [card for card in cards if _mismatch(card, bundle, library, version, device) is None]
    if fitting:
        return max(enumerate(fitting), key=lambda item: (bool(item[1].plugin), item[0]))[1]
    nearest = max(cards, key=lambda card: (card.version == version, _runs_on(card, device)))
    why = _mismatch(nearest, bundle, library, version, device)
    raise EngineError(f"{bundle.path / nearest.file} {why}: edgemamba build {bundle.path} --backend {library.backend}")


def _mismatch(card: EngineCard, bundle: Bundle, library: Library, version: str, device: Device) -> str | None:
    if card.model_sha256 != bundle.manifest.files[MODEL]:
        return f"was built from another {MODEL} than the bundle's"
    if card.version != version:
        return f"was built with {library.title} {card.version}, and {version} is installed here"
    if not _runs_on(card, device):
        on = card.device or "compute capability " + ", ".join(card.compute_capabilities)
        return f"was built for {on}, and this GPU is {device.name} (compute capability {device.capability})"
    return None


def _runs_on(card: EngineCard, device: Device) -> bool:
    """A full TensorRT engine is tuned for one GPU model; TensorRT-RTX's are for capabilities (none named: 8.0 and newer)."""
    if card.device and card.device != device.name:
        return False
    if not card.compute_capabilities:
        return tuple(map(int, device.capability.split("."))) >= (8, 0)
    return device.capability in card.compute_capabilities
