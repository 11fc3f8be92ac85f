"""Which card a model of volumes is exported with."""

from __future__ import annotations

from pydantic import ValidationError
from torch import nn

from edgemamba.runtime.errors import ExportError
from edgemamba.runtime.volumes.card import VolumeCard


def patch_of(model: nn.Module) -> tuple[int, int, int] | None:
    """Depth, height and width of the patches that the model is meant for; None of models of pictures."""
    size = getattr(getattr(model, "config", None), "img_size", None)
    return (int(size[0]), int(size[1]), int(size[2])) if isinstance(size, tuple) and len(size) == 3 else None


def volume_card(
    model: nn.Module, card: VolumeCard | None = None, patch: int | tuple[int, ...] | None = None
) -> VolumeCard:
    """The card to put into the bundle.

    Args:
        model: of volumes; ``model.volume`` is used where no card is given, and one of unnamed modalities, z-scores and the
            source's own spacing where it has none.
        card: how a device makes the input.
        patch: in place of the card's.

    Raises:
        ExportError: the card is for another number of modalities, or the patch is none.
    """
    sides = (patch,) * 3 if isinstance(patch, int) else patch
    own = patch_of(model)
    channels = getattr(getattr(model, "config", None), "in_chans", None)
    card = card or getattr(model, "volume", None)
    if not isinstance(card, VolumeCard):
        names = ("image",) if channels == 1 else tuple(f"channel{i + 1}" for i in range(channels or 1))
        card = VolumeCard(modalities=names, patch=own or (128, 128, 128))
    if isinstance(channels, int) and len(card.modalities) != channels:
        raise ExportError(f"the card names {len(card.modalities)} modalities; the model takes {channels}")
    if sides is None:
        return card
    try:
        return VolumeCard.model_validate({**card.model_dump(), "patch": sides})
    except ValidationError as error:
        raise ExportError(f"patch {sides}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
