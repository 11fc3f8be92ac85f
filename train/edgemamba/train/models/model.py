"""What every model of this package says of itself, whatever it is for."""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import nn

from edgemamba.runtime.preprocessing import Preprocessing
from edgemamba.runtime.volumes.card import VolumeCard

Task = Literal["classification", "segmentation"]

# Last components of names of parameters that are no weights of a product: states, skips, positions, and biases that are
# stacked for several directions and so have more than the one axis by which timm's optimisers know a bias.
_NO_DECAY = re.compile(
    r"A(_b|_s)?_log(s|_\d+)?|D(s|_b|_s|_\d+)?|pos_embed|cls_token(_head|_tail)?|direction_Bs|dt_projs_bias"
)


class Model(nn.Module):
    """A model of one of the registered families: a classifier, or a segmenter of pictures or volumes.

    Attributes:
        task: ``classification``: logits (B, num_classes); ``segmentation``: logits (B, num_classes, and the input's axes of
            space), class 0 being the background.
        classifier_path: name of the last layer, whose keys are ``{classifier_path}.weight`` and ``.bias``; the only ones that
            depend on the number of classes.
        config: the frozen dataclass it was built from; ``dataclasses.asdict`` makes it JSON.
        model_name: the registered name it was made by, or the family's.
        num_classes: outputs.
        preprocessing: how a picture becomes its input; models of volumes have none.
        volume: how a volume becomes its input; None of models of pictures.
        out_indices: see :class:`~edgemamba.train.models.backbone.Backbone`; empty of all others.
    """

    task: Task = "classification"
    classifier_path: str = "head"

    config: Any
    model_name: str
    num_classes: int
    preprocessing: Preprocessing
    volume: VolumeCard | None = None
    out_indices: tuple[int, ...] = ()

    def absent_paths(self) -> tuple[str, ...]:
        """Names of the parts of a model of its family that this one was made, or cut down, without."""
        return ()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay (vectors aside, which it never should)."""
        return {name for name, _ in self.named_parameters() if _NO_DECAY.fullmatch(name.rpartition(".")[2])}
