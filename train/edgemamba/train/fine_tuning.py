"""What fine-tuning changes of training: frozen stages, a rate for each layer, classes weighed, and an early end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import EarlyStopping
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import Tensor, nn
from torch.optim import Optimizer

from edgemamba.runtime.errors import TrainingError
from edgemamba.train.models.backbone import Backbone
from edgemamba.train.models.model import Model
from edgemamba.train.settings import ALL_BUT_HEAD, RunSettings


def freeze(model: Backbone, stages: int | Literal["all-but-head"] | None) -> tuple[str, ...]:
    """Stop the gradients of a model's first parts, so that training leaves them as they are, to the bit.

    What is wholly frozen must also be kept in evaluation mode (:func:`keep_frozen`): its batch norms would go on measuring,
    and its drop path would make the fixed features random.

    Args:
        model: a classifier.
        stages: the stem (patch embedding, positions, class token) and so many stages are frozen: the entries of
            ``feature_info``, which are blocks in models of one resolution (Vim, PlainMamba); 0 is the stem alone.
            ``all-but-head`` freezes all but the classifier, which makes the run a linear probe. None freezes nothing.

    Returns:
        Names of the frozen parameters.

    Raises:
        TrainingError: the model has fewer stages.
    """
    if stages is None:
        return ()
    if stages == ALL_BUT_HEAD:
        head = f"{model.classifier_path}."
        frozen = [name for name, _ in model.named_parameters() if not name.startswith(head)]
    else:
        count = len(model.feature_info)
        if stages > count:
            raise TrainingError(
                f"--freeze is {stages} and {model.model_name} has {count} stages; 0 to {count} freeze some"
            )
        groups = group_parameters(model, model.group_matcher(coarse=True))
        frozen = [name for group in range(stages + 1) for name in groups[group]]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return tuple(frozen)


def explain_frozen(model: nn.Module) -> str | None:
    """One line on what of a model is not trained, or None where all of it is."""
    frozen = [parameter.numel() for parameter in model.parameters() if not parameter.requires_grad]
    total = sum(parameter.numel() for parameter in model.parameters())
    if not frozen:
        return None
    return f"frozen: {sum(frozen) / 1e6:.2f} M of {total / 1e6:.2f} M parameters, in {len(frozen)} tensors"


def keep_frozen(model: nn.Module) -> None:
    """Put every part all of whose parameters are frozen into evaluation mode; for after ``model.train()``."""
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def create_optimizer(model: Model, settings: RunSettings, peak: float) -> Optimizer:
    """timm's optimizer over what is trained; the first group, whose rate the logs show, is the one of the whole rate.

    Args:
        model: whose :meth:`~edgemamba.train.models.backbone.Backbone.group_matcher` says which layer comes when.
        settings: of the run.
        peak: of the learning rate.

    Raises:
        TrainingError: timm has no such optimizer, or it takes no betas or epsilon.
    """
    extra: dict[str, Any] = {}
    try:
        # timm drops what an optimiser does not take without a word.
        info = get_optimizer_info(settings.optimizer.lower().rpartition("_")[2])
        if info.second_order:
            raise TrainingError(f"--opt {settings.optimizer} needs second derivatives, which training does not make")
        if settings.betas is not None:
            if not info.has_betas:
                raise TrainingError(f"--opt {settings.optimizer} has no betas; leave --betas out")
            extra["betas"] = settings.betas
        if settings.opt_eps is not None:
            if not info.has_eps:
                raise TrainingError(f"--opt {settings.optimizer} has no epsilon; leave --opt-eps out")
            extra["eps"] = settings.opt_eps
        optimizer: Optimizer = create_optimizer_v2(
            model,
            opt=settings.optimizer,
            lr=peak,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
            **extra,
        )
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise TrainingError(f"--opt {settings.optimizer}: {error}") from None
    # timm lists the layers from the first to the last. Wrappers (lookahead) share the list, so it is turned in place.
    optimizer.param_groups.reverse()
    return optimizer


def class_weights(
    wanted: Literal["none", "balanced"] | Sequence[float], class_names: Sequence[str], counts: Sequence[int]
) -> Tensor | None:
    """The weights of the classes in the loss: float32 (classes,), or None where all weigh the same.

    Args:
        wanted: ``balanced`` for pictures / (classes * pictures of the class), the rule of scikit-learn, so that the
            weights of all pictures add up to their number; or one number a class.
        class_names: in the order of the labels, for the message.
        counts: training pictures of each class.

    Raises:
        TrainingError: another number of weights than of classes.
    """
    if wanted == "none":
        return None
    if wanted == "balanced":
        count = torch.tensor(counts, dtype=torch.float32)
        return count.sum() / (len(count) * count)
    if len(wanted) != len(class_names):
        shown = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
        raise TrainingError(
            f"--class-weights gives {len(wanted)} numbers and there are {len(class_names)} classes, in this order: {shown}"
        )
    return torch.tensor(wanted, dtype=torch.float32)


class Patience(EarlyStopping):
    """Ends a run whose monitored figure has not become better for some epochs.

    A resumed run counts on from where it was, but with its own patience; Lightning's would take the checkpoint's.
    """

    def __init__(self, settings: RunSettings) -> None:
        assert settings.patience is not None
        mode = "min" if settings.monitor == "loss" else "max"
        # A figure that is not finite is told by the loss itself, with the batch.
        super().__init__(f"val_{settings.monitor}", patience=settings.patience, mode=mode, check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})
