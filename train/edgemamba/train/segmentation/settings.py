"""The settings of a run that trains a segmenter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgemamba.runtime.errors import TrainingError
from edgemamba.runtime.volumes.card import Normalisation
from edgemamba.train.models.segmentation_heads import HeadName
from edgemamba.train.settings import RunSettings


class SegmentationAugmentation(BaseModel):
    """What is done at random to a training picture or patch, and to its mask where it moves pixels.

    Attributes:
        enabled: False trains on what evaluation sees.
        hflip, vflip: probability of a flip of the last and of the last but one axis. Wrong where the side matters.
        rotate: largest angle in degrees, in the plane of the last two axes.
        scale: largest relative change of size.
        intensity: largest relative change of contrast, and change of brightness in standard deviations.
        noise: standard deviation of Gaussian noise, in those of the normalised values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    hflip: float = Field(default=0.5, ge=0, le=1)
    vflip: float = Field(default=0.0, ge=0, le=1)
    rotate: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=0.2, ge=0, lt=1)
    intensity: float = Field(default=0.2, ge=0, lt=1)
    noise: float = Field(default=0.05, ge=0)


class SegmentationSettings(RunSettings):
    """Settings of the training of a segmenter.

    Attributes:
        head, head_dim: of a picture's segmenter, see :func:`~edgemamba.train.create_model`; None for a model that is one.
        size: of the model's input: (height, width) in pixels, or of volumes a patch's (depth, height, width); None for the
            model's own.
        sampling: ``resize``: whole pictures, resized to the input; ``patches``: windows of the input's size at the pictures'
            own resolution, in evaluation overlapping and blended. Volumes always go through patches.
        patches_per_case: patches drawn from a picture or volume in an epoch; half of them have a class other than the
            background in their centre.
        overlap: share of a window that the next one covers again, in evaluation.
        modalities: names of a volume's channels, in order; None for the model's, or what a case's files are called.
        spacing: of voxels in mm, along the model's axes; None for each volume's own.
        normalisation: of volumes.
        dice_weight, ce_weight: of the loss's two terms.
        monitor: what ``best.ckpt`` is best in: the mean Dice of the classes but the background, or the loss.
    """

    head: HeadName | None = "fpn"
    head_dim: int | None = Field(default=None, ge=8)
    size: tuple[int, ...] | None = None
    sampling: Literal["resize", "patches"] = "resize"
    patches_per_case: int = Field(default=1, ge=1)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    modalities: tuple[str, ...] | None = None
    spacing: tuple[float, float, float] | None = None
    normalisation: Normalisation = Normalisation()
    augmentation: SegmentationAugmentation = SegmentationAugmentation()
    dice_weight: float = Field(default=1.0, ge=0)
    ce_weight: float = Field(default=1.0, ge=0)
    monitor: Literal["dice", "loss"] = "dice"

    def _check(self) -> None:
        if self.layer_decay is not None:
            raise TrainingError("--layer-decay is for classifiers; segmenters train with one rate")
        if self.strategy == "fsdp":
            raise TrainingError("--strategy fsdp is for classifiers; segmenters train on several devices with ddp")
        if self.dice_weight + self.ce_weight == 0:
            raise TrainingError("--dice-weight and --ce-weight are both 0; nothing would be learned")

    def model_options(self, num_classes: int, channels: int | None) -> dict[str, Any]:
        """Keywords of :func:`~edgemamba.train.create_model`."""
        options: dict[str, Any] = {"num_classes": num_classes, **self.config}
        given = {"img_size": self.size, "head": self.head, "head_dim": self.head_dim, "drop_path_rate": self.drop_path}
        options |= {name: value for name, value in given.items() if value is not None}
        if channels is not None:
            options.setdefault("in_chans", channels)
        return options
