"""What a bundle states about the volumes that it segments: how a device makes its input, and what the labels mean."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["MOST_LABELS", "Code", "Normalisation", "SegmentCodes", "VolumeCard"]

#: A mask holds uint8.
MOST_LABELS = 256
# One patch of one modality; beyond that it is a broken or hostile manifest (512 x 512 x 512).
_MOST_PATCH = 1 << 27
_MOST_MODALITIES = 64
_PAIRS = ({"R", "L"}, {"A", "P"}, {"S", "I"})
# PS3.5 section 6.2: SH has 16 characters, LO 64; a backslash parts values.
_SHORT = re.compile(r"[^\\\x00-\x1f\x7f]{1,16}")
_LONG = re.compile(r"[^\\\x00-\x1f\x7f]{1,64}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Code(_Strict):
    """A coded concept (PS3.3 section 8.8): value, coding scheme (``SCT`` is SNOMED CT) and meaning."""

    value: str
    scheme: str = "SCT"
    meaning: str

    @model_validator(mode="after")
    def _valid(self) -> Code:
        if not (_SHORT.fullmatch(self.value) and _SHORT.fullmatch(self.scheme) and _LONG.fullmatch(self.meaning)):
            raise ValueError(f"({self.value!r}, {self.scheme!r}, {self.meaning!r}) is no code of DICOM")
        return self


class SegmentCodes(_Strict):
    """What a label is, for DICOM SEG (PS3.3 C.8.20.4).

    Attributes:
        category: Segmented Property Category (CID 7150).
        type: Segmented Property Type (CID 7151 and below); without one, a private code that is made from the label's name.
    """

    category: Code = Code(value="91723000", meaning="Anatomical Structure")
    type: Code | None = None


class Normalisation(_Strict):
    """How grey values (Hounsfield units of CT) become the model's.

    Attributes:
        kind: ``zscore_nonzero``: mean 0 and (biased) standard deviation 1 over the voxels that are not 0, which stay 0 (the
            custom for BraTS; MONAI's ``NormalizeIntensity(nonzero=True)``); ``zscore``: over all voxels; ``window``: clipped to
            ``low``..``high``, then ``(x - mean) / std``; ``none``: as they are.
        low, high: of ``window``.
        mean, std: of ``window``; by default ``low`` and ``high - low``, which gives 0 to 1.
    """

    kind: Literal["zscore_nonzero", "zscore", "window", "none"] = "zscore_nonzero"
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _of_its_kind(self) -> Normalisation:
        given = [name for name in ("low", "high", "mean", "std") if getattr(self, name) is not None]
        if self.kind != "window":
            if given:
                raise ValueError(f"{given[0]} goes with kind window, not with {self.kind}")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"a window needs low < high, not {self.low} and {self.high}")
        elif (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together")
        return self


class VolumeCard(_Strict):
    """How a volume becomes the input of a segmentation model, and how its patches become a mask.

    In this order: the axes are turned to ``orientation``, resampled to ``spacing`` (linear), normalised; windows of ``patch``
    that overlap go through the model; their logits are blended, and resampled to the source's grid, where the largest wins.

    Attributes:
        modalities: names of the input's channels, in order.
        patch: depth, height and width of the graph's input, in voxels.
        spacing: of its voxels in mm, along the same axes; None: whatever the source's is.
        orientation: where the three axes point to, in nibabel's letters: ``SPL`` goes from foot to head, front to back,
            right to left, as SimpleITK's arrays of axial slices do; ``RAS`` is MONAI's usual.
        normalisation: one for all modalities, or one each.
        overlap: share of a window that the next one covers again.
        blending: weight of a window's voxels: ``gaussian`` (standard deviation: an eighth of the patch), or ``constant``.
        codes: what classes are, by their names, for DICOM SEG.
    """

    modalities: tuple[str, ...]
    patch: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    orientation: str = "SPL"
    normalisation: tuple[Normalisation, ...] = (Normalisation(),)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    blending: Literal["gaussian", "constant"] = "gaussian"
    codes: dict[str, SegmentCodes] = Field(default_factory=dict)

    @field_validator("patch")
    @classmethod
    def _sane_patch(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 1 or math.prod(value) > _MOST_PATCH:
            raise ValueError(f"{value} is not a patch of 1 to {_MOST_PATCH} voxels")
        return value

    @field_validator("spacing")
    @classmethod
    def _sane_spacing(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and not all(0.01 <= step <= 100 for step in value):
            raise ValueError(f"{value} is not a spacing of 0.01 to 100 mm")
        return value

    @field_validator("orientation")
    @classmethod
    def _three_axes(cls, value: str) -> str:
        if len(value) != 3 or any(len(pair & set(value)) != 1 for pair in _PAIRS):
            raise ValueError(f"{value!r} does not name three axes, one letter each of R/L, A/P and S/I")
        return value

    @model_validator(mode="after")
    def _channels(self) -> VolumeCard:
        names = self.modalities
        if not 1 <= len(names) <= _MOST_MODALITIES or len(set(names)) != len(names) or not all(names):
            raise ValueError(f"modalities {names}: 1 to {_MOST_MODALITIES} different names are needed")
        if any("=" in name or not name.isprintable() for name in names):
            raise ValueError(f"modalities {names}: names are printable and hold no '='")
        if len(self.normalisation) not in (1, len(names)):
            raise ValueError(f"{len(self.normalisation)} normalisations for {len(names)} modalities")
        return self

    def normalisation_of(self, channel: int) -> Normalisation:
        """Of one modality."""
        return self.normalisation[channel if len(self.normalisation) > 1 else 0]
