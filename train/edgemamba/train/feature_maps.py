"""A model cut down to its feature maps, as timm's ``features_only`` makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models._features import FeatureGetterNet  # timm names it nowhere else

from edgemamba.train.models.backbone import Backbone

# Maps that a model of one resolution hands out by default: one a block would be many alike. timm's number for such models.
_LAST_BLOCKS = 3


class FeatureMaps(FeatureGetterNet):
    """timm's ``FeatureGetterNet``, which by default gives what the model has: a map a stage, or those of the last 3 blocks.

    Called with pictures (B, 3, H, W) it returns a list of maps (B, C, h, w); ``feature_info.channels()`` and
    ``.reduction()`` describe them. What the maps do not need is cut off the model, which is ``model``.
    """

    def __init__(self, model: Backbone, out_indices: int | Sequence[int] | None = None, **options: Any) -> None:
        """Wrap a model, which is changed.

        Args:
            model: without ``out_indices`` of its own.
            out_indices: entries of the model's ``feature_info``: a list (negative ones count from the end), or so many of
                the last.
            **options: of ``FeatureGetterNet``, such as ``norm=True`` or ``output_fmt="NHWC"``.

        Raises:
            ModelError: an index that there is not.
        """
        if out_indices is None:
            reductions = {info["reduction"] for info in model.feature_info}
            out_indices = (
                min(_LAST_BLOCKS, len(model.feature_info)) if len(reductions) == 1 else len(model.feature_info)
            )
        super().__init__(model, out_indices=out_indices, **options)  # type: ignore[arg-type]
